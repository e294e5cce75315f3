"""A migrated database, a key that signs in memory, and a sequencer over them."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_server.core.audit import EventFactory, Sequencer
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.backends import normalise_url
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.migrate import migrate

POSTGRESQL = os.environ.get("CA_SERVER_TEST_POSTGRESQL", "")
ORIGIN = "log.example.test/audit"


class MemoryKey:
    """A SigningKey without a token; `away` makes it fail."""

    def __init__(self, algorithm: KeyAlgorithm = KeyAlgorithm.P256) -> None:
        self.label = "log"
        self.algorithm = algorithm
        self._key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        if algorithm is KeyAlgorithm.ED25519:
            self._key = ed25519.Ed25519PrivateKey.generate()
        else:
            self._key = ec.generate_private_key(ec.SECP256R1())
        self.spki_der = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.away: Exception | None = None
        self.signed: list[bytes] = []

    async def sign(self, data: bytes) -> bytes:
        if self.away is not None:
            raise self.away
        self.signed.append(data)
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, ec.ECDSA(SHA256()))


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


async def _administer(statement: str) -> None:
    engine = create_async_engine(normalise_url(POSTGRESQL), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def _postgresql_url(database: str) -> str:
    return make_url(POSTGRESQL).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "template.db"
    _run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgresql_template() -> Iterator[str]:
    if not POSTGRESQL:
        pytest.skip("CA_SERVER_TEST_POSTGRESQL is not set")
    name = f"ca_audit_{uuid.uuid4().hex}"
    _run(_administer(f"CREATE DATABASE {name}"))
    _run(migrate(_postgresql_url(name)))
    yield name
    _run(_administer(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        path = tmp_path / "ca.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("postgresql_template")
    name = f"ca_audit_{uuid.uuid4().hex}"
    await _administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _postgresql_url(name)
    await _administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await Database.open(url)
    yield opened
    await opened.close()


@pytest.fixture
def store(database: Database) -> SqlAuditStore:
    return SqlAuditStore(database)


@pytest.fixture
def events() -> EventFactory:
    return EventFactory(node="node", process="core", software="test", configuration="0", instance="1")


@pytest.fixture
def key() -> MemoryKey:
    return MemoryKey()


@pytest.fixture
def new_key() -> Callable[[KeyAlgorithm], MemoryKey]:
    return MemoryKey


@pytest.fixture
def anchor(tmp_path: Path) -> FileAnchor:
    return FileAnchor(tmp_path / "anchor")


@pytest.fixture
def sequence(store: SqlAuditStore, database: Database, key: MemoryKey, anchor: FileAnchor) -> Callable[..., Sequencer]:
    """Makes sequencers over the same log; arguments override."""

    def make(**changes: Any) -> Sequencer:
        arguments: dict[str, Any] = {
            "store": store,
            "coordination": SqlCoordinationStore(database),
            "key": key,
            "anchor": anchor,
            "origin": ORIGIN,
            "holder": "node/1",
            "interval": 0.01,
            "lease_duration": timedelta(seconds=30),
            "clock": lambda: datetime.now(UTC),
        }
        return Sequencer(**(arguments | changes))

    return make
