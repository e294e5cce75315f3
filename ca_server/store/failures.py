"""What a database error means: for one unit of work alone, or for the transaction that it shares with others."""

from enum import Enum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

_SQLITE_PRIMARY = 0xFF
"""Mask of an extended SQLite result code that leaves the primary one."""
_SQLITE_TRANSIENT = frozenset({5, 6, 15})
"""BUSY, LOCKED, PROTOCOL."""
_SQLITE_BROKEN = frozenset({7, 8, 9, 10, 11, 13, 14, 26})
"""NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB."""
_POSTGRESQL_TRANSIENT = frozenset({"40001", "40P01", "55P03"})
"""serialization_failure, deadlock_detected, lock_not_available."""
_POSTGRESQL_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "25006"})
"""Shutdowns, cannot_connect_now, idle_session_timeout, and read_only_sql_transaction (a former primary)."""
_POSTGRESQL_BROKEN = ("53", "57", "58", "F0", "XX")
"""Classes of insufficient resources (disk full), cancelled statements, system and internal errors."""


class Failure(Enum):
    """How far an error reaches."""

    UNIT = "unit"
    """The unit that raised it; the others of the transaction stand."""
    TRANSIENT = "transient"
    """The transaction; trying again may help (locked, deadlock, serialization)."""
    LOST = "lost"
    """The connection: reconnect, then try again."""
    BROKEN = "broken"
    """The transaction, and trying again at once is no use (disk full, statement too slow)."""


def classify(error: BaseException) -> Failure:
    """Tell how far an error reaches. What no database raised is the unit's own."""
    if isinstance(error, OSError | PoolTimeoutError):
        return Failure.LOST
    if not isinstance(error, DBAPIError):
        return Failure.UNIT
    if error.connection_invalidated:
        return Failure.LOST
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if isinstance(sqlite_code, int):
        return _classify_sqlite(sqlite_code & _SQLITE_PRIMARY)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if isinstance(sqlstate, str):
        return _classify_postgresql(sqlstate)
    return Failure.UNIT


def _classify_sqlite(code: int) -> Failure:
    if code in _SQLITE_TRANSIENT:
        return Failure.TRANSIENT
    return Failure.BROKEN if code in _SQLITE_BROKEN else Failure.UNIT


def _classify_postgresql(sqlstate: str) -> Failure:
    if sqlstate in _POSTGRESQL_TRANSIENT:
        return Failure.TRANSIENT
    if sqlstate in _POSTGRESQL_LOST or sqlstate.startswith("08"):
        return Failure.LOST
    return Failure.BROKEN if sqlstate.startswith(_POSTGRESQL_BROKEN) else Failure.UNIT
