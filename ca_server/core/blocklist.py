"""Public keys that are certified no more: compromised, or known to others."""

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256

from ca_server.core.audit import EventFactory
from ca_server.core.ports import IssuanceStore
from ca_server.domain.audit import AuditEvent, EventType
from ca_server.domain.certificates import BlockedKey
from ca_server.domain.errors import CaError, ErrorKind


class Blocklist:
    """Changes the blocklist on record. Revoking for keyCompromise adds to it by itself."""

    def __init__(
        self,
        store: IssuanceStore,
        events: EventFactory,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock

    async def block(self, spki_sha256: bytes, reason: str, actor: str) -> bool:
        """Block a public key by the SHA-256 of its SubjectPublicKeyInfo; false where it was blocked. MALFORMED."""
        event = self._event(EventType.KEY_BLOCKED, spki_sha256, actor, reason)
        return await self._store.block_spki(BlockedKey(spki_sha256, reason, self._clock()), [event])

    async def unblock(self, spki_sha256: bytes, actor: str) -> bool:
        """Undo `block`; false where the key was not blocked. MALFORMED."""
        return await self._store.unblock_spki(spki_sha256, [self._event(EventType.KEY_UNBLOCKED, spki_sha256, actor)])

    def _event(self, kind: EventType, spki_sha256: bytes, actor: str, reason: str | None = None) -> AuditEvent:
        if len(spki_sha256) != sha256().digest_size:
            raise CaError(ErrorKind.MALFORMED, "the SHA-256 of a SubjectPublicKeyInfo has 32 octets")
        return self._events.make(kind, actor=actor, object=f"spki:{spki_sha256.hex()}", reason=reason)
