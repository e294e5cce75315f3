"""Requests that were refused, counted: who has no account and no nonce, or is over a limit, leaves no row behind."""

from collections import Counter

from ca_server.core.audit import EventFactory
from ca_server.domain.audit import EventType, Outcome
from protocols.acme.ports import AcmeStore

_SHOWN_SOURCES = 5


class Refusals:
    """Counts since the last record, and the first few addresses that they came from; owned by the event loop."""

    def __init__(self, store: AcmeStore, events: EventFactory, *, rule: str, reason: str) -> None:
        """`reason` follows the number of requests that were refused."""
        self._store = store
        self._events = events
        self._rule = rule
        self._reason = reason
        self._counts: Counter[str] = Counter()
        self._sources: dict[str, None] = {}

    def count(self, kind: str, source: str | None) -> None:
        """Count one refusal by its kind, such as the type of its problem: one of a few."""
        self._counts[kind] += 1
        if source is not None and len(self._sources) < _SHOWN_SOURCES:
            self._sources[source] = None

    async def record(self) -> None:
        """Put what was counted on record, as one event; where that fails it is counted on."""
        counts, sources = self._counts, self._sources
        if not counts:
            return
        self._counts, self._sources = Counter(), {}
        event = self._events.make(
            EventType.ACCESS_REFUSED,
            outcome=Outcome.DENIED,
            rule=self._rule,
            reason=f"{counts.total()} requests were refused {self._reason}",
            extra={kind: str(number) for kind, number in counts.items()} | {"sources": ",".join(sources)},
        )
        try:
            await self._store.record([event], None)
        except Exception:
            self._counts += counts
            self._sources = {**sources, **self._sources}
            raise
