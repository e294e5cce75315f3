"""The database is locked, slow, gone or hangs under a running server: errors that tell when to return, nothing lost.

Clients never give up (`crashlib.customers`): whatever is no problem document of type serverInternal with Retry-After
is a complaint, and at the end everything is reconciled as after a crash.
"""

import asyncio
import re
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from crashlib.siege import Siege
from databases import PostgresServer
from interoplib.enrollment import Surroundings
from interoplib.server import Server
from sqlalchemy import Connection, func, insert, select

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import database as database_module
from ca_server.store.backends import Backend, Work, open_backend
from ca_server.store.database import Database
from ca_server.store.tables import spki_blocklist

PATIENCE = 90.0
QUEUE_LIMIT = 64
CLIENTS = 6

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def besiege(
    ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]
) -> Callable[..., Siege]:
    """Makes a server of the test's own, with a short queue, and clients for it."""
    settings = (f"database.queue_limit={QUEUE_LIMIT}",)
    return lambda database="": Siege(
        ca_server_command, open_folder("dbfault"), surroundings, database=database, settings=settings, clients=CLIENTS
    )


@pytest.fixture
def postgresql_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own, which syncs to disk."""
    server = PostgresServer(durable=True)
    server.start()
    yield server
    server.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status, response.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8", "replace")


def metric(server: Server, name: str) -> float:
    found = re.findall(rf"(?m)^{name}(?:\{{[^}}]*\}})? (\S+)$", get(f"{server.http_url}/metrics")[1])
    assert found, f"no metric {name}"
    return sum(map(float, found))


def check_bounds(server: Server) -> None:
    """What waits is bounded: in each of the three processes by the queue's limit, at the door by who is there."""
    assert metric(server, "ca_server_db_waiting") <= 3 * QUEUE_LIMIT
    assert metric(server, "ca_server_http_in_flight") <= CLIENTS + 2
    assert metric(server, "ca_server_rpc_in_flight") <= 256


def check_told(server: Server) -> None:
    """Wait until /readyz tells that the database is away."""
    until(lambda: get(f"{server.http_url}/readyz")[0] == 503)
    assert get(f"{server.http_url}/livez")[0] == 200, "there is no reason to restart anything"


def conclude(siege: Siege, processes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """It all came back by itself, in the same processes, and nothing is lost or there twice."""
    until(siege.server.is_ready)
    siege.wait_for_certificates(5)
    assert siege.server.processes() == processes, "nothing was restarted"
    books = siege.close_the_books()
    with capsys.disabled():
        print(f"\n{siege.ledger.retries} retries: {books}")  # noqa: T201
    assert books.differences == []
    until(lambda: metric(siege.server, "ca_server_db_waiting") == 0)
    log = siege.server.log.read_text("utf-8", "replace").splitlines()
    assert [line[:4000] for line in log if "Traceback" in line] == []


# --- SQLite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longer", [False, True], ids=["shorter than its patience", "longer"])
def test_sqlite_locked_by_another_process(
    besiege: Callable[..., Siege], longer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with besiege() as siege:
        server = siege.server
        siege.open_shop()
        siege.wait_for_certificates(5)
        processes = server.processes()
        refused = metric(server, "ca_server_db_refused_total")
        other = sqlite3.connect(server.home / "data" / "ca.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        if longer:
            until(lambda: metric(server, "ca_server_db_refused_total") > refused)
            check_told(server)
            check_bounds(server)
            # Who only reads is served.
            assert get(f"{server.http_url}/crl/issuing.crl")[0] == 200
            assert get(f"{server.http_url}/issuer/issuing.cer")[0] == 200
        else:
            time.sleep(3)
            assert server.is_ready()
            check_bounds(server)
        other.execute("ROLLBACK")
        other.close()
        if not longer:
            siege.wait_for_certificates(5)
            assert metric(server, "ca_server_db_refused_total") == refused
        conclude(siege, processes, capsys)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[PostgresServer], None], Callable[[PostgresServer], None]]] = {
    "stopped": (lambda server: server.stop(), lambda server: server.start()),
    "crashed": (lambda server: server.stop(signal.SIGQUIT), lambda server: server.start()),
    "killed": (lambda server: server.kill(), lambda server: server.start()),
    "hanging": (lambda server: server.pause(), lambda server: server.go_on()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_postgresql_goes_and_comes_back(
    besiege: Callable[..., Siege], postgresql_server: PostgresServer, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    go, come_back = FAULTS[fault]
    with besiege(postgresql_server.url()) as siege:
        server = siege.server
        siege.open_shop()
        siege.wait_for_certificates(5)
        processes = server.processes()
        go(postgresql_server)
        try:
            check_told(server)
            check_bounds(server)
            # The directory needs no database, and says where to come back to.
            assert siege.directory()["newOrder"]
        finally:
            come_back(postgresql_server)
        conclude(siege, processes, capsys)


def test_failover_under_load(
    besiege: Callable[..., Siege], postgresql_server: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server is stopped and another started on the same data and port, again and again: nobody need notice."""
    with besiege(postgresql_server.url()) as siege:
        siege.open_shop()
        processes = siege.server.processes()
        for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGINT):
            siege.wait_for_certificates(5)
            postgresql_server.stop(how)
            postgresql_server.start()
        conclude(siege, processes, capsys)


# --- Slow ---------------------------------------------------------------------------------------------------------


class SlowBackend:
    """Takes ten times as long for everything."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.dialect = backend.dialect
        self.transactions = 0

    async def _slowly(self, work: Any) -> Any:
        began = time.perf_counter()
        try:
            return await work
        finally:
            await asyncio.sleep(9 * (time.perf_counter() - began))

    async def write(self, work: Work[Any]) -> Any:
        self.transactions += 1
        return await self._slowly(self._backend.write(work))

    async def read(self, query: Work[Any]) -> Any:
        return await self._slowly(self._backend.read(query))

    async def drop_writer(self) -> None:
        await self._backend.drop_writer()

    async def close(self) -> None:
        await self._backend.close()


async def test_a_slow_database_makes_larger_batches_and_a_full_queue_refuses(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SlowBackend] = []

    async def slow(*arguments: Any, **named: Any) -> SlowBackend:
        made.append(SlowBackend(await open_backend(*arguments, **named)))
        return made[-1]

    monkeypatch.setattr(database_module, "open_backend", slow)
    seen: list[tuple[str, int]] = []
    opened = await Database.open(
        url, queue_limit=QUEUE_LIMIT, observe=lambda name, _seconds, count: seen.append((name, count))
    )

    def unit(number: int) -> Callable[[Connection], None]:
        values = {"spki_sha256": number.to_bytes(4, "big"), "reason": "slow", "added_at": datetime.now(UTC)}
        return lambda connection: connection.execute(insert(spki_blocklist), values) and None

    answers = await asyncio.gather(*(opened.write(unit(n)) for n in range(2 * QUEUE_LIMIT)), return_exceptions=True)
    refused = [answer for answer in answers if answer is not None]
    assert all(
        isinstance(each, CaError) and each.kind is ErrorKind.UNAVAILABLE and each.retry_after for each in refused
    )
    assert len(refused) == QUEUE_LIMIT
    assert max(count for name, count in seen if name == "waiting") <= QUEUE_LIMIT
    assert ("refused", 1) in seen
    assert made[0].transactions <= 2, "what waits together is committed together"
    count = await opened.read(
        lambda connection: connection.execute(select(func.count()).select_from(spki_blocklist)).scalar()
    )
    assert count == QUEUE_LIMIT
    await opened.close()
