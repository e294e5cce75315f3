"""Group commit: one transaction for many units, each with its own verdict."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Transaction, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.store import database as database_module
from ca_server.store.backends import normalise_url
from ca_server.store.database import Along, Bulk, Database
from ca_server.store.failures import Failure, classify

pytestmark = pytest.mark.alters_schema


@pytest.fixture
async def table(database: Database) -> Database:
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    return database


def insert(key: str) -> Callable[[Connection], str]:
    def unit(connection: Connection) -> str:
        connection.execute(text("INSERT INTO t VALUES (:key)"), {"key": key})
        return key

    return unit


def keys(connection: Connection) -> list[str]:
    return sorted(connection.execute(text("SELECT k FROM t")).scalars())


def failure_of(code: int) -> OperationalError:
    original = sqlite3.OperationalError("as the driver raises it")
    original.sqlite_errorcode = code
    return OperationalError("statement", {}, original)


async def test_units_that_wait_together_share_one_transaction(url: str) -> None:
    seen: list[tuple[str, int]] = []
    database = await Database.open(url, observe=lambda name, _seconds, count: seen.append((name, count)))
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    results = await asyncio.gather(*(database.write(insert(f"{n:02}")) for n in range(50)))
    await database.close()
    assert results == [f"{n:02}" for n in range(50)]
    assert [count for name, count in seen if name == "write"] == [1, 50]


async def test_an_error_fails_its_unit_alone_and_undoes_all_of_it(table: Database) -> None:
    def half(connection: Connection) -> None:
        insert("half")(connection)
        raise LookupError("on purpose")

    units: list[Callable[[Connection], Any]] = [insert("a"), half, insert("b"), insert("b"), insert("c")]
    results = await asyncio.gather(*map(table.write, units), return_exceptions=True)
    assert results[0] == "a"
    assert isinstance(results[1], LookupError)
    assert results[2] == "b"
    assert isinstance(results[3], IntegrityError)
    assert results[4] == "c"
    assert await table.read(keys) == ["a", "b", "c"]


def bulk_of(ran: list[list[str]], begin: str) -> Bulk[str, str]:
    """Inserts keys under what they begin with, and falls over one that is there or is `bad`."""

    def run(connection: Connection, given: Sequence[str]) -> list[str]:
        ran.append(list(given))
        for key in given:
            insert(begin + key)(connection)
        if "bad" in given:
            raise LookupError("on purpose")
        return [begin + key for key in given]

    return Bulk(run)


async def test_the_units_of_a_bulk_run_together_and_each_gets_its_own_value(table: Database) -> None:
    ran: list[list[str]] = []
    bulks = [bulk_of(ran, "a"), bulk_of(ran, "b")]
    results = await asyncio.gather(
        *(table.write_in_bulk(bulks[n % 2], f"{n}") for n in range(5)), table.write(insert("alone"))
    )
    assert results == ["a0", "b1", "a2", "b3", "a4", "alone"]
    assert ran == [["0", "2", "4"], ["1", "3"]]
    assert await table.read(keys) == sorted(results)


async def test_an_error_of_a_bulk_fails_the_unit_alone_that_caused_it(table: Database) -> None:
    ran: list[list[str]] = []
    bulk = bulk_of(ran, "")
    results = await asyncio.gather(
        *(table.write_in_bulk(bulk, key) for key in ("x", "bad", "y", "x")), return_exceptions=True
    )
    assert [type(result) for result in results] == [str, LookupError, str, IntegrityError]
    assert await table.read(keys) == ["x", "y"]
    assert ran[-4:] == [["x"], ["bad"], ["y"], ["x"]]
    assert await table.write_in_bulk(bulk, "lone") == "lone"
    with pytest.raises(LookupError):
        await table.write_in_bulk(bulk, "bad")
    assert await table.read(keys) == ["lone", "x", "y"]


async def test_what_goes_along_is_done_together_for_the_units_that_did_something(table: Database) -> None:
    ran: list[list[str]] = []
    bulk = bulk_of(ran, "along-")
    results = await asyncio.gather(
        table.write(insert("a"), along=Along(bulk, "a")),
        table.write(lambda _connection: False, along=Along(bulk, "b")),
        table.write(lambda _connection: None, along=Along(bulk, "c")),
    )
    assert results == ["a", False, None]
    assert ran == [["a", "c"]]
    assert await table.read(keys) == ["a", "along-a", "along-c"]


async def test_a_unit_whose_company_fails_is_undone_alone(table: Database) -> None:
    bulk = bulk_of([], "along-")
    results = await asyncio.gather(
        table.write(insert("a"), along=Along(bulk, "a")),
        table.write(insert("b"), along=Along(bulk, "bad")),
        table.write(lambda _connection: False, along=Along(bulk, "bad")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [str, LookupError, bool]
    assert await table.read(keys) == ["a", "along-a"]
    with pytest.raises(LookupError):
        await table.write(insert("c"), along=Along(bulk, "bad"))
    assert await table.read(keys) == ["a", "along-a"]


async def test_an_error_of_a_lone_unit_undoes_it(table: Database) -> None:
    def half(connection: Connection) -> None:
        insert("half")(connection)
        raise CaError(ErrorKind.CONFLICT, "on purpose")

    with pytest.raises(CaError, match="on purpose"):
        await table.write(half)
    assert await table.read(keys) == []
    assert await table.write(insert("after")) == "after"


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (sqlite3.SQLITE_BUSY, Failure.TRANSIENT),
        (sqlite3.SQLITE_LOCKED, Failure.TRANSIENT),
        (517, Failure.TRANSIENT),  # SQLITE_BUSY_SNAPSHOT, an extended code
        (sqlite3.SQLITE_FULL, Failure.BROKEN),
        (sqlite3.SQLITE_IOERR, Failure.BROKEN),
        (sqlite3.SQLITE_READONLY, Failure.BROKEN),
        (sqlite3.SQLITE_CONSTRAINT, Failure.UNIT),
        (sqlite3.SQLITE_ERROR, Failure.UNIT),
    ],
)
def test_how_far_an_sqlite_error_reaches(code: int, failure: Failure) -> None:
    assert classify(failure_of(code)) is failure


@pytest.mark.parametrize(
    ("sqlstate", "failure"),
    [
        ("40001", Failure.TRANSIENT),
        ("40P01", Failure.TRANSIENT),
        ("55P03", Failure.TRANSIENT),
        ("08006", Failure.LOST),
        ("57P01", Failure.LOST),
        ("25006", Failure.LOST),
        ("53100", Failure.BROKEN),
        ("57014", Failure.BROKEN),
        ("58030", Failure.BROKEN),
        ("23505", Failure.UNIT),
        ("42601", Failure.UNIT),
    ],
)
def test_how_far_a_postgresql_error_reaches(sqlstate: str, failure: Failure) -> None:
    original = Exception("as the driver raises it")
    original.sqlstate = sqlstate  # type: ignore[attr-defined]
    assert classify(DBAPIError("statement", {}, original)) is failure


def test_an_error_that_no_database_raised_is_the_units_own() -> None:
    assert classify(ValueError("bug")) is Failure.UNIT
    assert classify(ConnectionResetError()) is Failure.LOST


async def test_an_error_that_aborts_the_transaction_runs_the_units_again_one_by_one(table: Database) -> None:
    """Disk full in one unit: the others are committed, and it has a verdict of its own."""

    def full(connection: Connection) -> None:
        insert("full")(connection)
        raise failure_of(sqlite3.SQLITE_FULL)

    results = await asyncio.gather(
        table.write(insert("a")), table.write(full), table.write(insert("b")), return_exceptions=True
    )
    assert results[0] == "a"
    assert isinstance(results[1], CaError)
    assert results[1].kind is ErrorKind.UNAVAILABLE
    assert results[1].retry_after is not None
    assert results[2] == "b"
    assert await table.read(keys) == ["a", "b"]


async def test_a_transient_error_is_tried_again(table: Database) -> None:
    attempts: list[int] = []

    def deadlocked(connection: Connection) -> str:
        insert("d")(connection)
        attempts.append(1)
        if len(attempts) < 4:
            raise failure_of(sqlite3.SQLITE_BUSY)
        return "done"

    results = await asyncio.gather(table.write(insert("a")), table.write(deadlocked), table.write(insert("b")))
    assert results == ["a", "done", "b"]
    assert await table.read(keys) == ["a", "b", "d"]


async def test_a_transient_error_that_stays_is_unavailable(url: str) -> None:
    database = await Database.open(url, patience=0.05)

    def locked(_connection: Connection) -> None:
        raise failure_of(sqlite3.SQLITE_BUSY)

    with pytest.raises(CaError) as refused:
        await database.write(locked)
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    await database.close()


async def test_a_cancelled_caller_does_not_cancel_its_unit(table: Database) -> None:
    task = asyncio.create_task(table.write(insert("kept")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await table.write(insert("later"))
    assert await table.read(keys) == ["kept", "later"]


async def test_a_full_queue_refuses(url: str) -> None:
    database = await Database.open(url, queue_limit=3)
    results = await asyncio.gather(*(database.write(lambda _connection: 1) for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, CaError)]
    assert [error.kind for error in refused] == [ErrorKind.UNAVAILABLE] * 2
    assert results.count(1) == 3
    await database.close()


async def test_close_commits_what_is_queued_and_refuses_what_comes_later(url: str) -> None:
    database = await Database.open(url, max_batch=2)
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    queued = [asyncio.create_task(database.write(insert(str(n)))) for n in range(7)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*queued) == [str(n) for n in range(7)]
    with pytest.raises(CaError):
        await database.write(insert("late"))
    with pytest.raises(CaError):
        await database.read(keys)
    again = await Database.open(url)
    assert await again.read(keys) == [str(n) for n in range(7)]
    await again.close()


async def test_a_read_cannot_write(table: Database) -> None:
    with pytest.raises((CaError, DBAPIError)):
        await table.read(insert("sneaked"))
    assert await table.read(keys) == []


async def test_a_read_sees_one_moment_and_no_uncommitted_write(table: Database) -> None:
    before: list[list[str]] = []
    loop = asyncio.get_running_loop()

    def unit(connection: Connection) -> None:
        insert("x")(connection)
        if table.dialect == "sqlite":  # units run on a thread of their own there, so others may read meanwhile
            before.append(asyncio.run_coroutine_threadsafe(table.read(keys), loop).result(10))

    await table.write(unit)
    assert before in ([], [[]])
    assert await table.read(keys) == ["x"]


async def test_sqlite_is_durable_and_checks_foreign_keys(tmp_path: Any) -> None:
    for scheme in ("sqlite", "sqlite+aiosqlite"):
        database = await Database.open(f"{scheme}:///{tmp_path}/{scheme}.db")

        def pragmas(connection: Connection) -> tuple[object, ...]:
            names = ("journal_mode", "synchronous", "foreign_keys")
            return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)

        assert await database.write(pragmas) == ("wal", 2, 1)
        await database.close()


async def test_aiosqlite_by_url_commits_the_same(tmp_path: Any) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    results = await asyncio.gather(*(database.write(insert(k)) for k in "aab"), return_exceptions=True)
    assert isinstance(results[1], IntegrityError)
    assert await database.read(keys) == ["a", "b"]
    await database.close()


async def test_two_writers_wait_for_each_other(url: str, table: Database) -> None:
    """Core and fronts write to one file: BEGIN IMMEDIATE waits where a deferred BEGIN would fail."""
    other = await Database.open(url)

    def read_then_write(key: str) -> Callable[[Connection], None]:
        def unit(connection: Connection) -> None:
            keys(connection)
            insert(key)(connection)

        return unit

    writes = [db.write(read_then_write(f"{n}{i}")) for n in range(20) for i, db in enumerate((table, other))]
    await asyncio.gather(*writes)
    assert len(await other.read(keys)) == 40
    await other.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_lost_connection_is_replaced(url: str) -> None:
    """The server ends the session in the middle of a batch: every unit is committed all the same, once."""
    database = await Database.open(url)
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    killed: list[int] = []

    def dies(connection: Connection) -> str:
        insert("d")(connection)
        if not killed:
            killed.append(1)
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return "d"

    units = [insert("a"), dies, insert("b")]
    assert await asyncio.gather(*map(database.write, units)) == ["a", "d", "b"]
    assert await database.read(keys) == ["a", "b", "d"]
    await database.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("persisted", [True, False])
async def test_a_connection_lost_during_commit(url: str, monkeypatch: pytest.MonkeyPatch, persisted: bool) -> None:
    """Failed, and failed but persisted: the database is asked, and no unit is done twice."""
    database = await Database.open(url)
    await database.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT)")) and None)
    lost: list[int] = []
    begin = Connection.begin

    def begin_and_lose(connection: Connection) -> Any:
        transaction = begin(connection)
        if not lost:
            lost.append(1)
            commit, rollback = transaction.commit, transaction.rollback

            def lose() -> None:
                (commit if persisted else rollback)()
                raise ConnectionResetError("on purpose")

            transaction.commit = lose
        return transaction

    monkeypatch.setattr(Connection, "begin", begin_and_lose)
    assert await asyncio.gather(*(database.write(insert(k)) for k in "abc")) == ["a", "b", "c"]
    assert lost
    assert await database.read(keys) == ["a", "b", "c"]
    await database.close()


async def test_the_writer_outlives_a_mistake(table: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(database_module, "_commit_together", broken)
        with pytest.raises(CaError):
            await table.write(insert("x"))
    assert await table.write(insert("y")) == "y"


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:////var/lib/ca.db", "sqlite"),
        ("sqlite+aiosqlite:////var/lib/ca.db", "sqlite+aiosqlite"),
        ("postgresql://ca:secret@db/ca", "postgresql+asyncpg"),
        ("postgres://ca@db/ca", "postgresql+asyncpg"),
    ],
)
def test_urls(given: str, driver: str) -> None:
    assert normalise_url(given).drivername == driver


def test_sslmode_becomes_ssl() -> None:
    assert dict(normalise_url("postgresql://db/ca?sslmode=verify-full").query) == {"ssl": "verify-full"}


@pytest.mark.parametrize(
    "given", ["mysql://ca:hidden@db/ca", "hidden", "sqlite://", "sqlite:///:memory:", "oracle://ca:hidden@db"]
)
def test_urls_that_are_refused(given: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        normalise_url(given)
    assert "hidden" not in str(refused.value)


async def test_a_database_that_is_away() -> None:
    with pytest.raises(CaError) as refused:
        await Database.open("postgresql://ca@127.0.0.1:1/ca")
    assert refused.value.kind is ErrorKind.UNAVAILABLE


async def test_a_file_that_cannot_be_opened(tmp_path: Any) -> None:
    with pytest.raises(CaError) as refused:
        await Database.open(f"sqlite:///{tmp_path}/missing/ca.db")
    assert refused.value.kind is ErrorKind.UNAVAILABLE


async def test_a_glance_sees_what_is_committed_and_changes_nothing(table: Database) -> None:
    await table.write(insert("a"))
    assert await table.glance(keys) == ["a"]
    with pytest.raises(CaError):
        await table.glance(insert("b"))
    await table.write(insert("c"))
    assert await table.glance(keys) == ["a", "c"]


async def test_a_glance_leaves_no_transaction_open(table: Database, url: str) -> None:
    """One that stood open would show old rows for ever, and keep the write-ahead log from being taken back."""
    await table.write(insert("a"))

    assert await table.glance(keys) == ["a"]
    with pytest.raises(LookupError):
        await table.glance(_fail)
    assert await table.glance(keys) == ["a"]
    if table.dialect == "sqlite":
        other = sqlite3.connect(url.removeprefix("sqlite:///"))
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        other.close()


def _fail(_connection: Connection) -> None:
    raise LookupError("on purpose")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_glance_that_is_held_up_is_read_on_a_thread(database: Database) -> None:
    """What waits must not wait on the event loop's thread."""
    threads: list[str] = []

    def query(_connection: Connection) -> int:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise failure_of(5)
        return 7

    assert await database.glance(query) == 7
    assert threads[0] == threading.main_thread().name
    assert threads[1].startswith("store-read")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_transaction_waits_for_another_process_and_fails_when_that_lasts(url: str) -> None:
    database = await Database.open(url, statement_timeout=0.3, patience=0.1)
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        await database.write(
            lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None
        )
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(database.write(insert("a")))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        other.execute("COMMIT")
        assert await waiting == "a"
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CaError) as caught:
            await database.write(insert("b"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        other.execute("COMMIT")
        assert await database.write(insert("c")) == "c"
    finally:
        other.close()
        await database.close()


# --- Locked by another process ------------------------------------------------------------------------------------


async def test_a_locked_database_holds_nobody_up_for_long(tmp_path: Path) -> None:
    """What has waited long enough is given up together: the attempts of a batch do not add up."""
    path = tmp_path / "locked.db"
    seen: list[str] = []
    opened = await Database.open(
        f"sqlite:///{path}",
        statement_timeout=0.2,
        patience=0.1,
        observe=lambda name, _seconds, _count: seen.append(name),
    )
    await opened.write(lambda connection: connection.execute(text("CREATE TABLE t (k TEXT PRIMARY KEY)")) and None)
    attempts = 0
    write = opened._backend.write

    async def counted(work: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return await write(work)

    opened._backend.write = counted  # type: ignore[method-assign]
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(*(opened.write(insert(f"{n}")) for n in range(20)), return_exceptions=True)
    assert {answer.kind for answer in answers if isinstance(answer, CaError)} == {ErrorKind.UNAVAILABLE}
    assert len(answers) == 20
    # The batch together, and at most one unit alone.
    assert attempts <= 2
    assert opened.problem is not None
    assert seen.count("refused") == 20
    assert await opened.read(keys) == []
    other.execute("ROLLBACK")
    assert await opened.write(insert("after")) == "after"
    assert opened.problem is None
    assert opened.queued == 0
    await opened.close()


# --- A commit whose answer is lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("stands", [True, False])
async def test_a_commit_whose_answer_was_lost_is_asked_for(
    table: Database, monkeypatch: pytest.MonkeyPatch, count: int, stands: bool
) -> None:
    """Failed, and failed but persisted: each unit takes effect once, and its caller is told that it did."""
    commit, lost = Transaction.commit, 0

    def lose(transaction: Transaction) -> None:
        nonlocal lost
        if lost:
            commit(transaction)
            return
        lost += 1
        if stands:
            commit(transaction)
        raise OperationalError("COMMIT", {}, Exception("the server closed the connection"), connection_invalidated=True)

    monkeypatch.setattr(Transaction, "commit", lose)
    wanted = [f"{n}" for n in range(count)]
    assert await asyncio.gather(*(table.write(insert(key)) for key in wanted)) == wanted
    assert lost == 1
    assert await table.read(keys) == wanted
