"""Schema migrations: applied from inside the package, all of them in one transaction under a lock."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.backends import normalise_url, prepare_sqlite

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_ADVISORY_LOCK = 0x6361_5F6D_6967  # "ca_mig"
_LOCK_WAIT = 60.0
_LOCK_POLL = 0.2
_LOCK_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema of a database: `current` is None before the first migration."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        """Whether no migration is missing, and none is there that this version does not know."""
        return self.current == self.head


async def migrate(url: str) -> None:
    """Apply all migrations that are missing; several processes may call this at once.

    Raises ConfigurationError for a URL that can't be used, CaError UNAVAILABLE where the database is away, or locked
    for more than a minute, and CONFLICT where it was migrated by a newer version.
    """
    try:
        await _with_connection(url, _upgrade, exclusive=True)
    except (DBAPIError, OSError) as error:
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away or can't be migrated") from error


async def schema_state(url: str) -> SchemaState:
    """Tell which migration a database stands at, and which is the newest; makes no SQLite file. UNAVAILABLE."""
    head = head_revision()
    if _is_missing_file(normalise_url(url)):
        return SchemaState(None, head)
    states: list[SchemaState] = []
    try:
        await _with_connection(
            url, lambda connection: states.append(SchemaState(_current(connection), head)), exclusive=False
        )
    except (DBAPIError, OSError) as error:
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away") from error
    return states[0]


def head_revision() -> str:
    """The newest migration that this version has."""
    return max(known_revisions())


def known_revisions() -> set[str]:
    """The migrations that this version has, by the numbers that their files begin with, which are their revisions."""
    return {file.name.partition("_")[0] for file in _VERSIONS.glob("[0-9]*_*.py")}


def _is_missing_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from ca_server.store.upgrade import upgrade  # noqa: PLC0415 - every command asks for the state, and few for more

    current = _current(connection)
    if current is not None and current not in known_revisions():
        raise CaError(ErrorKind.CONFLICT, "the database was migrated by a newer version of this server")
    upgrade(connection)


async def _with_connection(url: str, work: Callable[[Connection], None], *, exclusive: bool) -> None:
    parsed = normalise_url(url)
    if parsed.get_backend_name() == "sqlite":
        await asyncio.to_thread(_on_sqlite, parsed, work, exclusive=exclusive)
    else:
        await _on_postgresql(parsed, work, exclusive=exclusive)


def _on_sqlite(url: URL, work: Callable[[Connection], None], *, exclusive: bool) -> None:
    if exclusive:
        _enter_wal(url.database or "")
    engine = create_engine(url.set(drivername="sqlite"), poolclass=NullPool, hide_parameters=True)
    prepare_sqlite(engine, _LOCK_WAIT, read_only=not exclusive, begin="BEGIN EXCLUSIVE")
    with engine.begin() as connection:
        work(connection)


def _enter_wal(path: str) -> None:
    """Make the file write-ahead logged for good; SQLite does not wait for others who do the same, so this does."""
    deadline = time.monotonic() + _LOCK_WAIT
    with closing(sqlite3.connect(path, timeout=_LOCK_WAIT)) as connection:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise OSError(str(error)) from error
                time.sleep(_LOCK_POLL / 10)
            else:
                return


async def _on_postgresql(url: URL, work: Callable[[Connection], None], *, exclusive: bool) -> None:
    from ca_server.store.async_backend import engine_for_one_task  # noqa: PLC0415 - a tenth of every command's start

    engine = engine_for_one_task(url)
    async with engine.begin() as connection:
        if exclusive:
            # A statement that waits for a table makes everyone wait behind it: give up instead.
            await connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"))
            await _take_advisory_lock(connection)
        await connection.run_sync(work)


async def _take_advisory_lock(connection: "AsyncConnection") -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT
    statement = text("SELECT pg_try_advisory_xact_lock(:lock)")
    while not (await connection.execute(statement, {"lock": _ADVISORY_LOCK})).scalar():
        if asyncio.get_running_loop().time() > deadline:
            raise CaError(ErrorKind.UNAVAILABLE, "another process is migrating the database")
        await asyncio.sleep(_LOCK_POLL)
