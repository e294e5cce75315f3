"""Statements that SQLAlchemy builds for each dialect, and statements for hot paths that it compiles once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, CursorResult, Executable, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.dml import ReturningInsert

ByDialect = dict[str, sqlite.Insert | postgresql.Insert | ReturningInsert[Any]]


def insert_or_ignore(table: Table, columns: Sequence[str], *, returning: Column[Any] | None = None) -> ByDialect:
    """INSERT ... ON CONFLICT DO NOTHING by dialect; a row that stands returns nothing and counts nothing."""
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    by_dialect: ByDialect = {}
    for insert in (sqlite.insert(table), postgresql.insert(table)):
        statement = insert.values(values).on_conflict_do_nothing()
        by_dialect[insert_dialect(insert)] = statement if returning is None else statement.returning(returning)
    return by_dialect


def insert_dialect(insert: sqlite.Insert | postgresql.Insert) -> str:
    """The dialect that an INSERT is for."""
    return "sqlite" if isinstance(insert, sqlite.Insert) else "postgresql"


@dataclass(frozen=True, slots=True)
class _Compiled:
    """SQL with the makers of its parameters, in order."""

    sql: str
    makers: tuple[tuple[str, Callable[[Any], Any] | None], ...]
    constants: Mapping[str, Any]

    def bind(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        values = {**self.constants, **parameters}
        return tuple([values[name] if make is None else make(values[name]) for name, make in self.makers])


class Prepared:
    """A statement of a hot path, run for a third of what `Connection.execute` costs.

    It is compiled at its first use on a dialect. Parameters pass their column's type on the way in; result columns are
    as the driver gives them, so times are microseconds. Not for `IN` with a list.
    """

    def __init__(self, statement: Executable | ByDialect) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """Run with one set of parameters."""
        compiled = self._for(connection.dialect)
        return connection.exec_driver_sql(compiled.sql, compiled.bind(parameters))

    def execute_many(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run with each set of parameters; none is none."""
        if parameters:
            compiled = self._for(connection.dialect)
            connection.exec_driver_sql(compiled.sql, [compiled.bind(each) for each in parameters])

    def _for(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = self._compile(dialect)
        return compiled

    def _compile(self, dialect: Dialect) -> _Compiled:
        statement: Any = self._statement
        if isinstance(statement, dict):
            statement = statement[dialect.name]
        compiled = statement.compile(dialect=dialect)
        makers = tuple(
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        )
        constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        return _Compiled(str(compiled), makers, constants)
