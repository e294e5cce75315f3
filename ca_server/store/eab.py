"""External account keys, and accounts that are bound by them (RFC 8555 section 7.3.4).

What changes a key, what uses it and what is taken from its quota announces one lock (`eab_lock`).
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.domain.accounts import AccountRegistered, AccountRegistration, AccountStatus
from ca_server.domain.audit import AuditEvent
from ca_server.domain.bindings import EabKey
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme import account_by_thumbprint, insert_account, key_lock
from ca_server.store.acme_limits import draw, limit_locks
from ca_server.store.acme_tables import acme_accounts
from ca_server.store.audit import insert_events
from ca_server.store.database import Database
from ca_server.store.eab_quota import EabUsage, eab_lock, usage
from ca_server.store.eab_rows import COLUMNS, COPIED, POLICY, key_of, read_key, values_of
from ca_server.store.tables import eab_keys

_INSERT = insert(eab_keys).values({name: bindparam(name) for name in (*COPIED, *POLICY, "ciphertext")})
_SECRET = select(*COLUMNS, eab_keys.c.ciphertext).where(eab_keys.c.kid == bindparam("of_kid"))
_ALL = select(*COLUMNS).order_by(eab_keys.c.created_at.desc(), eab_keys.c.kid)
_OF_KID = update(eab_keys).where(eab_keys.c.kid == bindparam("of_kid"))
_CHANGED = ("owner", "expires_at", "max_uses", *POLICY)
# What was not counted while there was no quota is counted at the next certificate.
_CHANGE = _OF_KID.values({name: bindparam(f"new_{name}") for name in _CHANGED} | {"live_bound": None})
_DISABLE = _OF_KID.where(eab_keys.c.disabled_at.is_(None)).values(disabled_at=bindparam("now"))
_DISABLE_ACCOUNTS = _OF_KID.where(eab_keys.c.accounts_revoked_at.is_(None)).values(accounts_revoked_at=bindparam("now"))
_USE = _OF_KID.values(uses=eab_keys.c.uses + 1, last_used_at=bindparam("now"))
_VALID_ACCOUNTS = (
    select(acme_accounts.c.id)
    .where(acme_accounts.c.eab_kid == bindparam("of_kid"), acme_accounts.c.status == AccountStatus.VALID.value)
    .limit(bindparam("most"))
)
_REVOKE_ACCOUNTS = (
    update(acme_accounts)
    .where(
        acme_accounts.c.id.in_(bindparam("ids", expanding=True)), acme_accounts.c.status == AccountStatus.VALID.value
    )
    .values(status=AccountStatus.REVOKED.value)
)


class SqlEabStore:
    """`ca_server.core.ports.EabStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_eab(self, key: EabKey, ciphertext: bytes, events: Sequence[AuditEvent]) -> None:
        """Save a key with its encrypted HMAC secret. CONFLICT where the kid is taken."""
        parameters = values_of(key) | {"ciphertext": ciphertext}

        def unit(connection: Connection) -> None:
            try:
                connection.execute(_INSERT, parameters)
            except IntegrityError as error:
                raise CaError(ErrorKind.CONFLICT, "the external account key exists") from error
            insert_events(connection, events)

        await self._database.write(unit)

    async def eab(self, kid: str) -> tuple[EabKey, bytes] | None:
        def query(connection: Connection) -> tuple[EabKey, bytes] | None:
            row = connection.execute(_SECRET, {"of_kid": kid}).first()
            return None if row is None else (key_of(row), row.ciphertext)

        return await self._database.read(query)

    async def bound_key(self, kid: str) -> EabKey | None:
        return await self._database.glance(lambda connection: read_key(connection, kid), one_moment=False)

    async def eab_keys(self) -> tuple[EabKey, ...]:
        return await self._database.read(lambda connection: tuple(map(key_of, connection.execute(_ALL))))

    async def usage(self, kid: str, now: datetime) -> EabUsage:
        """What the accounts of a key have."""
        return await self._database.read(lambda connection: usage(connection, kid, now))

    async def update_eab(self, key: EabKey, events: Sequence[AuditEvent]) -> None:
        values = values_of(key)
        parameters = {"of_kid": key.kid} | {f"new_{name}": values[name] for name in _CHANGED}

        def unit(connection: Connection) -> None:
            if connection.execute(_CHANGE, parameters).rowcount == 0:
                raise CaError(ErrorKind.NOT_FOUND, "there is no such external account key")
            insert_events(connection, events)

        await self._database.write(unit, locks=(eab_lock(key.kid),))

    async def disable_eab(
        self, kid: str, now: datetime, events: Sequence[AuditEvent], *, and_accounts: bool = False
    ) -> bool:
        statements = (_DISABLE, _DISABLE_ACCOUNTS) if and_accounts else (_DISABLE,)

        def unit(connection: Connection) -> bool:
            changed = [connection.execute(each, {"of_kid": kid, "now": now}).rowcount for each in statements]
            if not any(changed):
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit, locks=(eab_lock(kid),))

    async def valid_accounts(self, kid: str, limit: int) -> tuple[str, ...]:
        parameters = {"of_kid": kid, "most": limit}
        return await self._database.read(
            lambda connection: tuple(connection.execute(_VALID_ACCOUNTS, parameters).scalars())
        )

    async def revoke_accounts(self, account_ids: Sequence[str], events: Sequence[AuditEvent]) -> int:
        def unit(connection: Connection) -> int:
            revoked = connection.execute(_REVOKE_ACCOUNTS, {"ids": list(account_ids)}).rowcount
            if revoked:
                insert_events(connection, events)
            return revoked

        return await self._database.write(unit)

    async def bind_account(
        self, registration: AccountRegistration, now: datetime, events: Sequence[AuditEvent]
    ) -> AccountRegistered:
        def unit(connection: Connection) -> AccountRegistered:
            return _bind(connection, registration, now, events)

        locks = (
            eab_lock(registration.binding.kid),
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
    # Under the key's lock: of two requests with a key for one use, the second finds it used.
    key = read_key(connection, registration.binding.kid)
    if key is None or not _lets_in(key, registration, now):
        raise CaError(ErrorKind.BAD_BINDING, "the external account binding can't be used")
    connection.execute(_USE, {"of_kid": key.kid, "now": now})
    draw(connection, registration.draws, now)
    insert_account(connection, account)
    insert_events(connection, events)
    return AccountRegistered(account, created=True)


def _lets_in(key: EabKey, registration: AccountRegistration, now: datetime) -> bool:
    return (
        key.tenant == registration.account.tenant
        and key.disabled_at is None
        and (key.expires_at is None or key.expires_at > now)
        and not key.is_used_up
        and registration.has_use_for(key.policy.profiles)
    )
