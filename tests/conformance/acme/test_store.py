"""What the ACME store promises where several processes write at once; on PostgreSQL too where one is named."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, text

from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import dns_identifier
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.acme_orders import insert_order
from ca_server.store.database import Database
from ca_server.store.statements import Prepared
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.caa.records import CaaRecord
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    Order,
    OrderIdentifier,
    OrderStatus,
)
from protocols.acme.ports import Lessee, NonceReplayedError, NonceUse, OpenBounds

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)


@pytest.fixture
async def nodes(url):
    """The stores of two processes over one database."""
    databases = [await Database.open(url) for _ in range(2)]
    yield [SqlAcmeStore(database) for database in databases]
    for database in databases:
        await database.close()


def bounds(orders):
    return OpenBounds(orders, names=1000)


def account(name="one"):
    return Account(f"account-{name}", f"thumbprint-{name}", b"{}", AccountStatus.VALID, NOW)


def authorization(order, name):
    challenge = Challenge(f"{order}-{name}/http-01", f"{order}-{name}", "http-01", "token")
    return Authorization(
        challenge.authorization_id,
        "account-one",
        dns_identifier(f"{name}.{order}.test"),
        False,
        AuthorizationStatus.PENDING,
        NOW,
        LATER,
        (challenge,),
    )


def order(name, *names):
    identifiers = tuple(OrderIdentifier(dns_identifier(f"{each}.{name}.test"), each) for each in names)
    return Order(name, "account-one", "default", "hash", OrderStatus.PENDING, identifiers, NOW, LATER)


async def test_authorizations_settled_at_once_make_the_order_ready(nodes):
    """Neither of two transactions sees what the other has not committed yet; one of them must see both."""
    first, second = nodes
    await first.create_account(account(), [], None)
    orders = [f"order-{number}" for number in range(40)]
    for name in orders:
        candidates = [authorization(name, each) for each in ("a", "b")]
        await first.create_order(order(name, "a", "b"), candidates, bounds(1000), [], None)
        for node, each in ((first, "a"), (second, "b")):
            lessee = Lessee(f"node/{each}", NOW, timedelta(minutes=1))
            assert await node.begin_challenge("account-one", f"{name}-{each}/http-01", lessee, 1000, None)
    settled = []
    for name in orders:
        for node, each in ((first, "a"), (second, "b")):
            work = await node.challenge_work(f"{name}-{each}/http-01")
            finish = node.finish_challenge(work, f"node/{each}", None, NOW, LATER, [])
            settled.append(asyncio.create_task(finish))
    assert all(await asyncio.gather(*settled))
    states = {name: (await first.order(name)).status for name in orders}
    assert set(states.values()) == {OrderStatus.READY}, states


async def test_a_nonce_is_used_once_whoever_asks(nodes):
    nonce = NonceUse("nonce", NOW)
    uses = [node.consume_nonce(nonce) for node in nodes for _ in range(20)]
    results = await asyncio.gather(*uses, return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, NonceReplayedError) for result in results) == 39


async def test_nonces_in_opposite_orders_at_two_nodes_do_not_wait_for_each_other(url):
    """PostgreSQL ends a deadlock by aborting one of the transactions, whose units are then tried again."""
    seen = []
    databases = [await Database.open(url, observe=lambda name, _seconds, _count: seen.append(name)) for _ in range(2)]
    nodes = [SqlAcmeStore(database) for database in databases]
    for turn in range(30):
        nonces = [NonceUse(f"nonce-{turn}-{number:02}", NOW) for number in range(20)]
        orders = (nonces, list(reversed(nonces)))
        uses = [node.consume_nonce(nonce) for node, order in zip(nodes, orders, strict=True) for nonce in order]
        results = await asyncio.gather(*uses, return_exceptions=True)
        assert results.count(None) == 20
        assert sum(isinstance(result, NonceReplayedError) for result in results) == 20
    for database in databases:
        await database.close()
    assert "retry" not in seen


async def test_accounts_in_opposite_orders_at_two_nodes_do_not_wait_for_each_other(url):
    seen = []
    databases = [await Database.open(url, observe=lambda name, _seconds, _count: seen.append(name)) for _ in range(2)]
    nodes = [SqlAcmeStore(database) for database in databases]
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        await nodes[0].create_account(account(name), [], None)
    for _ in range(20):
        orders = (names, list(reversed(names)))
        changes = [
            node.update_account(f"account-{name}", ("mailto:a@a.test",), None, [], None)
            for node, order in zip(nodes, orders, strict=True)
            for name in order
        ]
        assert len(await asyncio.gather(*changes)) == 40
    for database in databases:
        await database.close()
    assert "retry" not in seen


async def test_a_nonce_is_used_up_with_what_was_done_and_with_what_was_not_to_be_done(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    await first.create_order(order("x", "a"), [authorization("x", "a")], bounds(10), [], None)
    nonce = NonceUse("nonce", NOW)
    lessee = Lessee("node/a", NOW, timedelta(minutes=1))
    assert not await first.begin_finalize("account-one", "x", b"csr", lessee, nonce), "the order is pending"
    with pytest.raises(NonceReplayedError):
        await first.begin_challenge("account-one", "x-a/http-01", lessee, 10, nonce)
    assert (await first.challenge("x-a/http-01"))[0].status == "pending"


async def test_a_change_that_failed_leaves_the_nonce(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    full, fine = NonceUse("one", NOW), NonceUse("two", NOW)
    together = await asyncio.gather(
        first.create_order(order("x", "a"), [authorization("x", "a")], bounds(0), [], full),
        first.create_order(order("y", "a"), [authorization("y", "a")], bounds(10), [], fine),
        return_exceptions=True,
    )
    assert together[0].kind is ErrorKind.RATE_LIMITED
    assert together[1].id == "y"
    with pytest.raises(CaError):
        await first.create_order(order("x", "a"), [authorization("x", "a")], bounds(0), [], full)
    await first.consume_nonce(full)
    for nonce in (full, fine):
        with pytest.raises(NonceReplayedError):
            await first.consume_nonce(nonce)


async def test_the_statements_of_an_order_hardly_grow_with_its_names(url, monkeypatch):
    database = await Database.open(url)
    store = SqlAcmeStore(database)
    await store.create_account(account(), [], None)

    async def statements(name, number):
        names = [f"n{each}" for each in range(number)]
        candidates = [authorization(name, each) for each in names]
        ran = []

        def unit(connection):
            event.listen(connection, "before_cursor_execute", lambda *arguments: ran.append(arguments[2]))
            if database.dialect == "sqlite":  # past SQLAlchemy, which has no event of it
                run = Prepared.run
                monkeypatch.setattr(Prepared, "run", lambda *arguments: ran.append(arguments) or run(*arguments))
            insert_order(connection, order(name, *names), candidates, bounds(1000), "default")
            monkeypatch.undo()
            return len(ran)

        return await database.write(unit)

    # The first of an account need not look at the names of others.
    counts = [await statements(name, names) for name, names in (("first", 1), ("small", 1), ("large", 100))]
    await database.close()
    assert 0 < counts[1] <= 8
    assert counts[0] == counts[1] - 1
    assert counts[2] <= 21


async def test_one_key_has_one_account_whoever_creates_it(nodes):
    accounts = [Account(f"a{n}", "same", b"{}", AccountStatus.VALID, NOW) for n in range(10)]
    made = await asyncio.gather(*(nodes[n % 2].create_account(each, [], None) for n, each in enumerate(accounts)))
    assert sum(each.created for each in made) == 1
    assert len({each.account.id for each in made}) == 1


async def test_work_is_taken_over_by_one(nodes):
    first, second = nodes
    await first.create_account(account(), [], None)
    minute = timedelta(minutes=1)
    for number in range(10):
        await first.create_order(order(f"o{number}", "a"), [authorization(f"o{number}", "a")], bounds(100), [], None)
        lessee = Lessee("one/front-1/x", NOW, minute)
        await first.begin_challenge("account-one", f"o{number}-a/http-01", lessee, 100, None)
    early = Lessee("two/front-1/y", NOW, minute)
    assert await second.claim_challenges(early, 100, b"{}") == (), "the leases still run"
    assert await second.claim_challenges(early, 100, b"{}", restarted=True) == (), "they are of another node"
    late = [Lessee(f"two/front-{name}/x", NOW + 2 * minute, minute) for name in "12"]
    taken = await asyncio.gather(
        *(node.claim_challenges(each, 100, b"{}") for node, each in zip(nodes, late, strict=True))
    )
    assert sorted(work.id for work in taken[0] + taken[1]) == sorted(f"o{number}-a/http-01" for number in range(10))
    assert {work.attempt for work in taken[0] + taken[1]} == {2}
    owner = late[0] if taken[0] else late[1]
    sibling = Lessee("two/front-11/w", owner.now, minute)
    assert await first.claim_challenges(sibling, 100, b"{}", restarted=True) == (), "a sibling lives on"
    again = Lessee(owner.earlier + "w", owner.now, minute)
    assert len(await first.claim_challenges(again, 100, b"{}", restarted=True)) == len(taken[0] or taken[1])
    assert await first.claim_challenges(again, 100, b"{}", restarted=True) == (), "they are its own"
    (lost, *_) = taken[0] or taken[1]
    assert not await second.record_attempt("account-one", lost.id, owner, b"{}"), "the lease was lost"
    assert await second.keep_challenges(owner, [lost]) == frozenset()
    assert await second.keep_challenges(again, [lost]) == {lost.id}


async def test_orders_are_taken_over_by_the_same_process_alone(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    minute = timedelta(minutes=1)
    await first.create_order(order("x", "a"), [authorization("y", "a")], bounds(100), [], None)
    begun = Lessee("one/front-1/x", NOW, minute)
    assert await first.begin_challenge("account-one", "y-a/http-01", begun, 10, None)
    work = await first.challenge_work("y-a/http-01")
    assert await first.finish_challenge(work, begun.holder, None, NOW, LATER, [])
    assert await first.begin_finalize("account-one", "x", b"csr", begun, None)
    assert await first.claim_orders(Lessee("one/front-2/y", NOW, minute), 10, restarted=True) == ()
    (taken,) = await first.claim_orders(Lessee("one/front-1/z", NOW, minute), 10, restarted=True)
    assert (taken.id, taken.account_id) == ("x", "account-one")


async def test_accounts_take_turns_when_work_is_taken_over(nodes):
    first, _ = nodes
    lessee = Lessee("one/front-1/x", NOW, timedelta(minutes=1))
    for name, number in (("one", 8), ("two", 2)):
        await first.create_account(account(name), [], None)
        for each in range(number):
            made = authorization(f"{name}{each}", "a")
            await first.create_order(
                replace(order(f"{name}{each}", "a"), account_id=f"account-{name}"),
                [replace(made, account_id=f"account-{name}")],
                bounds(100),
                [],
                None,
            )
            await first.begin_challenge(f"account-{name}", f"{name}{each}-a/http-01", lessee, 100, None)
    late = Lessee("two/front-1/y", NOW + timedelta(minutes=2), timedelta(minutes=1))
    taken = await first.claim_challenges(late, 4, b"{}")
    assert sorted(work.account_id for work in taken) == ["account-one", "account-one", "account-two", "account-two"]


@pytest.mark.parametrize("change", ["status = 'deactivated'", "expires_at = 1"])
async def test_challenges_that_can_not_succeed_are_given_up(nodes, url, change):
    first, _ = nodes
    await first.create_account(account(), [], None)
    await first.create_order(order("x", "a"), [authorization("x", "a")], bounds(100), [], None)
    lessee = Lessee("one/front-1/x", NOW, timedelta(minutes=1))
    await first.begin_challenge("account-one", "x-a/http-01", lessee, 100, None)
    database = await Database.open(url)
    await database.write(
        lambda connection: connection.execute(text(f"UPDATE acme_authorizations SET {change}")) and None
    )
    await database.close()
    work = await first.challenge_work("x-a/http-01")
    assert not await first.finish_challenge(work, lessee.holder, None, NOW, LATER, []), "it is not valid any more"
    late = Lessee("two/front-1/y", NOW + timedelta(minutes=2), timedelta(minutes=1))
    assert await first.claim_challenges(late, 4, b'{"type":"x"}') == ()
    challenge, found = await first.challenge("x-a/http-01")
    assert (challenge.status, challenge.error) == ("invalid", b'{"type":"x"}')
    assert found.status_at(NOW) in {"deactivated", "invalid"}


async def test_one_account_has_so_many_challenges_in_processing(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    lessee = Lessee("one/front-1/x", NOW, timedelta(minutes=1))
    for number in range(3):
        await first.create_order(order(f"o{number}", "a"), [authorization(f"o{number}", "a")], bounds(100), [], None)
    for number in range(2):
        assert await first.begin_challenge("account-one", f"o{number}-a/http-01", lessee, 2, None)
    with pytest.raises(CaError) as caught:
        await first.begin_challenge("account-one", "o2-a/http-01", lessee, 2, None)
    assert caught.value.kind is ErrorKind.RATE_LIMITED
    assert (await first.challenge("o2-a/http-01"))[0].status == "pending"


def caa_lookup(name, at, *values):
    records = tuple(CaaRecord(128, "issue", value) for value in values)
    return CaaLookup(name, at, "test" if values else "", records, authenticated=bool(values))


async def test_caa_lookups_are_kept_for_everybody_until_they_are_too_old(nodes):
    first, second = nodes
    old, new = NOW - timedelta(hours=9), NOW
    many = [caa_lookup(f"n{number:03}.test", new) for number in range(100)]
    await first.save_caa([caa_lookup("a.test", old, b"ca.test"), *many], [])
    assert await second.caa_lookups(["a.test", "n042.test", "none.test"], NOW - timedelta(hours=8)) == {
        "n042.test": many[42]
    }
    odd = caa_lookup("a.test", new, b"ca.test", b"\x00\xff", b"")
    await asyncio.gather(*(node.save_caa([odd, many[0]], []) for node in nodes for _ in range(5)))
    assert await first.caa_lookups(["a.test"], new) == {"a.test": odd}
    await first.save_caa([caa_lookup("b.test", old)], [])
    assert await second.prune_caa(NOW - timedelta(hours=8), 1000) == 1
    assert await second.prune_caa(NOW + timedelta(hours=1), 60) == 60, "no more than it is told to"
    assert len(await first.caa_lookups([each.name for each in many], old)) in {40, 41}


async def test_caa_lookups_are_of_one_tenant(url):
    database = await Database.open(url)
    one, other = SqlAcmeStore(database, "one"), SqlAcmeStore(database, "other")
    await one.save_caa([caa_lookup("a.test", NOW)], [])
    await other.save_caa([caa_lookup("a.test", NOW, b"ca.test")], [])
    assert (await one.caa_lookups(["a.test"], NOW))["a.test"].records == ()
    assert len((await other.caa_lookups(["a.test"], NOW))["a.test"].records) == 1
    await database.close()
