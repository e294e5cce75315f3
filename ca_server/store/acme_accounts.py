"""ACME accounts and nonces, inside a transaction."""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme_orders import IS_ITS_KEY, KEY_BLOCKED, fail_orders
from ca_server.store.acme_star import cancel_orders
from ca_server.store.acme_tables import (
    acme_accounts,
    acme_authorizations,
    acme_former_keys,
    acme_nonces,
    acme_orders,
)
from ca_server.store.claims import OnceTable
from ca_server.store.statements import Prepared, insert_or_ignore
from ca_server.store.tables import spki_blocklist
from ca_server.store.types import AnyRow
from protocols.acme.model import AuthorizationStatus, sources_of
from protocols.acme.ports import KeyHolder, NonceReplayedError

USED_NONCES = OnceTable(acme_nonces, acme_nonces.c.nonce, acme_nonces.c.expires_at, NonceReplayedError)

_REMEMBER = Prepared(insert_or_ignore(acme_former_keys, ("account_id", "key_thumbprint")))
SELECT_ACCOUNTS = select(acme_accounts, KEY_BLOCKED).outerjoin(spki_blocklist, IS_ITS_KEY)
"""What `account_of` takes: with the account, at no look more, whether its key is blocked by now."""
_BY_ID = Prepared(SELECT_ACCOUNTS.where(acme_accounts.c.id == bindparam("account_id")))
_BY_THUMBPRINT = SELECT_ACCOUNTS.where(
    acme_accounts.c.tenant == bindparam("of_tenant"), acme_accounts.c.key_thumbprint == bindparam("thumbprint")
)


def account_lock(account_id: str) -> str:
    """Name of the lock under which an account's records change: two processes never do it at once."""
    return f"acme-account:{account_id}"


def key_lock(account: Account) -> str:
    """Name of the lock under which an account's key gets its account."""
    return f"acme-key:{account.tenant}:{account.key_thumbprint}"


def prune_nonces(connection: Connection, before: datetime, limit: int) -> int:
    """Forget nonces that are too old to be accepted anyway; what another process forgets just now is left to it."""
    old = select(acme_nonces.c.nonce).where(acme_nonces.c.expires_at < before).limit(limit)
    found = old.with_for_update(skip_locked=True)
    return connection.execute(delete(acme_nonces).where(acme_nonces.c.nonce.in_(found))).rowcount


def account_of(row: AnyRow) -> Account:
    """Make the value of a row."""
    return Account(
        id=row.id,
        key_thumbprint=row.key_thumbprint,
        jwk=row.jwk,
        status=AccountStatus(row.status),
        created_at=row.created_at,
        contacts=tuple(json.loads(row.contacts)),
        terms_agreed_at=row.terms_agreed_at,
        terms_of_service=row.terms_of_service,
        eab_kid=row.eab_kid,
        eab_binding=row.eab_binding,
        tenant=row.tenant,
        spki_sha256=row.spki_sha256,
        key_blocked=row.key_blocked,
    )


def insert_account(connection: Connection, account: Account) -> None:
    """Insert an account. IntegrityError where its key has one."""
    connection.execute(
        insert(acme_accounts),
        {
            "id": account.id,
            "tenant": account.tenant,
            "key_thumbprint": account.key_thumbprint,
            "status": account.status.value,
            "created_at": account.created_at,
            "terms_agreed_at": account.terms_agreed_at,
            "terms_of_service": account.terms_of_service,
            "eab_kid": account.eab_kid,
            "contacts": json.dumps(account.contacts),
            "jwk": account.jwk,
            "eab_binding": account.eab_binding,
            "spki_sha256": account.spki_sha256,
        },
    )


def account_by_thumbprint(connection: Connection, tenant: str, thumbprint: str) -> Account | None:
    """An account by its key."""
    row = connection.execute(_BY_THUMBPRINT, {"of_tenant": tenant, "thumbprint": thumbprint}).first()
    return None if row is None else account_of(row)


def account_by_id(connection: Connection, account_id: str) -> Account | None:
    """An account by id."""
    row = _BY_ID.execute(connection, {"account_id": account_id}).first()
    return None if row is None else account_of(row)


def change_account(connection: Connection, account_id: str, values: dict[str, Any], *conditions: Any) -> Account:
    """Change a valid account that meets the conditions, and return it. UNAUTHENTICATED where it does not (any more)."""
    if values:
        done = connection.execute(
            update(acme_accounts)
            .where(acme_accounts.c.id == account_id, acme_accounts.c.status == AccountStatus.VALID.value, *conditions)
            .values(**values)
        )
        if done.rowcount != 1:
            raise CaError(ErrorKind.UNAUTHENTICATED, "the account was deactivated, or got another key")
    account = account_by_id(connection, account_id)
    if account is None:
        raise CaError(ErrorKind.NOT_FOUND, "there is no such account")
    return account


def change_account_key(connection: Connection, account: Account, new: Account) -> KeyHolder:
    """Replace the key that `account` has by that of `new`; or return who has that. UNAUTHENTICATED as above."""
    standing = account_by_thumbprint(connection, account.tenant, new.key_thumbprint)
    if standing is not None:
        return KeyHolder(standing, changed=False)
    # Of two changes that one old key signed, the second finds another key.
    is_old = acme_accounts.c.key_thumbprint == account.key_thumbprint
    values = {"key_thumbprint": new.key_thumbprint, "jwk": new.jwk, "spki_sha256": new.spki_sha256}
    changed = change_account(connection, account.id, values, is_old)
    _REMEMBER.execute(connection, {"account_id": account.id, "key_thumbprint": account.key_thumbprint})
    return KeyHolder(changed, changed=True)


def former_thumbprints(connection: Connection, account_id: str) -> tuple[str, ...]:
    """Thumbprints of the keys that an account had before."""
    query = select(acme_former_keys.c.key_thumbprint).where(acme_former_keys.c.account_id == account_id)
    return tuple(connection.execute(query).scalars())


def close_account(connection: Connection, account_id: str, error: bytes, tenant: str) -> Account:
    """Deactivate an account with its authorizations (RFC 8555 section 7.3.6); what it has not got yet it never gets."""
    account = change_account(connection, account_id, {"status": AccountStatus.DEACTIVATED.value})
    connection.execute(
        update(acme_authorizations)
        .where(
            acme_authorizations.c.account_id == account_id,
            acme_authorizations.c.status.in_(sources_of(AuthorizationStatus.DEACTIVATED)),
        )
        .values(status=AuthorizationStatus.DEACTIVATED.value)
    )
    own_orders = acme_orders.c.account_id == account_id
    fail_orders(connection, own_orders, error, tenant)
    cancel_orders(connection, own_orders, tenant)
    return account
