"""Databases to test on: SQLite always, PostgreSQL where CA_SERVER_TEST_POSTGRESQL names a server by URL."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, Issuer, IssuerKey, IssuerKind
from ca_server.domain.enrollment import EnrollmentKey, Fence, IssuanceIntent, Protocol
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.backends import normalise_url
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.migrate import migrate

NOW = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
POSTGRESQL = os.environ.get("CA_SERVER_TEST_POSTGRESQL", "")


def der(content: bytes) -> bytes:
    """A DER SEQUENCE of anything."""
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


@dataclass
class World:
    """A migrated database with a booted node, a root and an issuing CA, and makers of what goes in."""

    database: Database
    fence: Fence
    root: Issuer
    issuing: Issuer
    now: datetime = NOW
    count: int = field(default=0)

    def next(self) -> int:
        self.count += 1
        return self.count

    def key(self, transaction: str = "order-1", **changes: object) -> EnrollmentKey:
        return replace(EnrollmentKey(Protocol.ACME, "default", "account-1", transaction), **changes)

    def intent(self, transaction: str = "order-1", **changes: object) -> IssuanceIntent:
        number = self.next()
        intent = IssuanceIntent(
            id=f"intent-{number}",
            enrollment=self.key(transaction),
            issuer="issuing",
            issuer_key_id=self.issuing.key.id,
            serial=f"{0xA000 + number:06x}",
            tbs_sha256=bytes([number % 256]) * 32,
            profile="default",
            profile_hash="hash",
            fence=self.fence,
            reserved_at=self.now,
        )
        return replace(intent, **changes)

    def record(self, intent: IssuanceIntent, **changes: object) -> CertificateRecord:
        record = CertificateRecord(
            serial=intent.serial,
            issuer=intent.issuer,
            issuer_key_id=intent.issuer_key_id,
            certificate_der=der(intent.serial.encode()),
            profile=intent.profile,
            profile_hash=intent.profile_hash,
            subject="CN=a.example.test",
            names=("dns:a.example.test", "ip:2001:db8::1"),
            spki_sha256=b"k" * 32,
            not_before=self.now - timedelta(hours=1),
            not_after=self.now + timedelta(days=90),
            issued_at=self.now,
            requester_protocol="acme",
            requester_id="account-1",
            transaction_key=intent.enrollment.transaction_key,
        )
        return replace(record, **changes)

    def event(self, kind: EventType = EventType.ISSUANCE_RESERVED) -> AuditEvent:
        number = self.next()
        return AuditEvent(
            id=f"event-{number:06}",
            type=kind,
            outcome=Outcome.SUCCESS,
            time=self.now,
            node="node",
            process="node/core/1",
            sequence=number,
            software="test",
            configuration="test",
        )

    async def issue(self, transaction: str, **changes: object) -> CertificateRecord:
        """Reserve and complete a certificate."""
        store = SqlIssuanceStore(self.database)
        intent = self.intent(transaction)
        record = self.record(intent, **changes)
        await store.reserve(intent, b"c" * 32, [])
        await store.complete(intent.id, intent.fence, record, [])
        return record


def issuer(name: str, kind: IssuerKind, parent: str | None = None, chain: tuple[bytes, ...] = ()) -> Issuer:
    key = IssuerKey(
        id=0,
        issuer=name,
        generation=1,
        label=f"{name}-1",
        algorithm=KeyAlgorithm.P256,
        spki_der=der(b"spki " + name.encode()),
        certificate_der=der(b"ca " + name.encode()),
        chain=chain,
    )
    return Issuer(name, kind, key, parent)


async def _administer(statement: str) -> None:
    engine = create_async_engine(normalise_url(POSTGRESQL), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end on another thread: the fixtures of a session are made while a test's event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "template.db"
    _run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgresql_template() -> Iterator[str]:
    if not POSTGRESQL:
        pytest.skip("CA_SERVER_TEST_POSTGRESQL is not set")
    name = f"ca_test_{uuid.uuid4().hex}"
    _run(_administer(f"CREATE DATABASE {name}"))
    _run(migrate(_postgresql_url(name)))
    yield name
    _run(_administer(f"DROP DATABASE {name} WITH (FORCE)"))


def _postgresql_url(database: str) -> str:
    return make_url(POSTGRESQL).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A fresh database with the newest schema."""
    if request.param == "sqlite":
        path = tmp_path / "ca.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("postgresql_template")
    name = f"ca_test_{uuid.uuid4().hex}"
    await _administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _postgresql_url(name)
    await _administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await Database.open(url)
    yield opened
    await opened.close()


@pytest.fixture
async def world(database: Database) -> World:
    fence = await SqlCoordinationStore(database).begin_boot("node", NOW, timedelta(seconds=30))
    store = SqlIssuerStore(database)
    root = await store.create_issuer(issuer("root", IssuerKind.ROOT), None, [])
    below = issuer("issuing", IssuerKind.ISSUING, "root", (root.key.certificate_der,))
    issuing = await store.create_issuer(below, None, [])
    return World(database, fence, root, issuing)
