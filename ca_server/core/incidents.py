"""Incidents, begun and ended by operators, on record."""

from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from ca_server.core.audit import EventFactory
from ca_server.core.ports import CreateIncident, IncidentStore
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_id
from ca_server.domain.incidents import Incident

MAX_TARGETS = 1_000
"""Of one incident: its event names them all."""
_MAX_VALUE = 128
_MAX_TEXT = 1_000


class Incidents:
    """Changes the incidents on record."""

    def __init__(
        self, store: IncidentStore, events: EventFactory, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock

    async def create(self, request: CreateIncident, actor: str) -> Incident:
        """Begin an incident. MALFORMED for no or too many targets, or a page that is no URL; NOT_FOUND."""
        targets = tuple(dict.fromkeys(request.targets))
        if not 1 <= len(targets) <= MAX_TARGETS:
            raise CaError(ErrorKind.MALFORMED, f"an incident has 1 to {MAX_TARGETS} targets; make several of more")
        texts = (*(target.value for target in targets), request.reason)
        if not all(text and text.isprintable() for text in texts) or any(len(t.value) > _MAX_VALUE for t in targets):
            raise CaError(ErrorKind.MALFORMED, "the reason and each target are printable texts, and not empty")
        if max(len(request.reason), len(request.explanation_url)) > _MAX_TEXT:
            raise CaError(ErrorKind.MALFORMED, f"reason and URL have at most {_MAX_TEXT} characters each")
        if request.explanation_url and not _is_url(request.explanation_url):
            raise CaError(ErrorKind.MALFORMED, "the explanation is a URL in ASCII that begins with https:// or http://")
        incident = Incident(
            id=new_id(),
            created_at=self._clock(),
            reason=request.reason,
            explanation_url=request.explanation_url,
            targets=targets,
            tenant=self._events.tenant,
        )
        event = self._events.make(
            EventType.INCIDENT_CREATED,
            actor=actor,
            object=f"incident:{incident.id}",
            reason=request.reason,
            extra={"targets": " ".join(map(str, targets)), "explanation_url": request.explanation_url},
        )
        await self._store.create_incident(incident, [event])
        return incident

    async def end(self, incident_id: str, actor: str) -> bool:
        """End an incident: windows are where they were. False where there is none of that id, or it has ended."""
        event = self._events.make(EventType.INCIDENT_ENDED, actor=actor, object=f"incident:{incident_id}")
        return await self._store.end_incident(incident_id, self._clock(), [event])


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return (
        text.isascii()
        and text.isprintable()
        and " " not in text
        and parts.scheme in {"https", "http"}
        and bool(parts.hostname)
    )
