"""Rate limits that operators give back."""

from collections.abc import Callable
from datetime import UTC, datetime

from ca_server.core.audit import EventFactory
from ca_server.core.ports import LimitStore
from ca_server.domain.audit import EventType


class LimitKeys:
    """Changes the keys of rate limits, on record."""

    def __init__(
        self, store: LimitStore, events: EventFactory, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock

    async def reset(self, key: str, actor: str) -> bool:
        """Give a key of a limit its whole burst back; false where it has it."""
        event = self._events.make(EventType.LIMIT_RESET, actor=actor, object=f"acme-limit:{key[:500]}")
        return await self._store.reset_limit(key, self._clock(), [event])
