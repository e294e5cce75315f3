"""Reads over the audit log in SQL (`ca_server.core.audit.AuditReader`): pages by key, each in a short transaction."""

from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    Select,
    and_,
    bindparam,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.sql.expression import ColumnClause

from ca_server.core.audit.reading import (
    COLUMNS,
    EventPage,
    LoggedEvent,
    SerialFact,
    SerialKey,
    StoredCheckpoint,
    StoredEvent,
    StoredLeaf,
)
from ca_server.domain.audit import Checkpoint, EventType
from ca_server.domain.certificates import RevocationReason
from ca_server.store.audit_tables import audit_checkpoints, audit_events, audit_leaves, audit_pending
from ca_server.store.database import Database
from ca_server.store.tables import certificates, intents, issuers
from ca_server.store.types import AnyRow

_EXPORT_PAGE = 500

# The time as the number that is stored: what a tamperer wrote need not be a time.
_event_columns = [
    audit_events.c.id,
    audit_events.c.leaf,
    *(type_coerce(audit_events.c[name], BigInteger) if name == "time" else audit_events.c[name] for name in COLUMNS),
]
_LATEST = select(audit_checkpoints).order_by(audit_checkpoints.c.size.desc()).limit(1)
_AT_SIZE = select(audit_checkpoints).where(audit_checkpoints.c.size == bindparam("of_size"))
_CHECKPOINTS = (
    select(audit_checkpoints)
    .where(audit_checkpoints.c.size > bindparam("after_size"))
    .order_by(audit_checkpoints.c.size)
    .limit(bindparam("how_many"))
)
_LEAVES = (
    select(audit_leaves.c.leaf_index, audit_leaves.c.event_id, audit_leaves.c.leaf_hash, *_event_columns)
    .join_from(audit_leaves, audit_events, audit_events.c.id == audit_leaves.c.event_id, isouter=True)
    .where(audit_leaves.c.leaf_index >= bindparam("first"))
    .order_by(audit_leaves.c.leaf_index)
    .limit(bindparam("how_many"))
)
_HASHES = (
    select(audit_leaves.c.leaf_index, audit_leaves.c.leaf_hash)
    .where(audit_leaves.c.leaf_index >= bindparam("first"))
    .order_by(audit_leaves.c.leaf_index)
    .limit(bindparam("how_many"))
)
_EXPORT = (
    select(audit_leaves.c.leaf_index, audit_events.c.leaf)
    .join_from(audit_leaves, audit_events, audit_events.c.id == audit_leaves.c.event_id)
    .where(audit_leaves.c.leaf_index >= bindparam("first"), audit_leaves.c.leaf_index <= bindparam("last"))
    .order_by(audit_leaves.c.leaf_index)
    .limit(bindparam("how_many"))
)
_ids = (
    select(audit_events.c.id.label("page_id"))
    .where(audit_events.c.id > bindparam("after_id"))
    .order_by(audit_events.c.id)
    .limit(bindparam("how_many"))
    .subquery()
)
_EVENT_IDS = (
    select(_ids.c.page_id, audit_leaves.c.leaf_index)
    .join_from(_ids, audit_leaves, audit_leaves.c.event_id == _ids.c.page_id, isouter=True)
    .order_by(_ids.c.page_id)
)
_EVENTS = select(*_event_columns).where(audit_events.c.id.in_(bindparam("ids", expanding=True)))
_LOST = (
    select(audit_pending.c.event_id)
    .join_from(audit_pending, audit_events, audit_events.c.id == audit_pending.c.event_id, isouter=True)
    .where(audit_events.c.id.is_(None))
    .order_by(audit_pending.c.position)
    .limit(bindparam("how_many"))
)
_IS_PENDING = select(audit_pending.c.position).where(audit_pending.c.event_id == bindparam("of_event"))
_LEAF_OF = select(audit_leaves.c.leaf_index).where(audit_leaves.c.event_id == bindparam("of_event"))
_LOGGED: Select[Any] = select(
    audit_events.c.id, audit_leaves.c.leaf_index, audit_events.c.leaf, audit_events.c.serial, audit_events.c.issuer
).join_from(audit_events, audit_leaves, audit_leaves.c.event_id == audit_events.c.id, isouter=True)


def _issuer(dialect: str) -> ColumnElement[str]:
    """The issuer's name, compared by code point as its copy in the events is."""
    return issuers.c.name.collate("C") if dialect == "postgresql" else issuers.c.name


def _after(*columns: ColumnElement[Any] | ColumnClause[Any], base: str = "after") -> ColumnElement[bool]:
    """Rows behind a key of several columns; the first condition alone is what an index is entered by."""
    condition: ColumnElement[bool] = columns[-1] > bindparam(f"{base}_{len(columns) - 1}")
    for position in range(len(columns) - 2, -1, -1):
        parameter: BindParameter[Any] = bindparam(f"{base}_{position}")
        condition = or_(columns[position] > parameter, and_(columns[position] == parameter, condition))
    return and_(columns[0] >= bindparam(f"{base}_0"), condition)


class SqlAuditReads:
    """Reads over the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def latest_checkpoint(self) -> tuple[Checkpoint, bytes] | None:
        return await self._checkpoint(_LATEST, {})

    async def checkpoint_at(self, size: int) -> tuple[Checkpoint, bytes] | None:
        return await self._checkpoint(_AT_SIZE, {"of_size": size})

    async def _checkpoint(self, statement: Select[Any], parameters: dict[str, Any]) -> tuple[Checkpoint, bytes] | None:
        row = await self._database.read(lambda connection: connection.execute(statement, parameters).first())
        if row is None:
            return None
        origin = row.note.split(b"\n", 1)[0].decode("utf-8", "replace")
        return Checkpoint(origin, row.size, row.root, row.note, row.created_at), row.state

    async def leaf_hashes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        rows = await self._rows(_HASHES, {"first": first_index, "how_many": limit})
        return tuple(row.leaf_hash for index, row in enumerate(rows, first_index) if row.leaf_index == index)

    async def leaf_bytes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        last = first_index + limit - 1
        rows = await self._rows(_EXPORT, {"first": first_index, "last": last, "how_many": limit})
        return tuple(row.leaf for index, row in enumerate(rows, first_index) if row.leaf_index == index)

    async def leaves(self, first_index: int, limit: int) -> tuple[StoredLeaf, ...]:
        rows = await self._rows(_LEAVES, {"first": first_index, "how_many": limit})
        return tuple(
            StoredLeaf(row.leaf_index, row.event_id, row.leaf_hash, None if row.id is None else _event(row, 3))
            for row in rows
        )

    async def checkpoints(self, after_size: int, limit: int) -> tuple[StoredCheckpoint, ...]:
        rows = await self._rows(_CHECKPOINTS, {"after_size": after_size, "how_many": limit})
        return tuple(StoredCheckpoint(row.size, row.root, row.note, row.state) for row in rows)

    async def events(self, after_id: str, limit: int) -> EventPage:
        def query(connection: Connection) -> EventPage:
            ids = connection.execute(_EVENT_IDS, {"after_id": after_id, "how_many": limit}).all()
            unsealed = [row.page_id for row in ids if row.leaf_index is None]
            rows = connection.execute(_EVENTS, {"ids": unsealed}) if unsealed else ()
            return EventPage(ids[-1].page_id if ids else None, len(ids), tuple(_event(row, 0) for row in rows))

        return await self._database.read(query)

    async def pending_lost(self, limit: int) -> tuple[str, ...]:
        return tuple(row.event_id for row in await self._rows(_LOST, {"how_many": limit}))

    async def is_pending(self, event_id: str) -> bool:
        return bool(await self._rows(_IS_PENDING, {"of_event": event_id}))

    async def leaf_of(self, event_id: str) -> int | None:
        rows = await self._rows(_LEAF_OF, {"of_event": event_id})
        return rows[0].leaf_index if rows else None

    async def recorded(
        self, kind: EventType, after: tuple[str, str, str], limit: int, only: SerialKey | None = None
    ) -> tuple[tuple[SerialKey, LoggedEvent], ...]:
        columns = (audit_events.c.serial, audit_events.c.issuer, audit_events.c.id)
        statement = _LOGGED.where(
            audit_events.c.type == kind.value, audit_events.c.serial.is_not(None), audit_events.c.issuer.is_not(None)
        )
        statement, parameters = _page(statement, columns, after, only)
        rows = await self._rows(statement.limit(limit), parameters)
        return tuple(((row.serial, row.issuer), _logged(row)) for row in rows)

    async def certificates(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        return await self._certificates(after, limit, only)

    async def revoked(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        return await self._certificates(after, limit, only, certificates.c.revoked_at.is_not(None))

    async def _certificates(
        self, after: SerialKey, limit: int, only: SerialKey | None, *conditions: ColumnElement[bool]
    ) -> tuple[SerialFact, ...]:
        issuer = _issuer(self._database.dialect)
        statement = (
            select(
                certificates.c.serial,
                issuers.c.name.label("issuer"),
                certificates.c.revocation_reason,
                certificates.c.der,
            )
            .join_from(certificates, issuers, issuers.c.id == certificates.c.issuer_id)
            .where(*conditions)
        )
        statement, parameters = _page(statement, (certificates.c.serial, issuer), after, only)
        rows = await self._rows(statement.limit(limit), parameters)
        return tuple(
            SerialFact(row.serial, row.issuer, sha256(row.der).digest(), _reason(row.revocation_reason)) for row in rows
        )

    async def intents(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        issuer = _issuer(self._database.dialect)
        statement = select(intents.c.serial, issuers.c.name.label("issuer"), intents.c.tbs_sha256).join_from(
            intents, issuers, issuers.c.id == intents.c.issuer_id
        )
        statement, parameters = _page(statement, (intents.c.serial, issuer), after, only)
        rows = await self._rows(statement.limit(limit), parameters)
        return tuple(SerialFact(row.serial, row.issuer, row.tbs_sha256) for row in rows)

    async def of_serial(self, serial: str, kind: EventType, issuer: str | None) -> tuple[LoggedEvent, ...]:
        """Events of a type about a serial, oldest first; of any issuer where that is None."""
        statement: Select[Any] = _LOGGED.where(audit_events.c.serial == serial, audit_events.c.type == kind.value)
        if issuer is not None:
            statement = statement.where(audit_events.c.issuer == issuer)
        statement = statement.order_by(audit_events.c.id)
        return tuple(map(_logged, await self._rows(statement, {})))

    async def tail(
        self,
        limit: int,
        type: EventType | None = None,  # noqa: A002 - the event's own word
        serial: str | None = None,
        object: str | None = None,  # noqa: A002 - the event's own word
        after: str | None = None,
    ) -> tuple[LoggedEvent, ...]:
        """The newest `limit` events, oldest first; with `after` (an event id) the first `limit` behind it instead."""
        statement: Select[Any] = _LOGGED
        if type is not None:
            statement = statement.where(audit_events.c.type == type.value)
        if serial is not None:
            statement = statement.where(audit_events.c.serial == serial)
        if object is not None:
            statement = statement.where(audit_events.c.object == object)
        if after is not None:
            statement = statement.where(audit_events.c.id > after).order_by(audit_events.c.id)
        else:
            statement = statement.order_by(audit_events.c.id.desc())
        statement = statement.limit(limit)
        rows = [_logged(row) for row in await self._rows(statement, {})]
        return tuple(rows if after is not None else reversed(rows))

    async def about(self, objects: Sequence[str], serials: Sequence[str], limit: int) -> tuple[LoggedEvent, ...]:
        """The newest `limit` events about any of these objects or serials, in the order of their making."""
        about = or_(audit_events.c.object.in_(objects), audit_events.c.serial.in_(serials))
        statement: Select[Any] = _LOGGED.where(about).order_by(audit_events.c.id.desc()).limit(limit)
        return tuple(reversed([_logged(row) for row in await self._rows(statement, {})]))

    async def unfinished(self, begun: EventType, ended: Sequence[EventType]) -> tuple[SerialKey, ...]:
        """(Serial, issuer) of events of one type that none of the other types followed for the same serial."""
        later = audit_events.alias("later")
        followed = (
            select(later.c.id)
            .where(
                later.c.serial == audit_events.c.serial,
                later.c.issuer == audit_events.c.issuer,
                later.c.type.in_([each.value for each in ended]),
            )
            .exists()
        )
        statement = select(audit_events.c.serial, audit_events.c.issuer).where(
            audit_events.c.type == begun.value, audit_events.c.serial.is_not(None), ~followed
        )
        return tuple((row.serial, row.issuer) for row in await self._rows(statement, {}))

    async def export(self, first_index: int, last_index: int | None = None) -> AsyncIterator[bytes]:
        """Leaves in order, from one index through another (or the end): bytes that hash to the tree's leaves."""
        last = 2**63 - 1 if last_index is None else last_index
        while first_index <= last:
            rows = await self._rows(_EXPORT, {"first": first_index, "last": last, "how_many": _EXPORT_PAGE})
            if not rows:
                return
            for row in rows:
                yield row.leaf
            first_index = rows[-1].leaf_index + 1

    async def stream(self, first_index: int = 0) -> AsyncIterator[StoredLeaf]:
        """All leaves with their events from an index on, in bounded memory."""
        while page := await self.leaves(first_index, _EXPORT_PAGE):
            for leaf in page:
                yield leaf
            first_index = page[-1].index + 1

    async def _rows(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[AnyRow]:
        def query(connection: Connection) -> Sequence[AnyRow]:
            return connection.execute(statement, parameters).all()

        return await self._database.read(query)


def _page(
    statement: Select[Any],
    columns: tuple[ColumnElement[Any], ...],
    after: tuple[str, ...],
    only: SerialKey | None,
) -> tuple[Select[Any], dict[str, str]]:
    statement = statement.order_by(*columns)
    if only is not None:
        return statement.where(columns[0] == bindparam("of_serial"), columns[1] == bindparam("of_issuer")), {
            "of_serial": only[0],
            "of_issuer": only[1],
        }
    return statement.where(_after(*columns)), {f"after_{position}": key for position, key in enumerate(after)}


def _event(row: AnyRow, skip: int) -> StoredEvent:
    event_id, leaf, *columns = row[skip:]
    return StoredEvent(event_id, leaf, tuple(columns))


def _logged(row: AnyRow) -> LoggedEvent:
    return LoggedEvent(row.id, row.leaf_index, row.leaf)


def _reason(code: int | None) -> RevocationReason | None:
    known = {reason.value for reason in RevocationReason}
    return RevocationReason(code) if code in known else None
