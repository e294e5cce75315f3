"""Inserting audit events inside a transaction of the change that they record."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select

from ca_server.core.audit import encode_event
from ca_server.domain.audit import AuditEvent
from ca_server.store.audit_tables import audit_events
from ca_server.store.database import Bulk
from ca_server.store.rows import insert_rows
from ca_server.store.statements import Prepared

_CACHE = "audit-sequences"
"""Key of `Connection.info`: the last sequence by process, as this connection remembers it."""

_values = [bindparam(column.name, type_=column.type) for column in audit_events.columns]
_earlier = audit_events.alias("earlier")
_SELECT_LAST = select(func.max(_earlier.c.sequence)).where(_earlier.c.process == bindparam("of_process"))
_LAST = Prepared(_SELECT_LAST)
_INSERT = insert_rows(audit_events)
_INSERT_BEHIND = Prepared(
    insert(audit_events).from_select(
        [column.name for column in audit_events.columns],
        select(*_values).where(_SELECT_LAST.scalar_subquery() == bindparam("previous")),
        include_defaults=False,
    )
)


def insert_events(connection: Connection, events: Sequence[AuditEvent]) -> None:
    """Insert events in the transaction of the change that they record, as part of a unit of the group commit.

    The events of each process are numbered here, in the order of their commit and without a gap: one that was made
    and then rolled back leaves no hole, so that a hole means a deletion. Raises CaError for an event that can't be
    encoded.
    """
    by_process: dict[str, list[AuditEvent]] = {}
    for event in events:
        by_process.setdefault(event.process, []).append(event)
    remembered: dict[str, int] = connection.info.setdefault(_CACHE, {})
    for process, group in by_process.items():
        last = _insert_first(connection, group[0], remembered.get(process))
        rest = [_row(event, last + offset) for offset, event in enumerate(group[1:], 1)]
        _INSERT.execute(connection, rest)
        remembered[process] = last + len(rest)


def _record(connection: Connection, groups: Sequence[Sequence[AuditEvent]]) -> list[None]:
    insert_events(connection, [event for group in groups for event in group])
    return [None] * len(groups)


RECORD: Final = Bulk(_record)
"""Inserts the events of many units at once."""


def _insert_first(connection: Connection, event: AuditEvent, remembered: int | None) -> int:
    """Insert an event behind the last one of its process; return its sequence.

    What the connection remembers may have been rolled back since: the insertion itself asks for the last one.
    """
    if remembered:
        row = _row(event, remembered + 1) | {"of_process": event.process, "previous": remembered}
        if _INSERT_BEHIND.execute(connection, row).rowcount == 1:
            return remembered + 1
    sequence: int = (_LAST.execute(connection, {"of_process": event.process}).scalar() or 0) + 1
    _INSERT.execute(connection, [_row(event, sequence)])
    return sequence


def _row(event: AuditEvent, sequence: int) -> dict[str, Any]:
    return {
        "id": event.id,
        "type": event.type.value,
        "outcome": event.outcome.value,
        "time": event.time,
        "process": event.process,
        "sequence": sequence,
        "actor": event.actor,
        "issuer": event.issuer,
        "serial": event.serial,
        "object": event.object,
        "request_id": event.request_id,
        "rule": event.rule,
        "profile": event.profile,
        "leaf": encode_event(event, sequence),
    }
