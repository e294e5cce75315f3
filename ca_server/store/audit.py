"""The audit log in SQL: events, leaves and checkpoints (`ca_server.core.ports.AuditStore`)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from ca_server.core.ports import Lease
from ca_server.domain.audit import AuditEvent, Checkpoint
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit_insert import RECORD, insert_events
from ca_server.store.audit_reads import SqlAuditReads
from ca_server.store.audit_tables import audit_checkpoints, audit_events, audit_leaves, audit_pending
from ca_server.store.rows import insert_rows
from ca_server.store.tables import leases

__all__ = ["SqlAuditStore", "insert_events"]

_PENDING = (
    select(audit_events.c.id, audit_events.c.leaf)
    .join_from(audit_pending, audit_events, audit_events.c.id == audit_pending.c.event_id)
    .order_by(audit_pending.c.position)
    .limit(bindparam("how_many"))
)
# FOR SHARE: no other takes the lease until this transaction ends. SQLite has one writer, and ignores it.
_LEASE = select(leases.c.holder, leases.c.fence).where(leases.c.name == bindparam("of_name")).with_for_update(read=True)
_LAST_SIZE = select(audit_checkpoints.c.size).order_by(audit_checkpoints.c.size.desc()).limit(1)
_INSERT_LEAVES = insert_rows(audit_leaves)
_INSERT_CHECKPOINT = insert(audit_checkpoints).values(
    {column.name: bindparam(column.name) for column in audit_checkpoints.columns}
)
_SETTLE = delete(audit_pending).where(
    audit_pending.c.event_id.in_(select(audit_leaves.c.event_id).where(audit_leaves.c.leaf_index >= bindparam("first")))
)


class SqlAuditStore(SqlAuditReads):
    """`ca_server.core.ports.AuditStore` and `ca_server.core.audit.AuditReader` in SQL."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        await self._database.write_in_bulk(RECORD, events)

    async def pending(self, limit: int) -> tuple[tuple[str, bytes], ...]:
        def query(connection: Connection) -> tuple[tuple[str, bytes], ...]:
            return tuple((row.id, row.leaf) for row in connection.execute(_PENDING, {"how_many": limit}))

        return await self._database.read(query)

    async def seal(
        self,
        lease: Lease,
        leaves: Sequence[tuple[str, bytes]],
        first_index: int,
        checkpoint: Checkpoint,
        state: bytes,
    ) -> None:
        if checkpoint.size != first_index + len(leaves) or not leaves:
            raise CaError(ErrorKind.CONFLICT, "the checkpoint is not over the leaves that are given")
        rows = [
            {"leaf_index": index, "event_id": event_id, "leaf_hash": hashed}
            for index, (event_id, hashed) in enumerate(leaves, first_index)
        ]
        head = {
            "size": checkpoint.size,
            "created_at": checkpoint.created_at,
            "root": checkpoint.root,
            "note": checkpoint.note,
            "state": state,
        }
        await self._database.write(lambda connection: _seal(connection, lease, first_index, rows, head))


def _seal(
    connection: Connection, lease: Lease, first_index: int, rows: list[dict[str, Any]], head: dict[str, Any]
) -> None:
    standing = connection.execute(_LEASE, {"of_name": lease.name}).first()
    if standing is None or (standing.holder, standing.fence) != (lease.holder, lease.fence):
        raise CaError(ErrorKind.CONFLICT, "another process has the log's lease")
    if (connection.execute(_LAST_SIZE).scalar() or 0) != first_index:
        raise CaError(ErrorKind.CONFLICT, "the tree does not end where the leaves begin")
    try:
        _INSERT_LEAVES.execute(connection, rows)
        connection.execute(_INSERT_CHECKPOINT, head)
    except IntegrityError as error:
        raise CaError(ErrorKind.CONFLICT, "a leaf or checkpoint stands where the new ones belong") from error
    connection.execute(_SETTLE, {"first": first_index})
