"""Statements over many rows at once, compiled for few numbers of rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Column, Connection, Executable, Table, bindparam, insert
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.store.statements import ByDialect, Prepared, insert_dialect

_MOST_ROWS = 64
_ROW = "__"
"""Between a parameter's name and the number of its row."""


def in_row(name: str, number: int, kind: Column[Any]) -> BindParameter[Any]:
    """The parameter `name`, typed as a column, of one row of a PreparedRows."""
    return bindparam(f"{name}{_ROW}{number}", type_=kind.type)


def values_of_rows(table: Table, columns: Sequence[str], count: int) -> list[dict[str, Any]]:
    """What `Insert.values` takes for rows of these columns of a table."""
    return [{name: in_row(name, number, table.c[name]) for name in columns} for number in range(count)]


class PreparedRows:
    """A statement over any number of rows, such as an INSERT: one of 64 rows costs a tenth of 64 of one row.

    `make` builds it for a number of rows, with parameters that `in_row` names; others are common to all rows. It is
    run for 64 rows, 32, and so on, so that few statements are ever compiled. Where a row may come twice, as in a
    SELECT or an UPDATE, `repeatable` rounds up instead, with the last row again.
    """

    def __init__(self, make: Callable[[int], Executable | ByDialect], *, repeatable: bool = False) -> None:
        self._make = make
        self._repeatable = repeatable
        self._prepared: dict[int, Prepared] = {}
        self._places: dict[str, tuple[tuple[int, str], ...]] = {}
        """By SQL, where each parameter is found."""

    def execute(
        self, connection: Connection, rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Run for all rows; return the rows that it gave, in no order."""
        given: list[Any] = []
        begin = 0
        while begin < len(rows):
            left = len(rows) - begin
            count = min(_MOST_ROWS, _power_of_two(left, up=self._repeatable))
            taken = rows[begin : begin + count]
            begin += count
            given += self._run(connection, count, taken, common or {})
        return given

    def _run(
        self, connection: Connection, count: int, rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any]
    ) -> Sequence[Any]:
        prepared = self._prepared.get(count)
        if prepared is None:
            prepared = self._prepared[count] = Prepared(self._make(count))
        compiled = prepared.compiled(connection.dialect)
        places = self._places.get(compiled.sql)
        if places is None:
            places = self._places[compiled.sql] = tuple(_place_of(name) for name, _make in compiled.binders)
        sources = [*rows, *[rows[-1]] * (count - len(rows)), {**compiled.constants, **common}]
        values = tuple(
            [
                sources[number][name] if make is None else make(sources[number][name])
                for (number, name), (_, make) in zip(places, compiled.binders, strict=True)
            ]
        )
        return prepared.run(connection, compiled, values).all()


def _place_of(parameter: str) -> tuple[int, str]:
    """Row and name of a parameter; the last row stands for what all have in common."""
    name, separator, number = parameter.partition(_ROW)
    return (int(number), name) if separator else (-1, name)


def insert_rows(table: Table, columns: Sequence[str] = (), *, returning: Sequence[Column[Any]] = ()) -> PreparedRows:
    """INSERT of rows of a table, with all columns or some."""
    names = columns or [column.name for column in table.columns]

    def make(count: int) -> Executable:
        statement = insert(table).values(values_of_rows(table, names, count))
        return statement.returning(*returning) if returning else statement

    return PreparedRows(make)


def insert_rows_or_ignore(table: Table, columns: Sequence[str], *, returning: Sequence[Column[Any]]) -> PreparedRows:
    """`insert_or_ignore` for many rows; it returns columns of those that are new."""

    def make(count: int) -> ByDialect:
        values = values_of_rows(table, columns, count)
        return {
            insert_dialect(of_dialect): of_dialect.values(values).on_conflict_do_nothing().returning(*returning)
            for of_dialect in (sqlite.insert(table), postgresql.insert(table))
        }

    return PreparedRows(make)


def _power_of_two(number: int, *, up: bool) -> int:
    """The greatest power of two that is not above a positive number; `up`: the smallest that is not below."""
    return 1 << ((number - 1).bit_length() if up else number.bit_length() - 1)
