"""A log over HTTP, in a database of each kind."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from victims import Victim, make_victim

from ca_server.domain.audit import EventType
from ca_server.store.database import Database
from ca_server.web.application import create_application
from ca_server.web.options import LOOPBACK, Network, WebOptions
from protocols.log.views import LogFrontEnd


@dataclass
class Log:
    """A CA's log and a client of it."""

    victim: Victim
    client: TestClient

    async def grow(self, size: int) -> None:
        """Seal events until the tree has that many leaves, under one more checkpoint."""
        latest = await self.victim.store.latest_checkpoint()
        assert latest is not None
        make = self.victim.events[0].make
        more = size - latest[0].size
        await self.victim.store.append([make(EventType.ORDER_CREATED, object=f"o{number}") for number in range(more)])
        assert await self.victim.sequencer().run_once() == more

    async def served_to(self, networks: tuple[Network, ...]) -> TestClient:
        front = LogFrontEnd(self.victim.store, networks)
        return TestClient(TestServer(create_application("http", WebOptions(), [front.register])))

    async def get(self, path: str, expect: int = 200) -> bytes:
        async with self.client.get(f"/log/{path}") as answer:
            assert answer.status == expect, (path, answer.status)
            return await answer.read()


@pytest.fixture
async def log(url: str, tmp_path: Path) -> AsyncIterator[Log]:
    database = await Database.open(url)
    victim = await make_victim(database, tmp_path)
    opened = Log(victim, None)  # type: ignore[arg-type]
    async with await opened.served_to(LOOPBACK) as client:
        yield replace(opened, client=client)
    await database.close()
