"""A migrated database, a key that signs in memory, and a sequencer over them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.audit import EventFactory, Sequencer
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database

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
