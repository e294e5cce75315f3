"""Engines of asyncio drivers: PostgreSQL by asyncpg, and aiosqlite.

A module of its own, since SQLAlchemy's asyncio half takes a tenth of a second to load, which SQLite's users need not
spend on every command.
"""

from typing import Any, TypeVar

from sqlalchemy import URL, NullPool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ca_server.store.backends import Work, prepare_sqlite

T = TypeVar("T")

_CONNECT_TIMEOUT = 10.0
_PREPARED_STATEMENTS = 256


def async_backend(url: URL, *, pool_size: int, statement_timeout: float) -> "AsyncBackend":
    """The back-end of a URL that `normalise_url` made; no connection is opened yet."""
    if url.drivername == "postgresql+asyncpg":
        return AsyncBackend(_postgresql_engine(url, pool_size, statement_timeout))
    writer = create_async_engine(url, pool_size=1, max_overflow=0, hide_parameters=True)
    reader = create_async_engine(url, pool_size=pool_size, max_overflow=0, hide_parameters=True)
    prepare_sqlite(writer.sync_engine, statement_timeout)
    prepare_sqlite(reader.sync_engine, statement_timeout, read_only=True)
    return AsyncBackend(writer, reader)


def engine_for_one_task(url: URL) -> AsyncEngine:
    """An engine that keeps no connection."""
    return create_async_engine(url, poolclass=NullPool, hide_parameters=True)


def _postgresql_engine(url: URL, pool_size: int, statement_timeout: float) -> AsyncEngine:
    milliseconds = str(int(statement_timeout * 1000))
    settings = {
        "application_name": "ca-server",
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds,
        "synchronous_commit": "on",
        "jit": "off",
    }
    connect: dict[str, Any] = {
        "server_settings": settings,
        "timeout": _CONNECT_TIMEOUT,
        "command_timeout": statement_timeout + 1,
        "prepared_statement_cache_size": _PREPARED_STATEMENTS,
    }
    return create_async_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=pool_size + 1,  # the writer keeps one
        max_overflow=0,
        pool_timeout=_CONNECT_TIMEOUT,
        connect_args=connect,
        hide_parameters=True,
    )


class AsyncBackend:
    """An asyncio driver; functions run in a greenlet of the event loop."""

    def __init__(self, engine: AsyncEngine, reader: AsyncEngine | None = None) -> None:
        self.dialect = engine.dialect.name
        self._engine = engine
        self._reader = reader or engine.execution_options(postgresql_readonly=True)
        self._connection: AsyncConnection | None = None
        """Owned by the one task that calls `write`."""

    async def write(self, work: Work[T]) -> T:
        if self._connection is None:
            self._connection = await self._engine.connect()
        return await self._connection.run_sync(work)

    async def read(self, query: Work[T]) -> T:
        async with self._reader.connect() as connection:
            return await connection.run_sync(query)

    async def glance(self, query: Work[T], *, one_moment: bool) -> T:  # noqa: ARG002
        return await self.read(query)

    async def drop_writer(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
        await self._reader.dispose()
        await self._engine.dispose()
