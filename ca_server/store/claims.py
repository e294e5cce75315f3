"""What units of the group commit take before they run: all that a batch needs at once, and in one order.

Two processes whose units lock the same rows in the order of their arrival wait for each other, until PostgreSQL ends
one of the transactions a second later and everything that was queued behind has waited. So a unit announces

- `locks`: names of what it is going to change. A batch takes the locks of all its units in one statement, sorted, and
  holds them until its end. They keep writers from each other, never readers. SQLite has one writer and needs none.
- `once`: a key that can be used once in the world. A batch inserts the keys of all its units in one statement, sorted;
  a unit whose key is taken does not run. A unit that fails has its key given back: nothing of it stands.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Connection, String, Table, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.store.types import UtcTime

_microseconds = UtcTime()
_WANTED = select(func.unnest(bindparam("wanted", type_=postgresql.ARRAY(BigInteger))).label("number")).subquery()
_IN_ORDER = select(_WANTED.c.number).order_by(_WANTED.c.number).subquery()
_LOCK: Final = select(func.count(func.pg_advisory_xact_lock(_IN_ORDER.c.number)))


class OnceTable:
    """A table of keys that are used once, each with a time until which that must be remembered."""

    def __init__(self, table: Table, key: Column[str], time: Column[datetime], used: type[Exception]) -> None:
        """`used` is raised, without arguments, to who comes second."""
        self.used = used
        texts, times = postgresql.ARRAY(String), postgresql.ARRAY(BigInteger)
        pairs = func.unnest(bindparam("keys", type_=texts), bindparam("times", type_=times))
        of_arrays = pairs.table_valued("key", "time").render_derived()
        of_json = func.json_each(bindparam("pairs")).table_valued("value")
        names = [key.name, time.name]
        json_key, json_time = (func.json_extract(of_json.c.value, path) for path in ("$[0]", "$[1]"))
        self._take: dict[str, Any] = {
            "postgresql": postgresql.insert(table)
            .from_select(names, select(of_arrays.c.key, of_arrays.c.time).order_by(of_arrays.c.key))
            .on_conflict_do_nothing()
            .returning(key),
            # The WHERE keeps SQLite from reading ON CONFLICT as the condition of a join.
            "sqlite": sqlite.insert(table)
            .from_select(names, select(json_key, json_time).where(json_key.is_not(None)))
            .on_conflict_do_nothing()
            .returning(key),
        }
        self._give_back = delete(table).where(key.in_(bindparam("keys", expanding=True)))

    def take(self, connection: Connection, keys: dict[str, datetime]) -> set[str]:
        """Insert keys with their times; return those that nobody had taken."""
        dialect = connection.dialect
        times = {key: _microseconds.process_bind_param(time, dialect) for key, time in keys.items()}
        parameters: dict[str, Any]
        if dialect.name == "sqlite":
            parameters = {"pairs": json.dumps(list(times.items()))}
        else:
            parameters = {"keys": list(times), "times": list(times.values())}
        return set(connection.execute(self._take[dialect.name], parameters).scalars())

    def give_back(self, connection: Connection, keys: Sequence[str]) -> None:
        """Forget keys that this transaction took."""
        connection.execute(self._give_back, {"keys": list(keys)})


@dataclass(frozen=True, slots=True)
class Once:
    """A key to use up, to be remembered until `until`."""

    table: OnceTable
    key: str
    until: datetime


def take_locks(connection: Connection, names: Iterable[str]) -> None:
    """Take the locks of a batch, in the order of their numbers, until the transaction ends."""
    if connection.dialect.name != "postgresql":
        return
    numbers = {int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in names}
    if numbers:
        connection.execute(_LOCK, {"wanted": sorted(numbers)})


def take_once(connection: Connection, wanted: Sequence[Once | None]) -> list[bool]:
    """Take the keys of a batch; tell for each of its units whether it may run. Of two with one key the first may."""
    tables: dict[OnceTable, dict[str, datetime]] = {}
    for once in wanted:
        if once is not None:
            tables.setdefault(once.table, {}).setdefault(once.key, once.until)
    taken = {(table, key) for table, keys in tables.items() for key in table.take(connection, keys)}
    allowed = []
    for once in wanted:
        if once is None:
            allowed.append(True)
            continue
        claim = (once.table, once.key)
        allowed.append(claim in taken)
        taken.discard(claim)
    return allowed


def give_back(connection: Connection, failed: Iterable[Once | None]) -> None:
    """Undo what units took that failed."""
    tables: dict[OnceTable, list[str]] = {}
    for once in failed:
        if once is not None:
            tables.setdefault(once.table, []).append(once.key)
    for table, keys in tables.items():
        table.give_back(connection, keys)
