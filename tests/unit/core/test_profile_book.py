"""Profiles in force and pinned ones."""

from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.audit import EventFactory
from ca_server.core.profiles import ProfileBook
from ca_server.domain.errors import CaError
from ca_server.domain.profiles import Profile, load_profile
from ca_server.store.audit import SqlAuditStore
from ca_server.store.database import Database
from ca_server.store.profiles import SqlProfileStore

BODY = """
frontends = ["acme"]
[names]
dns_suffixes = ["test"]
[keys]
allowed = ["ec-p256"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["server_auth"]
"""
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def profile(name: str, days: int = 90) -> Profile:
    return load_profile(name, BODY.replace("90d", f"{days}d"), where=name)


@pytest.fixture
def events() -> EventFactory:
    return EventFactory(node="node", process="core", software="test", configuration="test")


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


async def changes(database: Database) -> list[tuple[str, str]]:
    from ca_server.core.audit import leaf_members
    from ca_server.domain.audit import EventType

    found = await SqlAuditStore(database).tail(100, EventType.PROFILE_CHANGED)
    members = [leaf_members(event.leaf) for event in found]
    return [(member["profile"], member["extra"]["content_hash"]) for member in members]


@pytest.fixture
async def database(url: str):
    opened = await Database.open(url)
    yield opened
    await opened.close()


async def test_each_change_is_on_record_also_the_way_back(database: Database, events: EventFactory) -> None:
    book = ProfileBook(SqlProfileStore(database), {})
    first, second, other = profile("a"), profile("a", 30), profile("b")
    assert await book.put_in_force({"a": first, "b": other}, events) == ("a", "b")
    assert await book.put_in_force({"a": first, "b": other}, events) == ()
    assert await book.put_in_force({"a": second, "b": other}, events) == ("a",)
    assert await book.put_in_force({"a": first}, events) == ("a", "b")
    assert await changes(database) == [
        ("a", first.hash),
        ("b", other.hash),
        ("a", second.hash),
        ("a", first.hash),
        ("b", "withdrawn"),
    ]
    assert book.names() == ("a",)


async def test_what_can_t_be_committed_is_not_in_force(url: str, events: EventFactory) -> None:
    database = await Database.open(url)
    book = ProfileBook(SqlProfileStore(database), {})
    await book.put_in_force({"a": profile("a")}, events)
    await database.close()
    with pytest.raises(CaError):
        await book.put_in_force({"a": profile("a", 30)}, events)
    assert book.get("a") == profile("a")


async def test_a_pinned_profile_is_honoured_for_a_time(database: Database, events: EventFactory) -> None:
    clock = Clock()
    book = ProfileBook(SqlProfileStore(database), {}, pin_lifetime=timedelta(days=7), clock=clock)
    old, new = profile("a"), profile("a", 30)
    await book.put_in_force({"a": old}, events)
    await book.put_in_force({"a": new}, events)
    assert await book.pinned("a", "") == new
    assert await book.pinned("a", new.hash) == new
    assert await book.pinned("a", old.hash) == old
    clock.now += timedelta(days=8)
    with pytest.raises(CaError) as refused:
        await book.pinned("a", old.hash)
    assert refused.value.rule == "profile.pinned"
    for name, digest, rule in (("a", "0" * 64, "profile.pinned"), ("b", old.hash, "profile.unknown")):
        with pytest.raises(CaError) as refused:
            await book.pinned(name, digest)
        assert refused.value.rule == rule


async def test_a_front_follows_what_the_core_has_committed(database: Database, events: EventFactory) -> None:
    store = SqlProfileStore(database)
    core, front = ProfileBook(store, {}), ProfileBook(store, {})
    await core.put_in_force({"a": profile("a")}, events)
    assert await front.follow()
    assert front.get("a") == profile("a")
    assert not await front.follow()
    await core.put_in_force({"b": profile("b")}, events)
    assert await front.follow()
    assert front.names() == ("b",)
