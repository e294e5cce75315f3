"""Statements over many rows: every number of rows, every type, on both databases."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.store.database import Database
from ca_server.store.rows import PreparedRows, in_row, insert_rows, insert_rows_or_ignore
from ca_server.store.tables import eab_keys

WHEN = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
INSERT = insert_rows(eab_keys, returning=(eab_keys.c.kid,))
IGNORE = insert_rows_or_ignore(
    eab_keys, [column.name for column in eab_keys.columns], returning=(eab_keys.c.kid, eab_keys.c.uses)
)
USE = PreparedRows(
    lambda count: (
        update(eab_keys)
        .where(eab_keys.c.kid.in_([in_row("which", number, eab_keys.c.kid) for number in range(count)]))
        .where(eab_keys.c.tenant == bindparam("of_tenant"), eab_keys.c.reusable)
        .values(uses=eab_keys.c.uses + 1)
        .returning(eab_keys.c.kid)
    ),
    repeatable=True,
)


def row(number: int) -> dict[str, Any]:
    return {
        "kid": f"k{number:03}",
        "tenant": "default",
        "created_at": WHEN + timedelta(seconds=number),
        "expires_at": None if number % 2 else WHEN,
        "reusable": True,
        "disabled_at": None,
        "max_uses": None,
        "accounts_revoked_at": None,
        "names": None,
        "live": None,
        "rate": None,
        "arrival": None,
        "live_bound": None,
        "profile": None,
        "owner": f"o{number}",
        "uses": number << 33,
        "last_used_at": None,
        "ciphertext": bytes([number]),
    }


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 131])
async def test_all_rows_are_written_as_they_are(database: Database, count: int) -> None:
    rows = [row(number) for number in range(count)]

    def unit(connection: Connection) -> list[dict[str, Any]]:
        given = INSERT.execute(connection, rows)
        assert sorted(each.kid for each in given) == [each["kid"] for each in rows]
        return [dict(each) for each in connection.execute(select(eab_keys).order_by(eab_keys.c.kid)).mappings()]

    assert await database.write(unit) == rows


async def test_rows_that_stand_are_passed_over(database: Database) -> None:
    def unit(connection: Connection) -> list[tuple[str, int]]:
        INSERT.execute(connection, [row(1), row(4)])
        given = IGNORE.execute(connection, [*map(row, range(6)), row(5)])
        assert connection.execute(select(func.count()).select_from(eab_keys)).scalar() == 6
        return sorted(tuple(each) for each in given)

    assert await database.write(unit) == [(f"k{number:03}", number << 33) for number in (0, 2, 3, 5)]


@pytest.mark.parametrize("count", [1, 3, 5, 64, 70])
async def test_a_row_that_is_repeated_to_fill_up_counts_once(database: Database, count: int) -> None:
    def unit(connection: Connection) -> tuple[list[str], list[int]]:
        INSERT.execute(connection, [row(number) for number in range(71)])
        given = USE.execute(connection, [{"which": f"k{n:03}"} for n in range(count)], {"of_tenant": "default"})
        uses = connection.execute(select(eab_keys.c.uses).order_by(eab_keys.c.kid)).scalars().all()
        return sorted(each.kid for each in given), [found - (number << 33) for number, found in enumerate(uses)]

    given, uses = await database.write(unit)
    assert given == [f"k{number:03}" for number in range(count)]
    assert uses == [1] * count + [0] * (71 - count)


async def test_a_row_that_can_not_be_fails_all(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: INSERT.execute(connection, [row(1), row(2), row(1)]))
    count = select(func.count()).select_from(eab_keys)
    assert await database.read(lambda connection: connection.execute(count).scalar()) == 0
