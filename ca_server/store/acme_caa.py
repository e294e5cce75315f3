"""CAA records that were looked up, inside a transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zlib import crc32

import msgspec
from sqlalchemy import Connection, bindparam, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.store.acme_tables import acme_caa
from ca_server.store.rows import PreparedRows, values_of_rows
from ca_server.store.statements import ByDialect, insert_dialect
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.caa.records import CaaRecord

_COLUMNS = ("tenant", "name", "checked_at", "authenticated", "found_at", "records")
_LOCKS = 64
_FIND = select(acme_caa).where(
    acme_caa.c.tenant == bindparam("of_tenant"),
    acme_caa.c.name.in_(bindparam("names", expanding=True)),
    acme_caa.c.checked_at >= bindparam("since"),
)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(tuple[CaaRecord, ...])


def _save(count: int) -> ByDialect:
    made: ByDialect = {}
    for insert in (sqlite.insert(acme_caa), postgresql.insert(acme_caa)):
        statement = insert.values(values_of_rows(acme_caa, _COLUMNS, count))
        replaced = {name: statement.excluded[name] for name in _COLUMNS[2:]}
        made[insert_dialect(insert)] = statement.on_conflict_do_update(index_elements=["tenant", "name"], set_=replaced)
    return made


_SAVE = PreparedRows(_save)


def caa_locks(lookups: Sequence[CaaLookup]) -> set[str]:
    """Names of the locks to hold around `save_caa`, a bounded number of them whatever the number of names."""
    return {f"acme-caa:{crc32(each.name.encode()) % _LOCKS}" for each in lookups}


def caa_lookups(connection: Connection, tenant: str, names: Sequence[str], since: datetime) -> dict[str, CaaLookup]:
    """What was looked up since then, by name."""
    rows = connection.execute(_FIND, {"of_tenant": tenant, "names": list(names), "since": since})
    return {
        row.name: CaaLookup(row.name, row.checked_at, row.found_at, _decoder.decode(row.records), row.authenticated)
        for row in rows
    }


def save_caa(connection: Connection, tenant: str, lookups: Sequence[CaaLookup]) -> None:
    """Keep lookups of different names, each in place of an earlier one."""
    rows: list[dict[str, Any]] = [
        {
            "tenant": tenant,
            "name": each.name,
            "checked_at": each.checked_at,
            "authenticated": each.authenticated,
            "found_at": each.found_at,
            "records": _encoder.encode(each.records),
        }
        for each in lookups
    ]
    _SAVE.execute(connection, rows)


def prune_caa(connection: Connection, before: datetime, limit: int) -> int:
    """Forget lookups that were made before; what another process changes just now is left to it."""
    key = tuple_(acme_caa.c.tenant, acme_caa.c.name)
    past = select(acme_caa.c.tenant, acme_caa.c.name).where(acme_caa.c.checked_at < before).limit(limit)
    found = past.with_for_update(skip_locked=True)
    return connection.execute(delete(acme_caa).where(key.in_(found))).rowcount
