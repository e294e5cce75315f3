"""Prepared statements mean what the ones of SQLAlchemy mean."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.store.database import Database
from ca_server.store.statements import Prepared, insert_or_ignore
from ca_server.store.tables import eab_keys, nodes, secrets

WHEN = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
INSERT = insert(eab_keys).values({column.name: bindparam(column.name) for column in eab_keys.columns})
ROW: dict[str, Any] = {
    "kid": "k",
    "tenant": "default",
    "created_at": WHEN,
    "expires_at": None,
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
    "owner": "Ann",
    "uses": 1 << 40,
    "last_used_at": None,
    "ciphertext": b"\x00\xff",
}


async def test_every_type_is_written_as_by_sqlalchemy(database: Database) -> None:
    prepared = Prepared(INSERT)

    def unit(connection: Connection) -> list[dict[str, Any]]:
        connection.execute(INSERT, ROW)
        prepared.execute(connection, ROW | {"kid": "p"})
        return [dict(row) for row in connection.execute(select(eab_keys).order_by(eab_keys.c.kid)).mappings()]

    assert await database.write(unit) == [ROW | {"kid": kid} for kid in "kp"]


async def test_constants_and_repeated_parameters(database: Database) -> None:
    prepared = Prepared(
        update(nodes)
        .where(nodes.c.node == bindparam("of_node"), nodes.c.boot_epoch == 7, nodes.c.node != bindparam("other"))
        .values(boot_epoch=nodes.c.boot_epoch + 1, lease_expires=bindparam("at"))
        .returning(nodes.c.boot_epoch)
    )

    def unit(connection: Connection) -> tuple[int | None, int | None]:
        connection.execute(insert(nodes).values(node="n", holder="h", boot_epoch=7, lease_expires=WHEN))
        parameters = {"of_node": "n", "other": "m", "at": WHEN}
        return prepared.execute(connection, parameters).scalar(), prepared.execute(connection, parameters).scalar()

    assert await database.write(unit) == (8, None)


async def test_a_missing_parameter_is_an_error(database: Database) -> None:
    with pytest.raises(KeyError):
        await database.write(lambda connection: Prepared(INSERT).execute(connection, {"kid": "x"}))


async def test_insert_or_ignore(database: Database) -> None:
    prepared = Prepared(insert_or_ignore(secrets, ["name", "ciphertext"], returning=secrets.c.name))

    def unit(connection: Connection) -> list[str | None]:
        values = {"name": "a", "ciphertext": b"1"}
        return [prepared.execute(connection, values).scalar() for _ in range(2)]

    assert await database.write(unit) == ["a", None]


async def test_every_type_is_read_as_by_sqlalchemy(database: Database) -> None:
    query = select(eab_keys).where(eab_keys.c.kid == bindparam("of_kid"))
    prepared = Prepared(query)

    def unit(connection: Connection) -> tuple[list[Any], list[Any], int, Any]:
        connection.execute(INSERT, ROW)
        rows = prepared.execute(connection, {"of_kid": "k"})
        by_name = rows.one().created_at
        return list(rows), [tuple(each) for each in connection.execute(query, {"of_kid": "k"})], rows.rowcount, by_name

    prepared_rows, rows, _, created_at = await database.write(unit)
    assert prepared_rows == rows
    assert [type(value) for value in prepared_rows[0]] == [type(value) for value in rows[0]]
    assert created_at == WHEN


async def test_errors_are_sqlalchemys_and_show_no_parameters(database: Database) -> None:
    prepared = Prepared(INSERT)

    def unit(connection: Connection) -> None:
        prepared.execute(connection, ROW | {"owner": "a secret"})
        prepared.execute(connection, ROW | {"owner": "a secret"})

    with pytest.raises(IntegrityError) as caught:
        await database.write(unit)
    assert "a secret" not in str(caught.value)
    assert await database.read(lambda connection: connection.execute(select(eab_keys)).all()) == []


async def test_rows_changed_are_counted(database: Database) -> None:
    change = Prepared(update(eab_keys).where(eab_keys.c.kid == bindparam("of_kid")).values(owner="Bob"))

    def unit(connection: Connection) -> tuple[int, int]:
        connection.execute(INSERT, ROW)
        changed, unchanged = (change.execute(connection, {"of_kid": kid}) for kid in "kx")
        return changed.rowcount, unchanged.rowcount

    assert await database.write(unit) == (1, 0)
