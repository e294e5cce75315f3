"""Rate limits as operators see and change them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from ca_server.domain.audit import AuditEvent
from ca_server.store.acme_limits import StandingLimit, limit_lock, reset_limit, standing_limits
from ca_server.store.audit import insert_events
from ca_server.store.database import Database


class SqlLimitStore:
    """`ca_server.core.ports.LimitStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standing(self, now: datetime, limit: int, *, refusing: bool = False) -> tuple[StandingLimit, ...]:
        """Keys that something was taken from, those that are whole again last first."""
        return await self._database.read(lambda connection: standing_limits(connection, now, limit, refusing=refusing))

    async def reset_limit(self, key: str, now: datetime, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if not reset_limit(connection, key, now):
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit, locks=(limit_lock(key),))
