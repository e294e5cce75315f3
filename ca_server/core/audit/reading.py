"""What the audit log is read through: for verification, proofs, searches and export."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from ca_server.domain.audit import Checkpoint, EventType
from ca_server.domain.certificates import RevocationReason

COLUMNS: Final = (
    "type",
    "outcome",
    "time",
    "process",
    "sequence",
    "actor",
    "issuer",
    "serial",
    "object",
    "request_id",
    "rule",
    "profile",
)
"""Members of an event that are columns too, for searches."""

SerialKey = tuple[str, str]
"""Serial and issuer: the order in which serials are read."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event row; `columns` in the order of COLUMNS, the time in microseconds since 1970."""

    id: str
    leaf: bytes
    columns: tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """A leaf row with its event row, None where that is gone."""

    index: int
    event_id: str
    leaf_hash: bytes
    event: StoredEvent | None


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint row; what it holds is to be checked against the note."""

    size: int
    root: bytes
    note: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as searched for; no index while it has no leaf yet."""

    id: str
    index: int | None
    leaf: bytes


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in the order of their ids: the last id looked at (None at the end), and those that have no leaf."""

    last_id: str | None
    count: int
    unsealed: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True)
class SerialFact:
    """What a table of the CA says of a serial, to be held against the log.

    `digest` is the SHA-256 of the certificate, or of the TBSCertificate of an intent.
    """

    serial: str
    issuer: str
    digest: bytes
    reason: RevocationReason | None = None

    @property
    def key(self) -> SerialKey:
        """Where it stands in the order of serials."""
        return self.serial, self.issuer


class AuditReader(Protocol):
    """Reads over the whole log, in pages: every method reads one page in a short transaction."""

    async def latest_checkpoint(self) -> tuple[Checkpoint, bytes] | None:
        """The last checkpoint with the tree's state."""

    async def leaf_hashes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        """Hashes of at most `limit` leaves from `first_index` on; fewer only where an index is missing."""

    async def leaves(self, first_index: int, limit: int) -> tuple[StoredLeaf, ...]:
        """At most `limit` leaves from `first_index` on, in the order of their indexes."""

    async def checkpoints(self, after_size: int, limit: int) -> tuple[StoredCheckpoint, ...]:
        """At most `limit` checkpoints above `after_size`, in the order of their sizes."""

    async def events(self, after_id: str, limit: int) -> EventPage:
        """Look at the `limit` events after an id."""

    async def pending_lost(self, limit: int) -> tuple[str, ...]:
        """Ids that wait for a leaf and whose event is gone."""

    async def is_pending(self, event_id: str) -> bool:
        """Whether an event waits for a leaf."""

    async def leaf_of(self, event_id: str) -> int | None:
        """The leaf index of an event."""

    async def recorded(
        self, kind: EventType, after: tuple[str, str, str], limit: int, only: SerialKey | None = None
    ) -> tuple[tuple[SerialKey, LoggedEvent], ...]:
        """Events of a type that have a serial, ordered by (serial, issuer, event id) after the three given."""

    async def certificates(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        """Stored certificates, ordered by (serial, issuer), with the reason of those that are revoked."""

    async def revoked(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        """Stored certificates that are revoked, ordered by (serial, issuer)."""

    async def intents(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        """Intents of every state, ordered by (serial, issuer)."""

    async def of_serial(self, serial: str, kind: EventType, issuer: str | None) -> tuple[LoggedEvent, ...]:
        """Events of a type about a serial, oldest first."""

    def export(self, first_index: int, last_index: int | None = None) -> AsyncIterator[bytes]:
        """Leaves in order, from one index through another (or the end)."""
