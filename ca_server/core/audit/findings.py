"""What a verification of the audit log reports."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_LISTED: Final = 1_000


class FindingKind(StrEnum):
    """What was done to the log, or is missing from it."""

    DELETED = "deleted"
    """An event, a leaf or a checkpoint is gone."""
    EDITED = "edited"
    """An event, a leaf, or a row that the log speaks of is not what it was."""
    REORDERED = "reordered"
    """Leaves are not in the order in which they were signed for."""
    TRUNCATED = "truncated"
    """The end of the log is gone: cut off, or rolled back to an older backup."""
    INSERTED = "inserted"
    """A leaf that no checkpoint covers."""
    UNSEALED = "unsealed"
    """A committed event has no leaf although the sequencer had time to give it one."""
    BAD_SIGNATURE = "bad-signature"
    """A checkpoint is not signed by the log's key, or is not well-formed."""
    ANCHOR_MISMATCH = "anchor-mismatch"
    """The log is not the one that the anchor has seen: forked, or rewritten as a whole."""
    MISSING_CERTIFICATE = "missing-certificate"
    """The log says that a certificate was stored; it is gone."""
    MISSING_INTENT = "missing-intent"
    """The log says that a serial was reserved; the reservation is gone."""
    MISSING_REVOCATION = "missing-revocation"
    """The log says that a certificate was revoked; it is not."""
    MISSING_EVENT = "missing-event"
    """A certificate, reservation or revocation is stored of which the log knows nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `where` is a leaf, range of leaves, event id, checkpoint size or serial."""

    kind: FindingKind
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """The result of a verification: counts of what was read, and what is wrong with it."""

    leaves: int
    checkpoints: int
    events: int
    certificates: int
    revocations: int
    intents: int
    size: int
    """Leaves under the last checkpoint."""
    root: bytes
    anchored_size: int | None
    """Leaves under the anchored checkpoint; None without an anchor."""
    findings: tuple[Finding, ...]
    omitted: int = 0
    """Findings beyond those listed."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Findings:
    """Collects findings, a bounded number of them."""

    def __init__(self) -> None:
        self._listed: list[Finding] = []
        self._seen: set[Finding] = set()
        self.omitted = 0

    def add(self, kind: FindingKind, where: str, text: str) -> None:
        """Add one, once."""
        finding = Finding(kind, where, text)
        if finding in self._seen:
            return
        if len(self._listed) >= _LISTED:
            self.omitted += 1
            return
        self._seen.add(finding)
        self._listed.append(finding)

    def listed(self) -> tuple[Finding, ...]:
        """All that are listed, in the order in which they were found."""
        return tuple(self._listed)
