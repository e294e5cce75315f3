"""What the ACME store promises where several processes write at once; on PostgreSQL too where one is named."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.names import dns_identifier
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.database import Database
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    Order,
    OrderIdentifier,
    OrderStatus,
)
from protocols.acme.ports import Lessee, NonceReplayedError, NonceUse

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)


@pytest.fixture
async def nodes(url):
    """The stores of two processes over one database."""
    databases = [await Database.open(url) for _ in range(2)]
    yield [SqlAcmeStore(database) for database in databases]
    for database in databases:
        await database.close()


def account(name="one"):
    return Account(f"account-{name}", f"thumbprint-{name}", b"{}", AccountStatus.VALID, NOW)


def authorization(order, name):
    challenge = Challenge(f"challenge-{order}-{name}", f"{order}-{name}", "http-01", "token")
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
        await first.create_order(order(name, "a", "b"), candidates, 1000, [], None)
        for node, each in ((first, "a"), (second, "b")):
            lessee = Lessee(f"node/{each}", NOW, timedelta(minutes=1))
            assert await node.begin_challenge(f"challenge-{name}-{each}", lessee, None)
    settled = []
    for name in orders:
        for node, each in ((first, "a"), (second, "b")):
            finish = node.finish_challenge(f"challenge-{name}-{each}", f"node/{each}", None, NOW, LATER, [])
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


async def test_a_change_that_was_not_made_leaves_the_nonce(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    await first.create_order(order("x", "a"), [authorization("x", "a")], 10, [], None)
    nonce = NonceUse("nonce", NOW)
    lessee = Lessee("node/a", NOW, timedelta(minutes=1))
    assert not await first.begin_finalize("x", b"csr", lessee, nonce), "the order is pending"
    assert not await first.begin_challenge("nothing", lessee, nonce)
    await first.consume_nonce(nonce)
    with pytest.raises(NonceReplayedError):
        await first.begin_challenge("challenge-x-a", lessee, nonce)
    assert (await first.challenge("challenge-x-a"))[0].status == "pending"


async def test_one_key_has_one_account_whoever_creates_it(nodes):
    accounts = [Account(f"a{n}", "same", b"{}", AccountStatus.VALID, NOW) for n in range(10)]
    made = await asyncio.gather(*(nodes[n % 2].create_account(each, [], None) for n, each in enumerate(accounts)))
    assert sum(each.created for each in made) == 1
    assert len({each.account.id for each in made}) == 1


async def test_work_is_taken_over_by_one(nodes):
    first, second = nodes
    await first.create_account(account(), [], None)
    for number in range(10):
        await first.create_order(order(f"o{number}", "a"), [authorization(f"o{number}", "a")], 100, [], None)
        await first.begin_challenge(f"challenge-o{number}-a", Lessee("one/front/x", NOW, timedelta(minutes=1)), None)
    early = Lessee("two/front/y", NOW, timedelta(minutes=1))
    assert await second.claim_challenges(early, 100) == (), "the leases still run"
    assert await second.claim_challenges(early, 100, "two") == (), "they are of another node"
    late = [Lessee(f"two/front/{name}", NOW + timedelta(minutes=2), timedelta(minutes=1)) for name in "yz"]
    taken = await asyncio.gather(first.claim_challenges(late[0], 100), second.claim_challenges(late[1], 100))
    assert sorted(taken[0] + taken[1]) == sorted(f"challenge-o{number}-a" for number in range(10))
    restarted = Lessee("two/front/w", late[0].now, timedelta(minutes=1))
    assert len(await first.claim_challenges(restarted, 100, "two")) == 10
    assert await first.claim_challenges(restarted, 100, "two") == (), "they are its own"
    assert not await second.record_attempt("challenge-o1-a", late[0], b"{}"), "the lease was lost"
