"""Profile bodies by content hash: what a certificate was issued under can always be read again."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.core.ports import StoredProfile
from ca_server.domain.audit import AuditEvent
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit import insert_events
from ca_server.store.database import Database
from ca_server.store.statements import insert_or_ignore
from ca_server.store.tables import profiles

_DEFAULT_TENANT = "default"
_SAVE = insert_or_ignore(profiles, ["tenant", "content_hash", "name", "first_seen", "superseded_at", "body"])
_BODY = select(profiles.c.name, profiles.c.content_hash, profiles.c.body, profiles.c.superseded_at).where(
    profiles.c.content_hash == bindparam("of_hash"), profiles.c.tenant == bindparam("of_tenant")
)
# Two nodes that put different profiles in force at once meet at the unique index of names in force.
_IN_FORCE = select(profiles.c.name, profiles.c.content_hash).where(
    profiles.c.tenant == bindparam("of_tenant"), profiles.c.superseded_at.is_(None)
)
_SUPERSEDE = (
    update(profiles)
    .where(profiles.c.tenant == bindparam("of_tenant"), profiles.c.content_hash == bindparam("of_hash"))
    .values(superseded_at=bindparam("at"))
)


class SqlProfileStore:
    """`ca_server.core.ports.ProfileStore` in SQL, for one tenant."""

    def __init__(self, database: Database, tenant: str = _DEFAULT_TENANT) -> None:
        self._database = database
        self._tenant = tenant

    async def profiles_in_force(self) -> dict[str, str]:
        return await self._database.read(self._standing)

    async def put_in_force(
        self,
        profiles: Sequence[StoredProfile],
        expected: Mapping[str, str],
        now: datetime,
        events: Sequence[AuditEvent],
    ) -> None:
        wanted = {profile.name: profile for profile in profiles}

        def unit(connection: Connection) -> None:
            if self._standing(connection) != expected:
                raise CaError(ErrorKind.CONFLICT, "another process has put profiles in force")
            for name, content_hash in expected.items():
                if name not in wanted or wanted[name].content_hash != content_hash:
                    self._supersede(connection, content_hash, now)
            for name, profile in wanted.items():
                if expected.get(name) != profile.content_hash:
                    self._put(connection, profile, now)
            insert_events(connection, events)

        try:
            await self._database.write(unit)
        except IntegrityError as error:
            raise CaError(ErrorKind.CONFLICT, "another process has put profiles in force") from error

    def _standing(self, connection: Connection) -> dict[str, str]:
        return {row.name: row.content_hash for row in connection.execute(_IN_FORCE, {"of_tenant": self._tenant})}

    def _supersede(self, connection: Connection, content_hash: str, at: datetime | None) -> None:
        connection.execute(_SUPERSEDE, {"of_tenant": self._tenant, "of_hash": content_hash, "at": at})

    def _put(self, connection: Connection, profile: StoredProfile, now: datetime) -> None:
        values = {
            "tenant": self._tenant,
            "content_hash": profile.content_hash,
            "name": profile.name,
            "first_seen": now,
            "superseded_at": None,
            "body": profile.body,
        }
        if connection.execute(_SAVE[connection.dialect.name], values).rowcount == 0:
            self._supersede(connection, profile.content_hash, None)

    async def profile_body(self, content_hash: str) -> StoredProfile | None:
        parameters = {"of_hash": content_hash, "of_tenant": self._tenant}

        def query(connection: Connection) -> StoredProfile | None:
            row = connection.execute(_BODY, parameters).first()
            return None if row is None else StoredProfile(*row)

        return await self._database.read(query)
