"""Measure the store: transactions one by one and in groups, for SQLite and for any URL that is given.

    python scripts/bench/store.py [postgresql://... | sqlite+aiosqlite:///... ] ...

`row` is one insert of 100 bytes; `issue` is reserve and complete with one audit event each. Columns are units per
second: one caller that waits for each commit, and groups of callers that wait at the same moment.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, bindparam, insert

from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, Issuer, IssuerKey, IssuerKind
from ca_server.domain.enrollment import EnrollmentKey, Fence, IssuanceIntent, Protocol
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.migrate import migrate
from ca_server.store.tables import spki_blocklist

GROUPS = (1, 16, 64, 256)
_ROW = insert(spki_blocklist).values(
    spki_sha256=bindparam("spki_sha256"), reason=bindparam("reason"), added_at=bindparam("added_at")
)


def unique(name: str) -> str:
    return hashlib.sha256(name.encode() + os.urandom(16)).hexdigest()


def event(kind: EventType, serial: str) -> AuditEvent:
    return AuditEvent(
        id=unique("event"),
        type=kind,
        outcome=Outcome.SUCCESS,
        time=datetime.now(UTC),
        node="bench",
        process="bench/core/1",
        sequence=time.perf_counter_ns(),
        software="bench",
        configuration="bench",
        actor="acme-account:bench",
        serial=serial,
        names=("dns:a.example.test",),
    )


async def row(database: Database) -> None:
    values = {"spki_sha256": os.urandom(32), "reason": "x" * 68, "added_at": datetime.now(UTC)}

    def unit(connection: Connection) -> None:
        connection.execute(_ROW, values)

    await database.write(unit)


async def issue(store: SqlIssuanceStore, fence: Fence, issuer: Issuer) -> None:
    now = datetime.now(UTC)
    serial = unique("serial")[:40]
    key = EnrollmentKey(Protocol.ACME, "default", "bench", unique("order"))
    intent = IssuanceIntent(
        unique("intent"), key, issuer.name, issuer.key.id, serial, os.urandom(32), "default", "hash", fence, now
    )
    record = CertificateRecord(
        serial=serial,
        issuer=issuer.name,
        issuer_key_id=issuer.key.id,
        certificate_der=os.urandom(800),
        profile="default",
        profile_hash="hash",
        subject="CN=a.example.test",
        names=("dns:a.example.test", "dns:b.example.test"),
        spki_sha256=os.urandom(32),
        not_before=now,
        not_after=now + timedelta(days=90),
        issued_at=now,
        requester_protocol="acme",
        requester_id="bench",
        transaction_key=key.transaction_key,
    )
    await store.reserve(intent, os.urandom(32), [event(EventType.ISSUANCE_RESERVED, serial)])
    await store.complete(intent.id, fence, record, [event(EventType.ISSUANCE_STORED, serial)])


async def rate(work: Callable[[], Awaitable[None]], group: int, seconds: float) -> float:
    """Units per second with `group` callers at once."""

    async def caller(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            await work()
            done += 1
        return done

    began = time.perf_counter()
    total = sum(await asyncio.gather(*(caller(began + seconds) for _ in range(group))))
    return total / (time.perf_counter() - began)


async def measure(url: str, seconds: float) -> None:
    await migrate(url)
    database = await Database.open(url)
    fence = await SqlCoordinationStore(database).begin_boot("bench", "home", datetime.now(UTC), timedelta(hours=1))
    name = unique("issuer")
    der = b"\x30\x10" + os.urandom(16)
    key = IssuerKey(0, name, 1, name, KeyAlgorithm.P256, der, der, ())
    issuer = await SqlIssuerStore(database).create_issuer(Issuer(name, IssuerKind.ISSUING, key), None, [])
    store = SqlIssuanceStore(database)
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "row": lambda: row(database),
        "issue": lambda: issue(store, fence, issuer),
    }
    scheme = url.split(":", maxsplit=1)[0]
    for label, work in works.items():
        rates = [await rate(work, group, seconds) for group in GROUPS]
        print(f"{scheme:18} {label:6}" + "".join(f"{value:10,.0f}" for value in rates))
    await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="*", help="databases to measure besides SQLite; they are written to")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each figure")
    arguments = parser.parse_args()
    print(f"{'database':18} {'unit':6}" + "".join(f"{f'x{group}':>10}" for group in GROUPS))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        for url in [f"sqlite:///{directory}/bench.db", *arguments.urls]:
            asyncio.run(measure(url, arguments.seconds))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
