"""External account keys, and accounts that are bound by them (RFC 8555 section 7.3.4)."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.domain.accounts import AccountRegistered, AccountRegistration, EabKey
from ca_server.domain.audit import AuditEvent
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme import account_by_thumbprint, insert_account, key_lock
from ca_server.store.acme_limits import draw, limit_locks
from ca_server.store.audit import insert_events
from ca_server.store.database import Database
from ca_server.store.tables import eab_keys
from ca_server.store.types import AnyRow

_FIELDS = (
    "kid",
    "created_at",
    "expires_at",
    "reusable",
    "disabled_at",
    "profile",
    "owner",
    "uses",
    "last_used_at",
    "tenant",
)
_INSERT = insert(eab_keys).values({name: bindparam(name) for name in (*_FIELDS, "ciphertext")})
_SELECT = select(*(eab_keys.c[name] for name in _FIELDS), eab_keys.c.ciphertext)
_BY_KID = _SELECT.where(eab_keys.c.kid == bindparam("of_kid"))
_ALL = _SELECT.order_by(eab_keys.c.created_at.desc(), eab_keys.c.kid)
_DISABLE = (
    update(eab_keys)
    .where(eab_keys.c.kid == bindparam("of_kid"), eab_keys.c.disabled_at.is_(None))
    .values(disabled_at=bindparam("now"))
)
# All conditions in the one statement: of two requests with a key for one use, one finds no row.
_USE = (
    update(eab_keys)
    .where(
        eab_keys.c.kid == bindparam("of_kid"),
        eab_keys.c.tenant == bindparam("of_tenant"),
        eab_keys.c.disabled_at.is_(None),
        or_(eab_keys.c.expires_at.is_(None), eab_keys.c.expires_at > bindparam("now")),
        or_(eab_keys.c.reusable, eab_keys.c.uses == 0),
        or_(eab_keys.c.profile.is_(None), eab_keys.c.profile == bindparam("for_profile")),
    )
    .values(uses=eab_keys.c.uses + 1, last_used_at=bindparam("now"))
)


class SqlEabStore:
    """`ca_server.core.ports.EabStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_eab(self, key: EabKey, ciphertext: bytes, events: Sequence[AuditEvent]) -> None:
        """Save a key with its encrypted HMAC secret. CONFLICT where the kid is taken."""
        parameters = {name: getattr(key, name) for name in _FIELDS} | {"ciphertext": ciphertext}

        def unit(connection: Connection) -> None:
            try:
                connection.execute(_INSERT, parameters)
            except IntegrityError as error:
                raise CaError(ErrorKind.CONFLICT, "the external account key exists") from error
            insert_events(connection, events)

        await self._database.write(unit)

    async def eab(self, kid: str) -> tuple[EabKey, bytes] | None:
        def query(connection: Connection) -> tuple[EabKey, bytes] | None:
            row = connection.execute(_BY_KID, {"of_kid": kid}).first()
            return None if row is None else (_key_of(row), row.ciphertext)

        return await self._database.read(query)

    async def eab_keys(self) -> tuple[EabKey, ...]:
        return await self._database.read(lambda connection: tuple(map(_key_of, connection.execute(_ALL))))

    async def disable_eab(self, kid: str, now: datetime, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if connection.execute(_DISABLE, {"of_kid": kid, "now": now}).rowcount == 0:
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit)

    async def bind_account(
        self, registration: AccountRegistration, now: datetime, events: Sequence[AuditEvent]
    ) -> AccountRegistered:
        def unit(connection: Connection) -> AccountRegistered:
            return _bind(connection, registration, now, events)

        locks = (
            f"eab:{registration.binding.kid}",
            key_lock(registration.account),
            *limit_locks(registration.draws),
        )
        return await self._database.write(unit, locks=locks)


def _bind(
    connection: Connection, registration: AccountRegistration, now: datetime, events: Sequence[AuditEvent]
) -> AccountRegistered:
    account = registration.account
    standing = account_by_thumbprint(connection, account.tenant, account.key_thumbprint)
    if standing is not None:
        return AccountRegistered(standing, created=False)
    parameters = {
        "of_kid": registration.binding.kid,
        "of_tenant": account.tenant,
        "for_profile": registration.profile,
        "now": now,
    }
    if connection.execute(_USE, parameters).rowcount == 0:
        raise CaError(ErrorKind.BAD_BINDING, "the external account binding can't be used")
    draw(connection, registration.draws, now)
    insert_account(connection, account)
    insert_events(connection, events)
    return AccountRegistered(account, created=True)


def _key_of(row: AnyRow) -> EabKey:
    return EabKey(**{name: row._mapping[name] for name in _FIELDS})  # noqa: SLF001 - public despite its name
