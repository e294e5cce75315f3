"""The rights of PostgreSQL's roles name every table and every event, and come from URLs of one database."""

import re
from pathlib import Path

from ca_server.domain.audit import EventType
from ca_server.store.metadata import metadata
from ca_server.store.roles import FRONT_EVENTS, RIGHTS, Roles, creation_statements, grant_statements

ROOT = Path(__file__).resolve().parents[3]


def test_every_table_is_thought_of() -> None:
    assert {table.name for table in RIGHTS} == set(metadata.tables)


def test_every_event_that_front_ends_make_is_a_fronts() -> None:
    sources = (ROOT / "protocols").rglob("*.py")
    made = {name for file in sources for name in re.findall(r"EventType\.([A-Z_]+)", file.read_text("utf-8"))}
    assert {each.name for each in FRONT_EVENTS} == made
    assert EventType.ISSUANCE_STORED not in FRONT_EVENTS


def test_roles_are_those_of_the_urls() -> None:
    url = "postgresql://core@db/ca"
    assert Roles.of(url, owner_url="postgresql://o@db/ca", front_url="postgresql://f@db/ca") == Roles("o", "core", "f")
    alone = Roles.of(url)
    assert alone == Roles("core", "core", "core")
    assert not alone.separated
    assert Roles.of("sqlite:////ca.db") is None
    assert Roles.of("postgresql:///ca") is None


def test_names_are_quoted_where_they_must_be() -> None:
    roles = Roles("o", "ca-server-core", 'a"b')
    for statement in (*creation_statements(roles, "c a"), *grant_statements(roles, "Public")):
        assert "ca-server-core" not in statement.replace('"ca-server-core"', "")
        assert 'a"b' not in statement.replace('"a""b"', "")
        assert "c a" not in statement.replace('"c a"', "")


def test_the_owner_is_taken_no_rights() -> None:
    """With two roles the core owns the tables."""
    assert all(
        "core" not in statement or "POLICY" in statement
        for statement in grant_statements(Roles("core", "core", "front"), "public")
    )
