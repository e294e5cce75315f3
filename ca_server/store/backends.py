"""Engines: how a synchronous function over a `Connection` gets to run without blocking the event loop.

PostgreSQL is reached through asyncpg, with the function under `AsyncConnection.run_sync`. SQLite's calls are
microseconds long, and aiosqlite hands each of them (cursor, execute, fetch, close) to its thread and back: so a
`sqlite://` URL runs a whole function in one hop on a thread of its own, ten times as fast in groups
(scripts/bench/store.py). `sqlite+aiosqlite://` chooses aiosqlite all the same.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from ca_server.domain.errors import ConfigurationError
from ca_server.store.failures import Failure, classify

T = TypeVar("T")
Work = Callable[[Connection], T]

_POSTGRESQL_NAMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_FIRST_LOCK_PAUSE = 0.0002
_LONGEST_LOCK_PAUSE = 0.003
_CACHE_KIB = 16 * 1024
"""A connection's cache: with less than its pages, a large transaction writes some of them twice."""
_CHECKPOINT_PAGES = 4_000
"""How long the log gets before it is written into the database: the longer, the more changes of a page go at once."""


class Backend(Protocol):
    """Runs functions on the one connection that writes, and on a pool of connections that read."""

    dialect: str

    async def write(self, work: Work[T]) -> T:
        """Run on the writing connection, which is opened where needed. One call at a time."""

    async def read(self, query: Work[T]) -> T:
        """Run in a transaction of its own on a connection that can't write."""

    async def glance(self, query: Work[T], *, one_moment: bool) -> T:
        """`read` for a few rows found by index, which may be done at once on the calling thread.

        Unless `one_moment`, each of its statements may see a moment of its own.
        """

    async def drop_writer(self) -> None:
        """Forget the writing connection: the next `write` opens another."""

    async def close(self) -> None:
        """Close all connections."""


def normalise_url(url: str) -> URL:
    """Read a database URL: `sqlite:///PATH`, `sqlite+aiosqlite:///PATH` or `postgresql://...`.

    libpq's `sslmode` becomes asyncpg's `ssl`. Raises ConfigurationError, never showing a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError("database", "url", None, "not a database URL") from error
    if parsed.drivername in _POSTGRESQL_NAMES:
        query: dict[str, Any] = dict(parsed.query)
        if "sslmode" in query:
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    if parsed.drivername in {"sqlite", "sqlite+aiosqlite"}:
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError("database", "url", url, "name a file: sqlite:////var/lib/ca-server/ca.db")
        return parsed
    raise ConfigurationError("database", "url", parsed.drivername, "use sqlite:// or postgresql://")


async def open_backend(url: str, *, pool_size: int, statement_timeout: float) -> Backend:
    """Make the back-end of a URL; no connection is opened yet."""
    parsed = normalise_url(url)
    if parsed.drivername != "sqlite":
        from ca_server.store.async_backend import async_backend  # noqa: PLC0415 - a tenth of every command's start

        return async_backend(parsed, pool_size=pool_size, statement_timeout=statement_timeout)
    return ThreadBackend(parsed, pool_size, statement_timeout)


def prepare_sqlite(
    engine: Engine, busy_timeout: float, *, read_only: bool = False, begin: str | None = "BEGIN IMMEDIATE"
) -> None:
    """Make an SQLite engine durable and transactional.

    The driver's own BEGIN comes late and never before SAVEPOINT or DDL, so SQLAlchemy emits it (its documentation of
    SQLite, "Using SQLAlchemy to emit BEGIN"). Writers begin IMMEDIATE, since a transaction that read first can't
    wait for the lock. With `begin` None nothing does: whoever uses the engine begins.
    """
    pragmas: Mapping[str, str] = {
        "busy_timeout": str(int(busy_timeout * 1000)),
        "journal_mode": "WAL",
        "cache_size": str(-_CACHE_KIB),
        # What undoes a statement alone is kept here too: as a file it is written, and made, for each transaction.
        "temp_store": "MEMORY",
        "wal_autocheckpoint": str(_CHECKPOINT_PAGES),
        "synchronous": "FULL",
        "foreign_keys": "ON",
        "query_only": "ON" if read_only else "OFF",
    }
    statement = "BEGIN" if read_only and begin is not None else begin

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    if statement is None:
        return

    @event.listens_for(engine, "begin")
    def emit_begin(connection: Connection) -> None:
        if statement == "BEGIN IMMEDIATE" and connection.dialect.driver == "pysqlite":
            _begin_patiently(connection, statement, busy_timeout)
        else:
            connection.exec_driver_sql(statement)


def _begin_patiently(connection: Connection, statement: str, busy_timeout: float) -> None:
    """Begin, waiting for another process's transaction: those take a millisecond or few.

    SQLite's own wait sleeps longer from one try to the next, up to 100 ms: long after the lock was free.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        ends = time.monotonic() + busy_timeout
        pause = _FIRST_LOCK_PAUSE
        while time.monotonic() < ends:
            try:
                driver.execute(statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_LOCK_PAUSE)
            else:
                return
        connection.exec_driver_sql(statement)  # for SQLAlchemy's error
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")


class ThreadBackend:
    """SQLite on threads: one that writes, and as many as there are connections that read.

    A glance takes some ten microseconds, far less than a thread's turn: it is taken on the event loop's thread. In WAL
    mode no writer holds it up; where something else does (it never waits for a lock), it goes to a thread after all.
    """

    dialect = "sqlite"

    def __init__(self, url: URL, pool_size: int, busy_timeout: float) -> None:
        arguments = {"check_same_thread": False}
        self._engine = create_engine(url, pool_size=1, max_overflow=0, connect_args=arguments, hide_parameters=True)
        self._reader = create_engine(
            url, pool_size=pool_size, max_overflow=0, connect_args=arguments, hide_parameters=True
        )
        self._glancer = create_engine(url, pool_size=1, max_overflow=0, connect_args=arguments, hide_parameters=True)
        prepare_sqlite(self._glancer, 0, read_only=True, begin=None)
        prepare_sqlite(self._engine, busy_timeout)
        prepare_sqlite(self._reader, busy_timeout, read_only=True)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_threads = ThreadPoolExecutor(pool_size, thread_name_prefix="store-read")
        self._connection: Connection | None = None
        """Owned by the writing thread."""
        self._glancing: Connection | None = None
        """Owned by the event loop's thread."""

    async def write(self, work: Work[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, self._write, work)

    def _write(self, work: Work[T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        return work(self._connection)

    async def read(self, query: Work[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)

    def _read(self, query: Work[T]) -> T:
        with self._reader.connect() as connection:
            connection.begin()
            return query(connection)

    async def glance(self, query: Work[T], *, one_moment: bool) -> T:
        try:
            return self._glance(query, one_moment=one_moment)
        except Exception as error:
            self._close_glancing()
            if classify(error) is Failure.UNIT:
                raise
            return await self.read(query)

    def _glance(self, query: Work[T], *, one_moment: bool) -> T:
        if self._glancing is None:
            self._glancing = self._glancer.connect()
        driver: Any = self._glancing.connection.driver_connection
        if one_moment:
            driver.execute("BEGIN")
        try:
            return query(self._glancing)
        finally:
            if self._glancing.in_transaction():
                self._glancing.rollback()
            if driver.in_transaction:
                driver.rollback()

    def _close_glancing(self) -> None:
        connection, self._glancing = self._glancing, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    async def drop_writer(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._write_thread, self._drop)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    async def close(self) -> None:
        self._close_glancing()
        self._glancer.dispose()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._write_thread, self._close)
        await loop.run_in_executor(self._read_threads, self._reader.dispose)
        self._write_thread.shutdown(wait=False)
        self._read_threads.shutdown(wait=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()
