"""External account keys as rows: how they are read, for every store that asks what an account is bound to."""

from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from ca_server.domain.bindings import EabKey, EabPolicy
from ca_server.store.statements import Prepared
from ca_server.store.tables import eab_keys

COPIED: Final = (
    "kid",
    "created_at",
    "expires_at",
    "reusable",
    "disabled_at",
    "owner",
    "uses",
    "last_used_at",
    "tenant",
    "max_uses",
    "accounts_revoked_at",
    "arrival",
    "live_bound",
)
"""Columns named and typed as the fields of EabKey."""
POLICY: Final = ("profile", "names", "live", "rate")
COLUMNS: Final = tuple(eab_keys.c[name] for name in (*COPIED, *POLICY))
"""What `key_of` reads: all but the secret."""

_BY_KID = Prepared(select(*COLUMNS).where(eab_keys.c.kid == bindparam("of_kid")))


def read_key(connection: Connection, kid: str) -> EabKey | None:
    """A key by its id."""
    row = _BY_KID.execute(connection, {"of_kid": kid}).first()
    return None if row is None else key_of(row)


def key_of(row: Any) -> EabKey:
    """Make the value of a row of COLUMNS."""
    policy = EabPolicy(_split(row.profile), _split(row.names), row.live, row.rate or "")
    return EabKey(**{name: getattr(row, name) for name in COPIED}, policy=policy)


def values_of(key: EabKey) -> dict[str, Any]:
    """The values of COLUMNS."""
    policy = key.policy
    return {name: getattr(key, name) for name in COPIED} | {
        "profile": ",".join(policy.profiles) or None,
        "names": ",".join(policy.names) or None,
        "live": policy.live,
        "rate": policy.rate or None,
    }


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
