"""Statements that SQLAlchemy builds for each dialect, and statements for hot paths that it compiles once."""

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Executable, Table, bindparam, literal_column, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import ReturningInsert

_SQLITE_DRIVER = "pysqlite"
ByDialect = dict[str, sqlite.Insert | postgresql.Insert | ReturningInsert[Any]]


def insert_or_ignore(table: Table, columns: Sequence[str], *, returning: Column[Any] | None = None) -> ByDialect:
    """INSERT ... ON CONFLICT DO NOTHING by dialect; a row that stands returns nothing and counts nothing."""
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    by_dialect: ByDialect = {}
    for of_dialect in (sqlite.insert(table), postgresql.insert(table)):
        statement = of_dialect.values(values).on_conflict_do_nothing()
        by_dialect[insert_dialect(of_dialect)] = statement if returning is None else statement.returning(returning)
    return by_dialect


def insert_dialect(of_dialect: sqlite.Insert | postgresql.Insert) -> str:
    """The dialect that an INSERT is for."""
    return "sqlite" if isinstance(of_dialect, sqlite.Insert) else "postgresql"


def is_one_of(column: Column[Any], values: Iterable[str]) -> ColumnElement[bool]:
    """`IN` with constants, as prepared statements take it."""
    return or_(*(column == value for value in values))


def is_literally(column: Column[Any], value: str) -> ColumnElement[bool]:
    """Equality with a constant that is written out: the database sees that an index over a part of the rows serves."""
    if not value.isalpha():
        raise ValueError("a constant of letters")
    return column == literal_column(f"'{value}'")


class Rows:
    """What a prepared statement gave: all rows at once, as named tuples, and how many rows it changed."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: Sequence[Any], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> Sequence[Any]:
        """Every row."""
        return self._rows

    def first(self) -> Any | None:
        """The first row, None where there is none."""
        return self._rows[0] if self._rows else None

    def one(self) -> Any:
        """The one row."""
        (row,) = self._rows
        return row

    def scalar(self) -> Any | None:
        """The first column of the first row, None where there is none."""
        return self._rows[0][0] if self._rows else None

    def scalars(self) -> tuple[Any, ...]:
        """The first column of every row."""
        return tuple([row[0] for row in self._rows])


@dataclass(frozen=True, slots=True)
class Compiled:
    """SQL with the makers of its parameters, in order, and of its rows."""

    sql: str
    binders: tuple[tuple[str, Callable[[Any], Any] | None], ...]
    constants: Mapping[str, Any]
    row: Callable[[Iterable[Any]], Any] | None
    """None where the statement gives no rows."""
    readers: tuple[tuple[int, Callable[[Any], Any]], ...]

    def bind(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        values = {**self.constants, **parameters} if self.constants else parameters
        return tuple([values[name] if make is None else make(values[name]) for name, make in self.binders])

    def rows(self, raw: Sequence[Any]) -> Sequence[Any]:
        assert self.row is not None
        if not self.readers:
            return [self.row(values) for values in raw]
        made = []
        for values in raw:
            fields = list(values)
            for at, read in self.readers:
                fields[at] = read(fields[at])
            made.append(self.row(fields))
        return made


class Prepared:
    """A statement of a hot path, run for a tenth of what `Connection.execute` costs.

    It is compiled at its first use on a dialect, and on SQLite's own driver it goes past SQLAlchemy's execution: the
    caller sees to it that a transaction has begun. Parameters and rows pass their column's type, errors are
    SQLAlchemy's. Not for `IN` with a list.
    """

    def __init__(self, statement: Executable | ByDialect) -> None:
        self._statement = statement
        self._compiled: dict[str, Compiled] = {}

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> Rows:
        """Run with one set of parameters."""
        compiled = self.compiled(connection.dialect)
        return self.run(connection, compiled, compiled.bind(parameters))

    def compiled(self, dialect: Dialect) -> Compiled:
        """The statement as a dialect writes it."""
        return self._compiled.get(dialect.name) or self._compile(dialect)

    def run(self, connection: Connection, compiled: Compiled, values: tuple[Any, ...]) -> Rows:
        """Run with parameters that are bound already."""
        dialect = connection.dialect
        if dialect.driver != _SQLITE_DRIVER:
            result = connection.exec_driver_sql(compiled.sql, values)
            return Rows(() if compiled.row is None else compiled.rows(result.all()), result.rowcount)
        try:
            cursor = connection.connection.driver_connection.execute(compiled.sql, values)  # type: ignore[union-attr]
            raw = () if compiled.row is None else cursor.fetchall()
        except sqlite3.Error as error:
            raise _translated(error, compiled.sql, dialect) from error
        return Rows(compiled.rows(raw) if raw else (), cursor.rowcount)

    def _compile(self, dialect: Dialect) -> Compiled:
        statement: Any = self._statement
        if isinstance(statement, dict):
            statement = statement[dialect.name]
        compiled = statement.compile(dialect=dialect)
        binders = tuple(
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        )
        constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        columns = compiled._result_columns  # noqa: SLF001 - nothing public tells the types of the result
        readers = [each.type.dialect_impl(dialect).result_processor(dialect, None) for each in columns]
        row = namedtuple("Row", [each.keyname for each in columns], rename=True)  # type: ignore[misc]  # noqa: PYI024
        made = Compiled(
            sql=str(compiled),
            binders=binders,
            constants=constants,
            row=row._make if columns else None,
            readers=tuple((at, read) for at, read in enumerate(readers) if read is not None),
        )
        self._compiled[dialect.name] = made
        return made


def _translated(error: sqlite3.Error, sql: str, dialect: Dialect) -> BaseException:
    """SQLAlchemy's error for the driver's, without the parameters."""
    return DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True, dialect=dialect)
