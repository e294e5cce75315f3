"""Column types that mean the same on every database."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Integer, LargeBinary, Row, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000
_SECOND = 1_000_000

AnyRow = Row[*tuple[Any, ...]]
"""A row of columns that the type checker does not follow."""

Id = BigInteger().with_variant(Integer, "sqlite")
"""A surrogate key: SQLite numbers rows by itself only where the type is INTEGER."""

Sortable = String().with_variant(String(collation="C"), "postgresql")
"""Text compared by code point, so that ranges of prefixes work whatever the locale."""


class Octets(TypeDecorator[bytes]):
    """Octets, also where somebody put a value of another type into the column, as SQLite lets him.

    What verifies the log then finds other octets, and says so, rather than an error.
    """

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: Any | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        if value is None or isinstance(value, bytes):
            return value
        return str(value).encode("utf-8", "surrogateescape")


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970 in UTC: exact, ordered, and the same on every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        if value is None:
            return None
        since = value - _EPOCH  # raises TypeError for a naive time
        return since.days * _DAY + since.seconds * _SECOND + since.microseconds

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else _EPOCH + timedelta(microseconds=value)
