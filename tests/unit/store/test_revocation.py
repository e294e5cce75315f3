"""Revocation and CRLs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from ca_server.domain.certificates import BlockedKey, Crl, RevocationReason, RevokedEntry
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import revocation
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.revocation import SqlRevocationStore

Reason = RevocationReason


@pytest.fixture
def store(world: Any) -> SqlRevocationStore:
    return SqlRevocationStore(world.database)


@pytest.fixture
async def cores(url: str, seen: list[str]) -> AsyncIterator[list[Database]]:
    """The databases of two cores: each commits in batches of its own."""
    opened = [await Database.open(url, observe=lambda name, _seconds, _count: seen.append(name)) for _ in range(2)]
    yield opened
    for database in opened:
        await database.close()


@pytest.fixture
def seen() -> list[str]:
    """What the two databases observed."""
    return []


def crl(world: Any, number: int, **changes: Any) -> Crl:
    values = {
        "issuer": "issuing",
        "issuer_key_id": world.issuing.key.id,
        "number": number,
        "partition": 0,
        "this_update": world.now,
        "next_update": world.now + timedelta(days=1),
        "der": b"crl %d" % number,
    }
    return Crl(**(values | changes))


async def entries(world: Any, store: SqlRevocationStore, now: Any = None) -> tuple[RevokedEntry, ...]:
    return await store.revoked_entries("issuing", world.issuing.key.id, now or world.now)


async def test_a_revocation_is_on_record(world: Any, store: SqlRevocationStore) -> None:
    record = await world.issue("a")
    await world.issue("b")
    entry = RevokedEntry(record.serial, world.now, Reason.KEY_COMPROMISE, world.now - timedelta(days=3))
    assert await store.revoke(entry, "issuing", []) is None
    stored = await SqlIssuanceStore(world.database).certificate("issuing", record.serial)
    assert stored is not None
    assert (stored.revoked_at, stored.revocation_reason) == (world.now, Reason.KEY_COMPROMISE)
    assert stored.invalidity_date == entry.invalidity_date
    assert await entries(world, store) == (entry,)


async def test_a_compromised_key_is_blocked_with_the_revocation(world: Any, store: SqlRevocationStore) -> None:
    certificates = SqlIssuanceStore(world.database)
    kept = await world.issue("a", spki_sha256=b"a" * 32)
    await store.revoke(RevokedEntry(kept.serial, world.now, Reason.SUPERSEDED), "issuing", [])
    assert await certificates.blocked_keys() == ()
    for record in (kept, await world.issue("b", spki_sha256=b"b" * 32)):
        await store.revoke(RevokedEntry(record.serial, world.now, Reason.KEY_COMPROMISE), "issuing", [])
        assert record.spki_sha256 in {key.spki_sha256 for key in await certificates.blocked_keys()}


@pytest.mark.parametrize(
    ("standing", "wanted", "changes"),
    [
        (Reason.SUPERSEDED, Reason.SUPERSEDED, False),
        (Reason.SUPERSEDED, Reason.UNSPECIFIED, False),
        (Reason.SUPERSEDED, Reason.CERTIFICATE_HOLD, False),
        (Reason.SUPERSEDED, Reason.REMOVE_FROM_CRL, False),
        (Reason.SUPERSEDED, Reason.KEY_COMPROMISE, True),
        (Reason.KEY_COMPROMISE, Reason.KEY_COMPROMISE, False),
        (Reason.KEY_COMPROMISE, Reason.SUPERSEDED, False),
        (Reason.CERTIFICATE_HOLD, Reason.SUPERSEDED, True),
        (Reason.CERTIFICATE_HOLD, Reason.KEY_COMPROMISE, True),
        (Reason.CERTIFICATE_HOLD, Reason.CERTIFICATE_HOLD, False),
    ],
)
async def test_a_second_revocation(
    world: Any, store: SqlRevocationStore, standing: Reason, wanted: Reason, changes: bool
) -> None:
    record = await world.issue("a")
    first = RevokedEntry(record.serial, world.now, standing)
    second = RevokedEntry(record.serial, world.now + timedelta(hours=1), wanted)
    await store.revoke(first, "issuing", [])
    assert await store.revoke(second, "issuing", []) == (None if changes else first)
    # It has been revoked since the first.
    assert await entries(world, store) == (RevokedEntry(record.serial, world.now, wanted if changes else standing),)


async def test_a_hold_is_lifted(world: Any, store: SqlRevocationStore) -> None:
    record = await world.issue("a")
    lift = RevokedEntry(record.serial, world.now, Reason.REMOVE_FROM_CRL)
    with pytest.raises(CaError) as refused:
        await store.revoke(lift, "issuing", [])
    assert refused.value.kind is ErrorKind.BAD_REVOCATION_REASON
    await store.revoke(RevokedEntry(record.serial, world.now, Reason.CERTIFICATE_HOLD), "issuing", [])
    assert await store.revoke(lift, "issuing", []) is None
    assert await entries(world, store) == ()
    assert await SqlIssuanceStore(world.database).certificate("issuing", record.serial) == record


@pytest.mark.parametrize(("issuer", "serial"), [("issuing", "ffff"), ("root", None), ("nobody", None)])
async def test_what_is_not_there_cannot_be_revoked(
    world: Any, store: SqlRevocationStore, issuer: str, serial: str | None
) -> None:
    record = await world.issue("a")
    with pytest.raises(CaError) as refused:
        await store.revoke(RevokedEntry(serial or record.serial, world.now, Reason.UNSPECIFIED), issuer, [])
    assert refused.value.kind is ErrorKind.NOT_FOUND


async def test_no_event_no_revocation(world: Any, store: SqlRevocationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_connection: object, _events: object) -> None:
        raise CaError(ErrorKind.INTERNAL, "no event")

    record = await world.issue("a")
    number = await store.reserve_crl("issuing", world.issuing.key.id, 0, [])
    monkeypatch.setattr(revocation, "insert_events", broken)
    for change in (
        store.revoke(RevokedEntry(record.serial, world.now, Reason.UNSPECIFIED), "issuing", [world.event()]),
        store.reserve_crl("issuing", world.issuing.key.id, 0, [world.event()]),
        store.publish_crl(crl(world, number), [world.event()]),
    ):
        with pytest.raises(CaError, match="no event"):
            await change
    monkeypatch.undo()
    assert await entries(world, store) == ()
    assert await store.latest_crl("issuing") is None
    assert await store.reserve_crl("issuing", world.issuing.key.id, 0, []) == number + 1


async def test_crl_numbers_grow_by_key_and_partition_on_all_nodes(
    world: Any, store: SqlRevocationStore, url: str
) -> None:
    other = await Database.open(url)
    stores = [store, SqlRevocationStore(other)]
    key = world.issuing.key.id
    numbers = await asyncio.gather(*(stores[n % 2].reserve_crl("issuing", key, 0, []) for n in range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert await store.reserve_crl("issuing", key, 1, []) == 1
    assert await store.reserve_crl("root", world.root.key.id, 0, []) == 1
    await other.close()


async def test_only_a_key_of_the_issuer_has_crls(world: Any, store: SqlRevocationStore) -> None:
    for call in (
        store.reserve_crl("issuing", world.root.key.id, 0, []),
        store.revoked_entries("issuing", world.root.key.id, world.now),
    ):
        with pytest.raises(CaError) as refused:
            await call
        assert refused.value.kind is ErrorKind.NOT_FOUND


async def test_the_highest_number_stands(world: Any, store: SqlRevocationStore) -> None:
    key = world.issuing.key.id
    assert await store.latest_crl("issuing") is None
    for _ in range(3):
        await store.reserve_crl("issuing", key, 0, [])
    assert await store.publish_crl(crl(world, 1), [])
    assert await store.publish_crl(crl(world, 3), [])
    assert not await store.publish_crl(crl(world, 2), [])
    assert not await store.publish_crl(crl(world, 3, der=b"another"), [])
    assert await store.latest_crl("issuing") == crl(world, 3)
    assert await store.latest_crl("issuing", key) == crl(world, 3)
    assert await store.latest_crl("issuing", key, 1) is None
    assert await store.latest_crl("root") is None
    with pytest.raises(CaError) as refused:
        await store.publish_crl(crl(world, 4), [])
    assert refused.value.kind is ErrorKind.CONFLICT


async def publish(world: Any, store: SqlRevocationStore, at: Any) -> tuple[str, ...]:
    """Make a list as the core does, and return the serials on it."""
    number = await store.reserve_crl("issuing", world.issuing.key.id, 0, [])
    listed = await entries(world, store, at)
    await store.publish_crl(crl(world, number, this_update=at), [])
    return tuple(entry.serial for entry in listed)


async def test_a_revoked_certificate_is_on_one_list_after_it_expired(world: Any, store: SqlRevocationStore) -> None:
    """RFC 5280 section 3.3."""
    record = await world.issue("a", not_after=world.now + timedelta(hours=1))
    lasting = await world.issue("b")
    await publish(world, store, world.now)
    for serial in (record.serial, lasting.serial):
        await store.revoke(RevokedEntry(serial, world.now, Reason.SUPERSEDED), "issuing", [])
    after = world.now + timedelta(hours=2)
    assert await publish(world, store, world.now) == (record.serial, lasting.serial)
    assert await publish(world, store, after) == (record.serial, lasting.serial)
    assert await publish(world, store, after) == (lasting.serial,)


async def test_revoked_just_before_expiry_between_drawing_and_publishing(world: Any, store: SqlRevocationStore) -> None:
    """A list whose number was drawn before the revocation may lack the entry, and closes nothing."""
    record = await world.issue("a", not_after=world.now + timedelta(hours=1))
    after = world.now + timedelta(hours=2)
    number = await store.reserve_crl("issuing", world.issuing.key.id, 0, [])
    await store.revoke(RevokedEntry(record.serial, world.now, Reason.SUPERSEDED), "issuing", [])
    await store.publish_crl(crl(world, number, this_update=after), [])
    assert await publish(world, store, after) == (record.serial,)
    assert await publish(world, store, after) == ()


async def test_lists_of_one_partition_close_nothing_of_another(world: Any, store: SqlRevocationStore) -> None:
    record = await world.issue("a", not_after=world.now + timedelta(hours=1), crl_partition=1)
    await store.revoke(RevokedEntry(record.serial, world.now, Reason.SUPERSEDED), "issuing", [])
    after = world.now + timedelta(hours=2)
    assert await publish(world, store, after) == (record.serial,)
    assert await publish(world, store, after) == (record.serial,)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_entries_come_from_the_index(world: Any) -> None:
    """A list never scans all certificates (a planner that counts rows would read a table as small as this whole)."""
    statement = str(revocation._ENTRIES.compile(compile_kwargs={"literal_binds": False})).replace(":key_id", "1")
    plan = await world.database.read(
        lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
    )
    assert any("ix_certificates_on_crl" in row[-1] for row in plan), plan


async def test_what_no_list_shows_is_found(world: Any, store: SqlRevocationStore) -> None:
    """After a crash nobody remembers that a list was wanted: the store knows."""
    key = world.issuing.key.id

    async def change(reason: Reason) -> None:
        assert await store.revoke(RevokedEntry(record.serial, world.now, reason), "issuing", []) is None

    record = await world.issue("a")
    await publish(world, store, world.now)
    assert not await store.has_unlisted(key)
    for reason in (Reason.CERTIFICATE_HOLD, Reason.REMOVE_FROM_CRL, Reason.SUPERSEDED, Reason.KEY_COMPROMISE):
        await change(reason)
        assert await store.has_unlisted(key), reason
        assert not await store.has_unlisted(key, 1)
        assert not await store.has_unlisted(world.root.key.id)
        await publish(world, store, world.now)
        assert not await store.has_unlisted(key), reason


async def test_a_list_that_was_drawn_before_may_not_show_it(world: Any, store: SqlRevocationStore) -> None:
    key = world.issuing.key.id
    record = await world.issue("a")
    number = await store.reserve_crl("issuing", key, 0, [])
    await store.revoke(RevokedEntry(record.serial, world.now, Reason.SUPERSEDED), "issuing", [])
    await store.publish_crl(crl(world, number), [])
    assert await store.has_unlisted(key)


async def test_changes_come_from_their_index(world: Any) -> None:
    """On PostgreSQL too, told not to read small tables whole."""
    values = {"key_id": 1, "of_partition": 0}

    def explain(connection: Any) -> str:
        if connection.dialect.name == "sqlite":
            prefix = "EXPLAIN QUERY PLAN "
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            prefix = "EXPLAIN "
        statement = revocation._UNLISTED.params(values).compile(connection, compile_kwargs={"literal_binds": True})
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(prefix + str(statement)))

    plan = await world.database.read(explain)
    assert "ix_certificates_changed" in plan, plan


# --- Two cores ----------------------------------------------------------------------------------------------------


async def at_both(cores: list[Database], acts: list[Callable[[Database], Awaitable[object]]]) -> None:
    """The same acts at two cores at once, at the second in the opposite order."""
    both = ((cores[0], acts), (cores[1], acts[::-1]))
    await asyncio.gather(*(act(core) for core, order in both for act in order))


async def test_the_same_certificates_revoked_in_opposite_orders(
    world: Any, cores: list[Database], seen: list[str]
) -> None:
    """PostgreSQL ends a deadlock by aborting one of the transactions, whose units are then tried again."""

    def revoking(serial: str) -> Callable[[Database], Awaitable[object]]:
        entry = RevokedEntry(serial, world.now, Reason.SUPERSEDED)
        return lambda core: SqlRevocationStore(core).revoke(entry, "issuing", [])

    for turn in range(10):
        records = [await world.issue(f"{turn}-{number}") for number in range(10)]
        await at_both(cores, [revoking(record.serial) for record in records])
    assert "retry" not in seen
    assert len(await entries(world, SqlRevocationStore(world.database))) == 100


async def test_revocations_and_numbers_of_lists_at_two_cores(
    world: Any, cores: list[Database], seen: list[str]
) -> None:
    """A revocation looks at the number that a list then raises: two that both look can't both raise it."""
    key_id = world.issuing.key.id
    await SqlRevocationStore(world.database).reserve_crl("issuing", key_id, 0, [])

    async def revoke_and_draw(core: Database, serial: str) -> int:
        store = SqlRevocationStore(core)
        entry = RevokedEntry(serial, world.now, Reason.SUPERSEDED)
        _, number = await asyncio.gather(
            store.revoke(entry, "issuing", []), store.reserve_crl("issuing", key_id, 0, [])
        )
        return number

    numbers = []
    for turn in range(20):
        records = [await world.issue(f"{turn}-{number}") for number in range(2)]
        pairs = zip(cores, records, strict=True)
        numbers += await asyncio.gather(*(revoke_and_draw(core, record.serial) for core, record in pairs))
    assert "retry" not in seen
    assert sorted(numbers) == list(range(2, 42))


async def test_keys_blocked_in_opposite_orders(world: Any, cores: list[Database], seen: list[str]) -> None:
    def blocking(spki: bytes) -> Callable[[Database], Awaitable[object]]:
        return lambda core: SqlIssuanceStore(core).block_spki(BlockedKey(spki, "lost", world.now), [])

    for turn in range(10):
        await at_both(cores, [blocking(bytes([turn, number]) * 16) for number in range(20)])
    assert "retry" not in seen
    assert len(await SqlIssuanceStore(world.database).blocked_keys()) == 200


async def test_enrollments_reserved_in_opposite_orders(world: Any, cores: list[Database], seen: list[str]) -> None:
    """One of the two gets each; the other is told that it came second."""
    refused = []

    def reserving(transaction: str) -> Callable[[Database], Awaitable[object]]:
        async def act(core: Database) -> None:
            try:
                await SqlIssuanceStore(core).reserve(world.intent(transaction), b"c" * 32, [])
            except CaError as error:
                refused.append(error.kind)

        return act

    for turn in range(10):
        await at_both(cores, [reserving(f"{turn}-{number}") for number in range(20)])
    assert "retry" not in seen
    assert refused == [ErrorKind.CONFLICT] * 200


async def test_leases_asked_for_in_opposite_orders(world: Any, cores: list[Database], seen: list[str]) -> None:
    def asking(name: str) -> Callable[[Database], Awaitable[object]]:
        return lambda core: SqlCoordinationStore(core).acquire_lease(
            name, f"core-{cores.index(core)}", world.now, timedelta(seconds=30)
        )

    for _ in range(20):
        await at_both(cores, [asking(f"lease-{number}") for number in range(10)])
    assert "retry" not in seen
