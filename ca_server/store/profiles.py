"""Profile bodies by content hash: what a certificate was issued under can always be read again."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, select

from ca_server.domain.audit import AuditEvent
from ca_server.store.audit import insert_events
from ca_server.store.database import Database
from ca_server.store.statements import insert_or_ignore
from ca_server.store.tables import profiles

_DEFAULT_TENANT = "default"
_SAVE = insert_or_ignore(profiles, ["tenant", "content_hash", "name", "first_seen", "body"])
_BODY = select(profiles.c.name, profiles.c.body).where(
    profiles.c.content_hash == bindparam("of_hash"), profiles.c.tenant == bindparam("of_tenant")
)


class SqlProfileStore:
    """`ca_server.core.ports.ProfileStore` in SQL, for one tenant."""

    def __init__(self, database: Database, tenant: str = _DEFAULT_TENANT) -> None:
        self._database = database
        self._tenant = tenant

    async def save_profile(self, name: str, content_hash: str, body: bytes, events: Sequence[AuditEvent]) -> bool:
        parameters = {
            "tenant": self._tenant,
            "content_hash": content_hash,
            "name": name,
            "first_seen": datetime.now(UTC),
            "body": body,
        }

        def unit(connection: Connection) -> bool:
            if connection.execute(_SAVE[connection.dialect.name], parameters).rowcount == 0:
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit)

    async def profile_body(self, content_hash: str) -> tuple[str, bytes] | None:
        parameters = {"of_hash": content_hash, "of_tenant": self._tenant}

        def query(connection: Connection) -> tuple[str, bytes] | None:
            row = connection.execute(_BODY, parameters).first()
            return None if row is None else (row.name, row.body)

        return await self._database.read(query)
