"""Nodes with their boot epochs, leases, and secrets that all nodes share."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, bindparam, case, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.core.ports import Lease
from ca_server.domain.enrollment import Fence
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.database import Database
from ca_server.store.statements import insert_dialect, insert_or_ignore
from ca_server.store.tables import leases, nodes, secrets

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_HEARTBEAT = (
    update(nodes)
    .where(nodes.c.node == bindparam("of_node"), nodes.c.boot_epoch == bindparam("of_epoch"))
    .values(lease_expires=bindparam("expires"))
)
_RELEASE = (
    update(leases)
    .where(
        leases.c.name == bindparam("of_name"),
        leases.c.holder == bindparam("of_holder"),
        leases.c.fence == bindparam("of_fence"),
    )
    .values(expires_at=_LONG_AGO)
)
_SECRET = select(secrets.c.ciphertext).where(secrets.c.name == bindparam("of_name"))
_SAVE_SECRET = insert_or_ignore(secrets, ["name", "ciphertext"])

_BEGIN_BOOT = {
    insert_dialect(insert): insert.values(
        node=bindparam("node"), holder=bindparam("holder"), boot_epoch=1, lease_expires=bindparam("lease_expires")
    )
    .on_conflict_do_update(
        index_elements=[nodes.c.node],
        set_={
            "boot_epoch": nodes.c.boot_epoch + 1,
            "lease_expires": insert.excluded.lease_expires,
            "holder": insert.excluded.holder,
        },
        where=or_(nodes.c.holder == insert.excluded.holder, nodes.c.lease_expires <= bindparam("now")),
    )
    .returning(nodes.c.boot_epoch)
    for insert in (sqlite.insert(nodes), postgresql.insert(nodes))
}
_ACQUIRE = {
    insert_dialect(insert): insert.values(
        name=bindparam("name"), holder=bindparam("holder"), fence=1, expires_at=bindparam("expires_at")
    )
    .on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={
            "holder": insert.excluded.holder,
            "expires_at": insert.excluded.expires_at,
            "fence": case((leases.c.holder == insert.excluded.holder, leases.c.fence), else_=leases.c.fence + 1),
        },
        where=or_(
            leases.c.holder == insert.excluded.holder,
            leases.c.expires_at <= bindparam("now"),
            leases.c.holder.startswith(bindparam("own"), autoescape=False),
        ),
    )
    .returning(leases.c.fence)
    for insert in (sqlite.insert(leases), postgresql.insert(leases))
}


def _lock(lease: str) -> str:
    """Name of the lock under which a lease changes hands."""
    return f"lease:{lease}"


class SqlCoordinationStore:
    """`ca_server.core.ports.CoordinationStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin_boot(self, node: str, holder: str, now: datetime, lease: timedelta) -> Fence:
        parameters = {"node": node, "holder": holder, "lease_expires": now + lease, "now": now}

        def unit(connection: Connection) -> Fence:
            epoch = connection.execute(_BEGIN_BOOT[connection.dialect.name], parameters).scalar()
            if epoch is None:
                raise CaError(ErrorKind.CONFLICT, f"another home is at work as node {node!r}")
            return Fence(node, epoch)

        return await self._database.write(unit)

    async def end_boot(self, fence: Fence, now: datetime) -> None:
        await self.heartbeat(fence, now, timedelta(0))

    async def heartbeat(self, fence: Fence, now: datetime, lease: timedelta) -> bool:
        parameters = {"of_node": fence.node, "of_epoch": fence.boot_epoch, "expires": now + lease}
        return await self._database.write(lambda connection: connection.execute(_HEARTBEAT, parameters).rowcount == 1)

    async def acquire_lease(
        self, name: str, holder: str, now: datetime, duration: timedelta, *, node: str | None = None
    ) -> Lease | None:
        expires_at = now + duration
        # A name of a node has no character that LIKE knows; no holder begins with a slash.
        own = "/" if node is None else f"{node}/"
        parameters = {"name": name, "holder": holder, "expires_at": expires_at, "now": now, "own": own}

        def unit(connection: Connection) -> Lease | None:
            fence = connection.execute(_ACQUIRE[connection.dialect.name], parameters).scalar()
            return None if fence is None else Lease(name, holder, expires_at, fence)

        return await self._database.write(unit, locks=(_lock(name),))

    async def release_lease(self, lease: Lease) -> None:
        # The row stays, so that the fence goes on growing.
        parameters = {"of_name": lease.name, "of_holder": lease.holder, "of_fence": lease.fence}
        await self._database.write(
            lambda connection: connection.execute(_RELEASE, parameters).rowcount, locks=(_lock(lease.name),)
        )

    async def secret(self, name: str) -> bytes | None:
        def query(connection: Connection) -> bytes | None:
            ciphertext: bytes | None = connection.execute(_SECRET, {"of_name": name}).scalar()
            return ciphertext

        return await self._database.read(query)

    async def save_secret(self, name: str, ciphertext: bytes) -> bytes:
        def unit(connection: Connection) -> bytes:
            connection.execute(_SAVE_SECRET[connection.dialect.name], {"name": name, "ciphertext": ciphertext})
            standing: bytes = connection.execute(_SECRET, {"of_name": name}).scalar_one()
            return standing

        return await self._database.write(unit)
