"""Issuers, profiles, leases and external account keys."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca_server.core.ports import StoredProfile
from ca_server.domain.certificates import Issuer, IssuerKind
from ca_server.domain.enrollment import Fence
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import issuers as issuers_module
from ca_server.store import profiles as profiles_module
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.profiles import SqlProfileStore

LEASE = timedelta(seconds=30)
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def renamed(issuer: Issuer, name: str, **changes: Any) -> Issuer:
    key = replace(issuer.key, issuer=name, label=f"{name}-1", certificate_der=b"\x30\x02" + name[:2].encode())
    return replace(issuer, name=name, key=key, **changes)


async def test_issuers_come_back_as_created(world: Any) -> None:
    store = SqlIssuerStore(world.database)
    root, issuing = await store.issuers()
    assert (root, issuing) == (world.root, world.issuing)
    assert (root.kind, root.parent, root.key.chain) == (IssuerKind.ROOT, None, ())
    assert (issuing.parent, issuing.key.chain) == ("root", (root.key.certificate_der,))
    assert root.key.id != issuing.key.id
    assert await store.issuer_keys("issuing") == (issuing.key,)
    assert await store.issuer_keys("nobody") == ()


async def test_the_ca_certificates_are_in_the_inventory(world: Any) -> None:
    """A root's own certificate under its own new key, an issuing CA's under its parent's."""
    store, issuance = SqlIssuerStore(world.database), SqlIssuanceStore(world.database)
    intent = world.intent()
    own = world.record(replace(intent, issuer="second", issuer_key_id=0, serial="aa"))
    second = await store.create_issuer(renamed(world.root, "second"), own, [])
    below = world.record(replace(intent, issuer="second", issuer_key_id=second.key.id, serial="bb"))
    await store.create_issuer(renamed(world.issuing, "third", parent="second"), below, [])
    assert await issuance.certificate("second", "aa") == replace(own, issuer_key_id=second.key.id)
    assert await issuance.certificate("second", "bb") == below
    taken = world.intent(serial="bb", issuer="second", issuer_key_id=second.key.id)
    with pytest.raises(CaError, match="serial"):
        await issuance.reserve(taken, b"c" * 32, [])


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("root", {}, ErrorKind.CONFLICT),
        ("another", {"parent": "nobody"}, ErrorKind.NOT_FOUND),
    ],
)
async def test_issuers_that_are_refused(world: Any, name: str, changes: dict[str, Any], kind: ErrorKind) -> None:
    with pytest.raises(CaError) as refused:
        await SqlIssuerStore(world.database).create_issuer(renamed(world.root, name, **changes), None, [])
    assert refused.value.kind is kind
    assert len(await SqlIssuerStore(world.database).issuers()) == 2


async def test_a_label_names_one_key(world: Any) -> None:
    another = renamed(world.root, "another")
    another = replace(another, key=replace(another.key, label=world.root.key.label))
    with pytest.raises(CaError) as refused:
        await SqlIssuerStore(world.database).create_issuer(another, None, [])
    assert refused.value.kind is ErrorKind.CONFLICT


async def test_no_event_no_issuer(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_connection: object, _events: object) -> None:
        raise CaError(ErrorKind.INTERNAL, "no event")

    monkeypatch.setattr(issuers_module, "insert_events", broken)
    with pytest.raises(CaError, match="no event"):
        await SqlIssuerStore(world.database).create_issuer(renamed(world.root, "new"), None, [])
    assert len(await SqlIssuerStore(world.database).issuers()) == 2


def stored(name: str, digest: str, body: bytes = b"body") -> StoredProfile:
    return StoredProfile(name, digest, body)


async def test_profiles_are_kept_by_content(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(profiles_module, "insert_events", lambda _connection, events: given.extend(events))
    store = SqlProfileStore(database)
    later = NOW + timedelta(hours=1)
    await store.put_in_force([stored("a", "a1"), stored("b", "b1")], {}, NOW, ["first"])
    assert await store.profiles_in_force() == {"a": "a1", "b": "b1"}
    await store.put_in_force([stored("a", "a2", b"new")], {"a": "a1", "b": "b1"}, later, ["second"])
    assert await store.profiles_in_force() == {"a": "a2"}
    assert await store.profile_body("a1") == StoredProfile("a", "a1", b"body", later)
    assert await store.profile_body("b1") == StoredProfile("b", "b1", b"body", later)
    assert await store.profile_body("a2") == StoredProfile("a", "a2", b"new")
    # Back to what stood: the body is there already.
    await store.put_in_force([stored("a", "a1")], {"a": "a2"}, later, ["third"])
    assert await store.profiles_in_force() == {"a": "a1"}
    assert (await store.profile_body("a2")).superseded_at == later
    assert given == ["first", "second", "third"]
    assert await store.profile_body("h3") is None
    assert await SqlProfileStore(database, "other").profile_body("a1") is None


async def test_profiles_put_in_force_by_another(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(profiles_module, "insert_events", lambda _connection, events: given.extend(events))
    store = SqlProfileStore(database)
    await store.put_in_force([stored("a", "a1")], {}, NOW, [])
    with pytest.raises(CaError) as refused:
        await store.put_in_force([stored("a", "a2")], {}, NOW, ["too late"])
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await store.profiles_in_force() == {"a": "a1"}
    assert given == []


async def test_a_boot_fences_off_earlier_ones(world: Any) -> None:
    store = SqlCoordinationStore(world.database)
    assert world.fence == Fence("node", 1)
    assert await store.heartbeat(world.fence, world.now, LEASE)
    second = await store.begin_boot("node", "home", world.now, LEASE)
    assert second == Fence("node", 2)
    assert not await store.heartbeat(world.fence, world.now, LEASE)
    assert await store.heartbeat(second, world.now, LEASE)
    assert await store.begin_boot("other", "home", world.now, LEASE) == Fence("other", 1)
    assert not await store.heartbeat(Fence("nobody", 1), world.now, LEASE)


async def test_a_node_that_is_at_work_keeps_its_name(world: Any) -> None:
    """Two machines that forgot to name themselves must not take turns at fencing each other off."""
    store = SqlCoordinationStore(world.database)
    with pytest.raises(CaError) as refused:
        await store.begin_boot("node", "another home", world.now + LEASE / 2, LEASE)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await store.heartbeat(world.fence, world.now, LEASE)
    assert await store.begin_boot("node", "another home", world.now + LEASE, LEASE) == Fence("node", 2)
    await store.end_boot(Fence("node", 2), world.now)
    assert await store.begin_boot("node", "home", world.now, LEASE) == Fence("node", 3)


async def test_leases(world: Any) -> None:
    store = SqlCoordinationStore(world.database)
    first = await store.acquire_lease("sequencer", "a", world.now, LEASE)
    assert first is not None
    assert (first.holder, first.fence, first.expires_at) == ("a", 1, world.now + LEASE)
    assert await store.acquire_lease("sequencer", "b", world.now + LEASE / 2, LEASE) is None
    prolonged = await store.acquire_lease("sequencer", "a", world.now + LEASE / 2, LEASE)
    assert prolonged is not None
    assert prolonged.fence == 1
    assert await store.acquire_lease("sequencer", "b", world.now + LEASE, LEASE) is None
    taken = await store.acquire_lease("sequencer", "b", world.now + LEASE * 2, LEASE)
    assert taken is not None
    assert taken.fence == 2
    await store.release_lease(first)  # it is b's by now
    assert await store.acquire_lease("sequencer", "a", world.now + LEASE * 2, LEASE) is None
    await store.release_lease(taken)
    again = await store.acquire_lease("sequencer", "a", world.now, LEASE)
    assert again is not None
    assert again.fence == 3
    assert (await store.acquire_lease("jobs", "b", world.now, LEASE)) is not None


async def test_a_boot_takes_over_what_earlier_boots_of_its_node_held(world: Any) -> None:
    store = SqlCoordinationStore(world.database)
    killed = await store.acquire_lease("sequencer", "node/1", world.now, LEASE, node="node")
    assert killed is not None
    for holder, node in (("node/2", None), ("node2/1", "node2"), ("nod/1", "nod"), ("/1", "")):
        assert await store.acquire_lease("sequencer", holder, world.now, LEASE, node=node) is None
    taken = await store.acquire_lease("sequencer", "node/2", world.now, LEASE, node="node")
    assert taken is not None
    assert taken.fence == killed.fence + 1


async def test_of_many_who_want_a_lease_one_has_it(world: Any, url: str) -> None:
    other = await Database.open(url)
    stores = [SqlCoordinationStore(world.database), SqlCoordinationStore(other)]
    tries = [stores[n % 2].acquire_lease("one", f"holder-{n}", world.now, LEASE) for n in range(10)]
    leases = await asyncio.gather(*tries)
    assert len([lease for lease in leases if lease is not None]) == 1
    await other.close()


async def test_the_first_secret_stands(database: Database) -> None:
    store = SqlCoordinationStore(database)
    assert await store.secret("nonce") is None
    assert await store.save_secret("nonce", b"first") == b"first"
    assert await store.save_secret("nonce", b"second") == b"first"
    assert await store.secret("nonce") == b"first"
