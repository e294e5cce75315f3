"""Migrations: they make what the tables say, once, whoever calls, and as a whole or not at all."""

import asyncio
import importlib
import json
import pkgutil
import sqlite3
from base64 import urlsafe_b64encode
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, text

from ca_server import store
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import upgrade as upgrade_module
from ca_server.store.acme_authorizations import authorizations
from ca_server.store.database import Database
from ca_server.store.metadata import metadata
from ca_server.store.migrate import SchemaState, head_revision, known_revisions, migrate, schema_state


def import_all_tables() -> None:
    for module in pkgutil.iter_modules(store.__path__):
        if module.name.endswith("tables"):
            importlib.import_module(f"ca_server.store.{module.name}")


async def test_migrations_agree_with_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))

    import_all_tables()
    assert await database.write(differences) == []


async def test_partial_indexes_are_partial(database: Database) -> None:
    """The comparison above does not look at WHERE."""
    import_all_tables()
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%WHERE%'"
    if database.dialect == "postgresql":
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE indexdef LIKE '%WHERE%'"
    names = await database.read(lambda connection: {row[0] for row in connection.execute(text(query))})
    expected = {
        index.name
        for table in metadata.tables.values()
        for index in table.indexes
        if index.dialect_options[database.dialect]["where"] is not None
    }
    assert "ix_intents_live" in expected
    assert names == expected


async def test_many_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert await schema_state(url) == SchemaState(None, head_revision())
    assert not (tmp_path / "new.db").exists()
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    state = await schema_state(url)
    assert state.is_current
    assert state.current == head_revision()
    await migrate(url)


def test_the_newest_is_told_by_the_files_as_alembic_follows_them() -> None:
    head, *older = upgrade_module.chain()
    assert head_revision() == head
    assert known_revisions() == {head, *older}


async def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    upgrade = upgrade_module.command.upgrade

    def fail(*arguments: Any) -> None:
        upgrade(*arguments)
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(upgrade_module.command, "upgrade", fail)
        with pytest.raises(CaError) as refused:
            await migrate(url)
        assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert (await schema_state(url)).current is None
    await migrate(url)


OF_0008 = """
INSERT INTO acme_accounts (id, tenant, key_thumbprint, status, created_at, contacts, jwk)
VALUES ('one', 'default', 'key', 'valid', 1, '[]', X'7B7D');
INSERT INTO acme_authorizations (id, account_id, type, value, wildcard, status, created_at, expires_at)
VALUES ('open', 'one', 'dns', 'a.test', 0, 'pending', 1, 9000000000000000),
       ('done', 'one', 'dns', 'a.test', 0, 'valid', 1, 9000000000000000);
INSERT INTO acme_challenges (id, authorization_id, account_id, type, token, status, attempts, validated_at)
VALUES ('1', 'open', 'one', 'http-01', 'token', 'pending', 0, NULL),
       ('2', 'open', 'one', 'dns-01', 'token', 'pending', 0, NULL),
       ('3', 'done', 'one', 'http-01', 'token', 'pending', 0, NULL),
       ('4', 'done', 'one', 'dns-01', 'token', 'valid', 1, 7);
"""


async def test_authorizations_of_before_0009_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open ones have the challenges that they had; valid ones know since when they are, and so can be reused."""
    url = f"sqlite:///{tmp_path}/old.db"
    upgrade = upgrade_module.command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(upgrade_module.command, "upgrade", lambda config, _revision: upgrade(config, "0008"))
        await migrate(url)
    assert (await schema_state(url)).current == "0008"
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript(OF_0008)
    await migrate(url)
    database = await Database.open(url)
    found = await database.read(lambda connection: authorizations(connection, ["open", "done"]))
    assert [[each.id for each in one.challenges] for one in found] == [
        ["2", "1"],
        ["4", "3"],
    ]
    query = "SELECT validated_at, token, subdomains FROM acme_authorizations ORDER BY id"
    rows = await database.read(lambda connection: connection.execute(text(query)).all())
    assert [tuple(row) for row in rows] == [(7, None, 0), (None, None, 0)]
    await database.close()


async def test_keys_of_accounts_from_before_get_the_hash_that_the_blocklist_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    upgrade = upgrade_module.command.upgrade
    before = ScriptDirectory.from_config(upgrade_module._config()).get_revision("0012").down_revision
    with monkeypatch.context() as patch:
        patch.setattr(upgrade_module.command, "upgrade", lambda config, _head: upgrade(config, before))
        await migrate(url)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    point = key.public_numbers()
    x, y = (urlsafe_b64encode(each.to_bytes(32, "big")).rstrip(b"=").decode() for each in (point.x, point.y))
    jwks = [json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}).encode(), b"{}"]
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection, connection:
        connection.executemany(
            "INSERT INTO acme_accounts (id, tenant, key_thumbprint, status, created_at, contacts, jwk)"
            " VALUES (?, 'default', ?, 'valid', 0, '[]', ?)",
            [(f"account-{number}", f"thumb-{number}", jwks[number == 1]) for number in range(2003)],
        )
    await migrate(url)
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        told = connection.execute("SELECT spki_sha256, count(*) FROM acme_accounts GROUP BY 1 ORDER BY 2").fetchall()
    assert told == [(None, 1), (sha256(spki).digest(), 2002)]


@pytest.mark.alters_schema
async def test_a_newer_schema_is_refused(database: Database, url: str) -> None:
    await database.write(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None
    )
    state = await schema_state(url)
    assert (state.current, state.is_current) == ("9999", False)
    with pytest.raises(CaError) as refused:
        await migrate(url)
    assert refused.value.kind is ErrorKind.CONFLICT


async def test_migrating_again_changes_nothing(url: str) -> None:
    await asyncio.gather(migrate(url), migrate(url))
    assert (await schema_state(url)).is_current


async def test_a_database_that_is_away() -> None:
    for call in (migrate, schema_state):
        with pytest.raises(CaError) as refused:
            await call("postgresql://ca@127.0.0.1:1/ca")
        assert refused.value.kind is ErrorKind.UNAVAILABLE
