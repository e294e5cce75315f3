"""Enrollments, intents and certificates: what the port's contract promises, on every database."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from ca_server.domain.certificates import BlockedKey, RevocationReason, RevokedEntry, StatusValue
from ca_server.domain.enrollment import EnrollmentOutcome, Fence
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import intents as intents_module
from ca_server.store import issuance
from ca_server.store.certificates import issued_for
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.revocation import SqlRevocationStore
from ca_server.store.tables import certificate_names, certificates, enrollments, intents

CSR = b"c" * 32


@pytest.fixture
def store(world: Any) -> SqlIssuanceStore:
    return SqlIssuanceStore(world.database)


async def count(database: Database, table: Any) -> int:
    return await database.read(lambda connection: connection.execute(select(func.count()).select_from(table)).scalar())


async def refused(awaitable: Any, kind: ErrorKind = ErrorKind.CONFLICT) -> None:
    with pytest.raises(CaError) as error:
        await awaitable
    assert error.value.kind is kind


async def test_an_enrollment_from_nothing_to_issued(world: Any, store: SqlIssuanceStore) -> None:
    key = world.key()
    assert (await store.enrollment(key)).outcome is EnrollmentOutcome.NONE
    intent = world.intent()
    await store.reserve(intent, CSR, [])
    state = await store.enrollment(key)
    assert (state.outcome, state.csr_sha256, state.intent) == (EnrollmentOutcome.LIVE, CSR, intent)
    assert await world.database.read(lambda connection: issued_for(connection, key)) is None

    record = world.record(intent)
    await store.complete(intent.id, intent.fence, record, [])
    state = await store.enrollment(key)
    assert (state.outcome, state.csr_sha256, state.intent) == (EnrollmentOutcome.ISSUED, CSR, None)
    issued = state.certificate
    assert issued is not None
    assert (issued.serial, issued.issuer, issued.certificate_der) == (intent.serial, "issuing", record.certificate_der)
    assert issued.chain == (world.issuing.key.certificate_der,)
    assert await world.database.read(lambda connection: issued_for(connection, key)) == issued
    assert await store.certificate("issuing", intent.serial) == record


async def test_a_certificate_of_a_root_has_no_chain(world: Any, store: SqlIssuanceStore) -> None:
    intent = world.intent(issuer="root", issuer_key_id=world.root.key.id)
    await store.reserve(intent, CSR, [])
    await store.complete(intent.id, intent.fence, world.record(intent), [])
    state = await store.enrollment(intent.enrollment)
    assert state.certificate is not None
    assert state.certificate.chain == ()


@pytest.mark.parametrize(
    "other",
    [
        {"transaction_key": "another"},
        {"requester_scope": "another"},
        {"profile": "another"},
        {"epoch": 1},
        {"tenant": "another"},
    ],
)
async def test_each_part_of_the_key_makes_another_enrollment(
    world: Any, store: SqlIssuanceStore, other: dict[str, Any]
) -> None:
    await world.issue("order-1")
    assert (await store.enrollment(world.key(**other))).outcome is EnrollmentOutcome.NONE
    intent = world.intent(enrollment=world.key(**other))
    await store.reserve(intent, CSR, [])
    assert (await store.enrollment(world.key(**other))).outcome is EnrollmentOutcome.LIVE


REFUSED_RESERVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "the enrollment has a live intent": lambda world, _first: world.intent("live"),
    "the enrollment has a certificate": lambda world, _first: world.intent("issued"),
    "the serial is reserved": lambda world, first: world.intent("new", serial=first.serial),
    "an older boot": lambda world, _first: world.intent("new", fence=replace(world.fence, boot_epoch=0)),
    "a boot that never was": lambda world, _first: world.intent("new", fence=replace(world.fence, boot_epoch=9)),
    "an unknown node": lambda world, _first: world.intent("new", fence=Fence("elsewhere", 1)),
    "an unknown key": lambda world, _first: world.intent("new", issuer_key_id=99),
    "a key of another issuer": lambda world, _first: world.intent("new", issuer_key_id=world.root.key.id),
    "an unknown issuer": lambda world, _first: world.intent("new", issuer="nobody"),
}


@pytest.mark.parametrize("case", REFUSED_RESERVATIONS)
async def test_reservations_that_are_refused_leave_nothing(world: Any, store: SqlIssuanceStore, case: str) -> None:
    await world.issue("issued")
    first = world.intent("live")
    await store.reserve(first, CSR, [])
    before = [await count(world.database, table) for table in (enrollments, intents)]
    await refused(store.reserve(REFUSED_RESERVATIONS[case](world, first), CSR, []))
    assert [await count(world.database, table) for table in (enrollments, intents)] == before


async def test_another_csr_is_refused(world: Any, store: SqlIssuanceStore) -> None:
    intent = world.intent()
    await store.reserve(intent, CSR, [])
    await store.abandon(intent.id, "test", [])
    await refused(store.reserve(world.intent(), b"d" * 32, []))
    await store.reserve(world.intent(), CSR, [])


async def test_a_serial_is_never_used_again(world: Any, store: SqlIssuanceStore) -> None:
    abandoned = world.intent("a")
    await store.reserve(abandoned, CSR, [])
    assert await store.abandon(abandoned.id, "token away", [])
    record = await world.issue("b")
    await refused(store.reserve(world.intent("c", serial=abandoned.serial), CSR, []))
    await refused(store.reserve(world.intent("c", serial=record.serial), CSR, []))
    elsewhere = world.intent("c", serial=record.serial, issuer="root", issuer_key_id=world.root.key.id)
    await store.reserve(elsewhere, CSR, [])  # a serial is unique under its issuer only


async def test_of_many_concurrent_reservations_one_wins(world: Any, store: SqlIssuanceStore, url: str) -> None:
    """Also between two processes, where no writer task orders them."""
    other = await Database.open(url)
    stores = [store, SqlIssuanceStore(other)]
    tries = [stores[n % 2].reserve(world.intent("same"), CSR, []) for n in range(20)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert results.count(None) == 1
    assert all(isinstance(r, CaError) and r.kind is ErrorKind.CONFLICT for r in results if r is not None)
    await other.close()


async def test_reserving_races_with_completing(world: Any, store: SqlIssuanceStore, url: str) -> None:
    """Whichever is first, there is one certificate, and no live intent beside it."""
    other = await Database.open(url)
    for n in range(10):
        first = world.intent(f"race-{n}")
        await store.reserve(first, CSR, [])
        await asyncio.gather(
            store.complete(first.id, first.fence, world.record(first), []),
            SqlIssuanceStore(other).reserve(world.intent(f"race-{n}"), CSR, []),
            return_exceptions=True,
        )
        assert (await store.enrollment(world.key(f"race-{n}"))).outcome is EnrollmentOutcome.ISSUED
    assert await store.live_intents("node", 99) == ()
    await other.close()


async def test_completing_is_fenced(world: Any, store: SqlIssuanceStore) -> None:
    intent = world.intent()
    await store.reserve(intent, CSR, [])
    record = world.record(intent)
    await refused(store.complete(intent.id, replace(world.fence, boot_epoch=2), record, []))
    await refused(store.complete(intent.id, Fence("other", 1), record, []))
    await refused(store.complete("unknown", world.fence, record, []))
    await SqlCoordinationStore(world.database).begin_boot("node", "home", world.now, timedelta(seconds=30))
    await refused(store.complete(intent.id, world.fence, record, []))
    assert await count(world.database, certificates) == 0


@pytest.mark.parametrize("change", [{"serial": "bad0"}, {"issuer_key_id": 99}])
async def test_only_what_was_reserved_is_stored(world: Any, store: SqlIssuanceStore, change: dict[str, Any]) -> None:
    intent = world.intent()
    await store.reserve(intent, CSR, [])
    await refused(store.complete(intent.id, intent.fence, replace(world.record(intent), **change), []))
    assert (await store.enrollment(intent.enrollment)).outcome is EnrollmentOutcome.LIVE


async def test_an_intent_is_settled_once(world: Any, store: SqlIssuanceStore) -> None:
    abandoned = world.intent("a")
    await store.reserve(abandoned, CSR, [])
    assert await store.abandon(abandoned.id, "crash", []) is True
    assert await store.abandon(abandoned.id, "crash", []) is False
    await refused(store.complete(abandoned.id, abandoned.fence, world.record(abandoned), []))
    assert (await store.enrollment(abandoned.enrollment)).outcome is EnrollmentOutcome.NONE

    completed = world.intent("b")
    await store.reserve(completed, CSR, [])
    await store.complete(completed.id, completed.fence, world.record(completed), [])
    assert await store.abandon(completed.id, "late", []) is False
    await refused(store.complete(completed.id, completed.fence, world.record(completed), []))


@pytest.mark.parametrize("step", ["reserve", "complete", "abandon"])
async def test_no_event_no_change(
    world: Any, store: SqlIssuanceStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(_connection: object, _events: object) -> None:
        raise CaError(ErrorKind.INTERNAL, "no event")

    intent = world.intent()
    if step != "reserve":
        await store.reserve(intent, CSR, [])
    before = await store.enrollment(intent.enrollment)
    for module in (intents_module, issuance):
        monkeypatch.setattr(module, "insert_events", broken)
    steps = {
        "reserve": lambda: store.reserve(intent, CSR, [world.event()]),
        "complete": lambda: store.complete(intent.id, intent.fence, world.record(intent), [world.event()]),
        "abandon": lambda: store.abandon(intent.id, "test", [world.event()]),
    }
    await refused(steps[step](), ErrorKind.INTERNAL)
    assert await store.enrollment(intent.enrollment) == before
    assert await count(world.database, certificate_names) == 0


async def test_events_are_given_once_and_only_for_changes(
    world: Any, store: SqlIssuanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    for module in (intents_module, issuance):
        monkeypatch.setattr(module, "insert_events", lambda _connection, events: given.extend(e.id for e in events))
    intent = world.intent()
    reserved, late, again = world.event(), world.event(), world.event()
    await store.reserve(intent, CSR, [reserved])
    await store.abandon(intent.id, "test", [late])
    await store.abandon(intent.id, "test", [again])
    assert given == [reserved.id, late.id]


async def test_intents_of_earlier_boots_and_of_dead_nodes(world: Any, store: SqlIssuanceStore) -> None:
    coordination = SqlCoordinationStore(world.database)
    mine = world.intent("mine")
    await store.reserve(mine, CSR, [])
    await world.issue("settled")
    dead_fence = await coordination.begin_boot("dead", "home", world.now - timedelta(hours=1), timedelta(seconds=30))
    orphan = world.intent("orphan", fence=dead_fence)
    await store.reserve(orphan, CSR, [])
    assert await store.live_intents("node", world.fence.boot_epoch) == ()
    assert await store.live_intents("node", world.fence.boot_epoch + 1) == (mine,)
    assert await store.orphaned_intents(world.now) == (orphan,)
    assert await store.abandon(orphan.id, "node dead", [])
    assert await store.orphaned_intents(world.now) == ()


async def test_serial_status(world: Any, store: SqlIssuanceStore) -> None:
    good = await world.issue("good")
    revoked = await world.issue("revoked")
    entry = RevokedEntry(revoked.serial, world.now, RevocationReason.SUPERSEDED)
    await SqlRevocationStore(world.database).revoke(entry, "issuing", [])
    reserved, abandoned = world.intent("reserved"), world.intent("abandoned")
    await store.reserve(reserved, CSR, [])
    await store.reserve(abandoned, CSR, [])
    await store.abandon(abandoned.id, "test", [])
    expected = {
        ("issuing", good.serial): StatusValue.GOOD,
        ("issuing", revoked.serial): StatusValue.REVOKED,
        ("issuing", reserved.serial): StatusValue.RESERVED,
        ("issuing", abandoned.serial): StatusValue.ABANDONED,
        ("issuing", "ffff"): StatusValue.UNKNOWN,
        ("root", good.serial): StatusValue.UNKNOWN,
        ("nobody", good.serial): StatusValue.UNKNOWN,
    }
    assert {key: (await store.serial_status(*key)).value for key in expected} == expected
    status = await store.serial_status("issuing", revoked.serial)
    assert (status.revoked_at, status.reason) == (world.now, RevocationReason.SUPERSEDED)


async def test_samples_and_keys(world: Any, store: SqlIssuanceStore) -> None:
    old = await world.issue("old", issued_at=world.now - timedelta(days=2), spki_sha256=b"o" * 32)
    new = [await world.issue(f"new-{n}") for n in range(4)]
    sample = await store.sample_certificates(world.now - timedelta(days=1), 3)
    assert len(sample) == len({record.serial for record in sample}) == 3
    assert all(record in new for record in sample)
    assert len(await store.sample_certificates(world.now - timedelta(days=3), 10)) == 5
    assert await store.certificates_by_spki(b"o" * 32) == (old,)
    assert await store.certificates_by_spki(b"k" * 32) == tuple(new)
    assert await store.certificates_by_spki(b"x" * 32) == ()


async def test_the_blocklist(world: Any, store: SqlIssuanceStore) -> None:
    assert await store.blocked_keys() == ()
    key = BlockedKey(b"k" * 32, "compromised", world.now)
    assert await store.block_spki(key, [])
    assert not await store.block_spki(replace(key, reason="again"), [])
    assert await store.blocked_keys() == (key,)
    assert await store.unblock_spki(b"k" * 32, [])
    assert not await store.unblock_spki(b"k" * 32, [])
    assert await store.blocked_keys() == ()
