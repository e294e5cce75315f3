"""Rate limits of ACME, inside the transaction of what they count: a refusal undoes it, and with it all that was taken.

`arrival` of a key is that of `ca_server.domain.rates`; the statement below says in SQL what `admit` says there. A row
whose arrival is past means the same as none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from zlib import crc32

from sqlalchemy import BigInteger, Connection, String, bindparam, delete, select, text, type_coerce, update
from sqlalchemy.dialects import postgresql

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.rates import Draw, admit
from ca_server.store.acme_tables import acme_limits
from ca_server.store.types import UtcTime

_LOCKS: Final = 64
_MICROSECOND: Final = 1e-6
_ONE: Final = timedelta(microseconds=1)
_microseconds = UtcTime()

# A key that is only asked about (increment 0) makes no row, and is given back where it has no room; the others are
# given back where they have.
_SQLITE: Final = text("""
INSERT INTO acme_limits AS held (key, arrival, slack)
SELECT json_extract(wanted.value, '$[0]'), :now + json_extract(wanted.value, '$[1]'), json_extract(wanted.value, '$[2]')
FROM json_each(:wanted) AS wanted
WHERE json_extract(wanted.value, '$[1]') > 0 OR EXISTS (
  SELECT 1 FROM acme_limits AS other
  WHERE other.key = json_extract(wanted.value, '$[0]') AND other.arrival > :now + json_extract(wanted.value, '$[2]')
)
ON CONFLICT (key) DO UPDATE
SET arrival = max(held.arrival, :now) + excluded.arrival - :now, slack = excluded.slack
WHERE excluded.arrival = :now OR held.arrival <= :now + excluded.slack
RETURNING key
""")
_POSTGRESQL: Final = text("""
INSERT INTO acme_limits AS held (key, arrival, slack)
SELECT wanted.key, :now + wanted.increment, wanted.slack
FROM unnest(:keys, :increments, :slacks) AS wanted (key, increment, slack)
WHERE wanted.increment > 0 OR EXISTS (
  SELECT 1 FROM acme_limits AS other WHERE other.key = wanted.key AND other.arrival > :now + wanted.slack
)
ORDER BY wanted.key
ON CONFLICT (key) DO UPDATE
SET arrival = greatest(held.arrival, :now) + excluded.arrival - :now, slack = excluded.slack
WHERE excluded.arrival = :now OR held.arrival <= :now + excluded.slack
RETURNING key
""").bindparams(
    bindparam("now", type_=BigInteger),
    bindparam("keys", type_=postgresql.ARRAY(String)),
    bindparam("increments", type_=postgresql.ARRAY(BigInteger)),
    bindparam("slacks", type_=postgresql.ARRAY(BigInteger)),
)
_ARRIVALS: Final = select(acme_limits.c.key, acme_limits.c.arrival).where(
    acme_limits.c.key.in_(bindparam("keys", expanding=True))
)


@dataclass(frozen=True, slots=True)
class StandingLimit:
    """A key that something was taken from: when there is room for one more, and when for all of its burst."""

    key: str
    refuses: bool
    next_at: datetime
    whole_at: datetime


def limit_locks(draws: Sequence[Draw]) -> set[str]:
    """Names of the locks to hold around `draw`, a bounded number of them whatever the number of keys."""
    return {limit_lock(each.key) for each in draws}


def limit_lock(key: str) -> str:
    """Name of the lock of a key."""
    return f"acme-limit:{crc32(key.encode()) % _LOCKS}"


def draw(connection: Connection, draws: Sequence[Draw], now: datetime) -> None:
    """Take one event from each key that is to give one, all or none; one statement, none without draws.

    RATE_LIMITED, and the caller's transaction must not stand, where a key has no room.
    """
    if not draws:
        return
    wanted = {each.key: each for each in draws}
    returned = _run(connection, tuple(wanted.values()), now)
    refused = [each for key, each in wanted.items() if (key in returned) is not each.takes]
    if refused:
        raise _refusal(connection, refused, now)


def peek(connection: Connection, draws: Sequence[Draw], now: datetime) -> None:
    """Say what `draw` would say, and take nothing. RATE_LIMITED where a key has no room."""
    wanted = {each.key: each for each in draws}
    rows = connection.execute(_ARRIVALS, {"keys": list(wanted)}).all() if wanted else ()
    arrivals = {row.key: (row.arrival - now) // _ONE for row in rows}
    refused = [each for key, each in wanted.items() if admit(arrivals.get(key), 0, each.rate) is None]
    if refused:
        raise _refusal(connection, refused, now)


def count(connection: Connection, draws: Sequence[Draw], now: datetime) -> None:
    """Take one event, that did happen, from each key; one without room refuses for no longer than it did before."""
    if draws:
        _run(connection, draws, now)


def _run(connection: Connection, draws: Sequence[Draw], now: datetime) -> set[str]:
    """Run the statement; returns the keys that it gave back."""
    keys = [each.key for each in draws]
    increments = [each.rate.interval if each.takes else 0 for each in draws]
    slacks = [each.rate.slack for each in draws]
    parameters: dict[str, Any] = {"now": _microseconds.process_bind_param(now, connection.dialect)}
    if connection.dialect.name == "sqlite":
        parameters |= {"wanted": json.dumps(list(zip(keys, increments, slacks, strict=True)))}
        statement = _SQLITE
    else:
        parameters |= {"keys": keys, "increments": increments, "slacks": slacks}
        statement = _POSTGRESQL
    return set(connection.execute(statement, parameters).scalars())


def _refusal(connection: Connection, refused: Sequence[Draw], now: datetime) -> CaError:
    """Name the limit that is open again last, and when."""
    arrivals = {row.key: row.arrival for row in connection.execute(_ARRIVALS, {"keys": [each.key for each in refused]})}
    waits = {each.key: (arrivals[each.key] - now).total_seconds() - each.rate.slack * _MICROSECOND for each in refused}
    worst = max(refused, key=lambda each: waits[each.key])
    seconds = max(1, -int(-waits[worst.key] // 1))
    return CaError(
        ErrorKind.RATE_LIMITED,
        f"too many {worst.what} ({worst.rule}: {worst.rate.text}); come again in {seconds} seconds",
        rule=worst.rule,
        retry_after=seconds,
    )


def standing_limits(connection: Connection, now: datetime, limit: int, *, refusing: bool) -> tuple[StandingLimit, ...]:
    """Keys that are not whole, those first that will be last; with `refusing` those without room alone."""
    query = select(acme_limits).where(acme_limits.c.arrival > now).order_by(acme_limits.c.arrival.desc())
    if refusing:
        moment = _microseconds.process_bind_param(now, connection.dialect)
        query = query.where(type_coerce(acme_limits.c.arrival, BigInteger) - acme_limits.c.slack > moment)
    rows = connection.execute(query.limit(limit)).all()
    found = [(row.key, row.arrival - timedelta(microseconds=row.slack), row.arrival) for row in rows]
    return tuple(StandingLimit(key, next_at > now, next_at, whole_at) for key, next_at, whole_at in found)


def reset_limit(connection: Connection, key: str, now: datetime) -> bool:
    """Give a key its whole burst back; false where it has it."""
    taken = update(acme_limits).where(acme_limits.c.key == key, acme_limits.c.arrival > now)
    return connection.execute(taken.values(arrival=now)).rowcount == 1


def prune_limits(connection: Connection, before: datetime, limit: int) -> int:
    """Forget keys whose burst is whole again; what another process changes just now is left to it."""
    past = select(acme_limits.c.key).where(acme_limits.c.arrival < before).limit(limit)
    found = past.with_for_update(skip_locked=True)
    return connection.execute(delete(acme_limits).where(acme_limits.c.key.in_(found))).rowcount
