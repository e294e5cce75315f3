"""Fills a home's SQLite database with certificates: what one real issuance left, copied with new identities."""

import sqlite3
from pathlib import Path

# The key of copy n: unlike the key of n + 1 in every digit, as random identities are, so that indexes grow as they do.
_KEY = "printf('%08x%08x', (n * 2654435761) % 4294967296, n)"

# By table: how to find the row to copy, and what differs from it in copy n. `{first}` is the copied row's own id.
_PLAN = (
    (
        "enrollments",
        "protocol = 'acme'",
        {"id": "{first} + n", "transaction_key": f"'order-' || {_KEY}", "csr_sha256": "randomblob(32)"},
    ),
    (
        "intents",
        "enrollment_id IN (SELECT id FROM enrollments WHERE protocol = 'acme')",
        {
            "id": f"'intent-' || {_KEY}",
            "enrollment_id": "(SELECT max(id) FROM enrollments) - {count} + n",
            "serial": f"{_KEY} || 'aaaaaaaaaaaaaaaaaaaaaaaa'",
            "tbs_sha256": "randomblob(32)",
        },
    ),
    (
        "certificates",
        "requester_protocol = 'acme'",
        {
            "id": "{first} + n",
            "enrollment_id": "(SELECT max(id) FROM enrollments) - {count} + n",
            "serial": f"{_KEY} || 'aaaaaaaaaaaaaaaaaaaaaaaa'",
            "spki_sha256": "randomblob(32)",
            "transaction_key": f"'order-' || {_KEY}",
        },
    ),
    (
        "certificate_names",
        "certificate_id IN (SELECT id FROM certificates WHERE requester_protocol = 'acme')",
        {
            "certificate_id": "(SELECT max(id) FROM certificates) - {count} + n",
            "value": f"{_KEY} || '.bench.test'",
            "reversed": f"'tset.hcneb.' || {_KEY}",
        },
    ),
    ("acme_orders", "1", {"number": "{first} + n", "id": f"'order-' || {_KEY}", "status": "'valid'"}),
    ("acme_authorizations", "1", {"id": f"'authz-' || {_KEY}", "value": f"{_KEY} || '.bench.test'"}),
    ("acme_order_links", "1", {"order_id": f"'order-' || {_KEY}", "authorization_id": f"'authz-' || {_KEY}"}),
    (
        "acme_challenges",
        "status = 'valid'",
        {"id": f"'chall-' || {_KEY}", "authorization_id": f"'authz-' || {_KEY}", "token": f"'token-' || {_KEY}"},
    ),
    (
        "audit_events",
        "type = 'issuance.stored' AND actor LIKE 'acme:%'",
        {
            "id": f"substr(id, 1, 4) || {_KEY}",
            "process": "'generated/core/1'",
            "sequence": "n",
            "serial": f"{_KEY} || 'aaaaaaaaaaaaaaaaaaaaaaaa'",
            "object": f"'enrollment:order-' || {_KEY}",
            "request_id": _KEY,
        },
    ),
)


def fill(home: Path, count: int) -> None:
    """Copy an ACME issuance `count` times. The server must not run; the copies are no part of the audit tree."""
    database = sqlite3.connect(home / "data" / "ca.db", isolation_level=None)
    try:
        for pragma in ("synchronous = OFF", "cache_size = -400000", "foreign_keys = OFF", "temp_store = MEMORY"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN IMMEDIATE")
        for table, where, changes in _PLAN:
            _copy(database, table, where, changes, count)
        generated = "SELECT id FROM audit_events WHERE process = 'generated/core/1'"
        database.execute(f"DELETE FROM audit_pending WHERE event_id IN ({generated})")
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()


def _copy(database: sqlite3.Connection, table: str, where: str, changes: dict[str, str], count: int) -> None:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    first = database.execute(f"SELECT max({columns[0]}) FROM {table}").fetchone()[0]
    values = [changes[name].format(first=first, count=count) if name in changes else name for name in columns]
    database.execute(f"CREATE TEMP TABLE model_{table} AS SELECT * FROM {table} WHERE {where} LIMIT 1")
    database.execute(
        f"WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count}) "
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM series, model_{table}"
    )
