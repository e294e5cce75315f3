"""What the store promises of rate limits: one verdict whoever asks, and nothing taken by what does not stand."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import dns_identifier
from ca_server.domain.rates import Draw, admit, parse_rate
from ca_server.store import acme_limits
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.acme_limits import StandingLimit, count, draw
from ca_server.store.database import Database
from ca_server.store.limits import SqlLimitStore
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, Order, OrderIdentifier, OrderStatus
from protocols.acme.ports import Lessee, NonceUse, OpenBounds

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
async def databases(url):
    """Two processes' ways to one database."""
    opened = [await Database.open(url) for _ in range(2)]
    yield opened
    for database in opened:
        await database.close()


@pytest.fixture
async def nodes(databases):
    return [SqlAcmeStore(database) for database in databases]


def limit(key, rate="3 per 30s", *, takes=True):
    return Draw("acme.limits.orders", "new orders", key, parse_rate(rate), takes)


def account(name="one"):
    return Account(f"account-{name}", f"thumbprint-{name}", b"{}", AccountStatus.VALID, NOW)


def order(name, account_id="account-one"):
    identifiers = (OrderIdentifier(dns_identifier(f"{name}.test"), name),)
    return Order(name, account_id, "default", "hash", OrderStatus.PENDING, identifiers, NOW, LATER)


def authorization(name, account_id="account-one"):
    return Authorization(
        f"of-{name}",
        account_id,
        dns_identifier(f"{name}.test"),
        False,
        AuthorizationStatus.PENDING,
        NOW,
        LATER,
        (Challenge(f"of-{name}/http-01", f"of-{name}", "http-01", "token"),),
    )


def create(node, name, draws, nonce=None, orders=1000, account_id="account-one"):
    bounds = OpenBounds(orders, 1000, draws)
    return node.create_order(order(name, account_id), [authorization(name, account_id)], bounds, [], nonce)


async def arrivals(database):
    rows = await database.read(
        lambda connection: connection.execute(text("SELECT key, arrival FROM acme_limits")).all()
    )
    return dict(map(tuple, rows))


def outcomes(results):
    """How many were done; all others were refused by the rate."""
    refused = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, CaError) and error.kind is ErrorKind.RATE_LIMITED for error in refused), refused
    return len(results) - len(refused)


async def test_two_processes_at_once_have_one_verdict(nodes):
    for name in range(4):
        await nodes[0].create_account(account(str(name)), [], None)
    wanted = [
        create(nodes[n % 2], f"order-{n}", [limit("all", "17 per 1h")], account_id=f"account-{n % 4}")
        for n in range(60)
    ]
    assert outcomes(await asyncio.gather(*wanted, return_exceptions=True)) == 17


async def test_keys_in_opposite_orders_at_two_nodes_do_not_wait_for_each_other(url):
    """PostgreSQL ends a deadlock by aborting one of the transactions, whose units are then tried again."""
    seen = []
    databases = [await Database.open(url, observe=lambda name, _seconds, _count: seen.append(name)) for _ in range(2)]
    nodes = [SqlAcmeStore(database) for database in databases]
    for turn in range(20):
        keys = [f"{turn}-{number:02}" for number in range(20)]
        uses = [
            node.create_account(account(f"{which}-{key}"), [], None, [limit(key, "100 per 1h")])
            for which, node, each in (("a", nodes[0], keys), ("b", nodes[1], keys[::-1]))
            for key in each
        ]
        await asyncio.gather(*uses)
    assert set((await arrivals(databases[0])).values()) == {int(NOW.timestamp() * 1_000_000) + 2 * 36_000_000}
    for database in databases:
        await database.close()
    assert "retry" not in seen


async def test_the_statement_says_what_the_function_says(databases):
    chance, moment = random.Random(7), NOW
    rates = {"a": "3 per 30s", "b": "5 per 10s burst 2", "c": "1 per 20s"}
    known: dict[str, int | None] = dict.fromkeys(rates)
    verdicts = set()
    for turn in range(300):
        moment += timedelta(microseconds=chance.randrange(8_000_000))
        now = int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        chosen = {key: chance.random() < 0.7 for key in chance.sample(sorted(rates), chance.randrange(1, 4))}
        draws = [limit(key, rates[key], takes=takes) for key, takes in chosen.items()]
        after = {each.key: admit(known[each.key], now, each.rate) for each in draws}
        error = await take(databases[turn % 2], draws, moment)
        verdicts.add(error is None)
        assert (error is None) == (None not in after.values()), turn
        if error is None:
            known |= {key: value for key, value in after.items() if chosen[key]}
        else:
            # The one that is open again last, and when.
            waits = {each.key: known[each.key] - each.rate.slack - now for each in draws if after[each.key] is None}
            assert error.retry_after == max(1, -(-max(waits.values()) // 1_000_000))
        stored = await arrivals(databases[0])
        assert stored == {key: value for key, value in known.items() if value is not None}
    assert verdicts == {True, False}


async def take(database, draws, moment):
    try:
        await database.write(lambda connection: draw(connection, draws, moment))
    except CaError as error:
        return error
    return None


async def test_what_is_refused_or_fails_takes_nothing(nodes, databases):
    first, second = nodes
    await first.create_account(account(), [], None)
    await create(first, "x", [limit("few", "1 per 1h"), limit("many", "9 per 1h")])
    before = await arrivals(databases[0])
    with pytest.raises(CaError, match="too many new orders"):
        await create(second, "y", [limit("few", "1 per 1h"), limit("many", "9 per 1h"), limit("new", "9 per 1h")])
    with pytest.raises(CaError, match="unfinished orders"):
        await create(second, "y", [limit("many", "9 per 1h")], orders=1)
    with pytest.raises(CaError, match="too many new orders"):
        await create(second, "y", [limit("few", "1 per 1h", takes=False), limit("many", "9 per 1h")])
    assert await arrivals(databases[0]) == before
    assert await second.order("y") is None


async def test_a_refusal_leaves_its_nonce_unused_for_the_caller(nodes):
    first, _ = nodes
    await first.create_account(account(), [], None)
    await create(first, "x", [limit("one", "1 per 1h")])
    nonce = NonceUse("nonce", LATER)
    with pytest.raises(CaError):
        await create(first, "y", [limit("one", "1 per 1h")], nonce)
    await first.consume_nonce(nonce)


async def test_units_of_one_batch_fail_alone(nodes, databases):
    first, _ = nodes
    await first.create_account(account(), [], None)
    wanted = [create(first, f"o{n}", [limit("all", "5 per 1h"), limit(f"own-{n}", "5 per 1h")]) for n in range(12)]
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert outcomes(results) == 5
    stored = await arrivals(databases[0])
    assert sum(key.startswith("own-") for key in stored) == 5


async def test_an_account_that_stands_takes_nothing(nodes, databases):
    first, second = nodes
    draws = [limit("network", "1 per 1h")]
    assert (await first.create_account(account(), [], None, draws)).created
    assert not (await second.create_account(account(), [], None, draws)).created
    with pytest.raises(CaError):
        await second.create_account(account("two"), [], None, draws)
    assert await second.account("account-two") is None
    assert len(await arrivals(databases[0])) == 1


async def test_an_order_is_finalized_once_and_taken_once(nodes, databases):
    first, second = nodes
    await first.create_account(account(), [], None)
    lessee = Lessee("node/one/x", NOW, timedelta(minutes=1))
    for name in ("x", "y"):
        await create(first, name, [])
        assert await first.begin_challenge("account-one", f"of-{name}/http-01", lessee, 10, None)
        work = await first.challenge_work(f"of-{name}/http-01")
        assert await first.finish_challenge(work, lessee.holder, None, NOW, LATER, [])
    draws = [limit("names", "1 per 1h")]
    assert await first.begin_finalize("account-one", "x", b"csr", lessee, None, draws)
    stored = await arrivals(databases[0])
    assert not await second.begin_finalize("account-one", "x", b"csr", lessee, None, draws)
    with pytest.raises(CaError):
        await second.begin_finalize("account-one", "y", b"csr", lessee, None, draws)
    assert (await second.order("y")).status is OrderStatus.READY, "it may be finalized later"
    assert await arrivals(databases[0]) == stored


async def test_failures_are_counted_whether_or_not_there_is_room(nodes, databases):
    first, second = nodes
    await first.create_account(account(), [], None)
    lessee = Lessee("node/one/x", NOW, timedelta(minutes=1))
    draws, look = [limit("failures", "2 per 1h")], [limit("failures", "2 per 1h", takes=False)]
    for name in ("x", "y", "z", "last"):
        await create(first, name, [])
    for name in ("x", "y", "z"):
        assert await first.begin_challenge("account-one", f"of-{name}/http-01", lessee, 10, None, look)
    for name in ("x", "y", "z"):
        work = await first.challenge_work(f"of-{name}/http-01")
        assert await second.finish_challenge(work, lessee.holder, b"{}", NOW, LATER, [], draws)
        assert not await second.finish_challenge(work, lessee.holder, b"{}", NOW, LATER, [], draws), "it is settled"
    with pytest.raises(CaError) as refused:
        await second.begin_challenge("account-one", "of-last/http-01", lessee, 10, None, look)
    assert refused.value.retry_after == 1800, "the third did not make it longer"
    later = Lessee("node/one/x", NOW + timedelta(minutes=30), timedelta(minutes=1))
    assert await second.begin_challenge("account-one", "of-last/http-01", later, 10, None, look)
    assert len(await arrivals(databases[0])) == 1


async def test_looking_makes_no_row(databases):
    database = databases[0]
    await database.write(lambda connection: draw(connection, [limit("look", takes=False)], NOW))
    assert await arrivals(database) == {}


async def test_no_limit_no_statement_and_one_for_any_number(databases, monkeypatch):
    ran = []
    run = acme_limits._run
    monkeypatch.setattr(acme_limits, "_run", lambda *arguments: ran.append(1) or run(*arguments))
    many = [limit(f"key-{number}") for number in range(200)]
    for draws in ([], many):
        await databases[0].write(lambda connection, draws=draws: draw(connection, draws, NOW))
        await databases[0].write(lambda connection, draws=draws: count(connection, draws, NOW))
    assert len(ran) == 2
    assert len(await arrivals(databases[0])) == 200
    assert len(acme_limits.limit_locks(many)) <= 64


async def test_a_key_is_reset_by_itself(databases):
    limits = SqlLimitStore(databases[1])
    for key in ("one", "two"):
        for _ in range(3):
            await databases[0].write(lambda connection, key=key: draw(connection, [limit(key)], NOW))
    assert await limits.reset_limit("one", NOW, [])
    assert [each.key for each in await limits.standing(NOW, 10)] == ["two"]
    await databases[0].write(lambda connection: draw(connection, [limit("one")], NOW))
    assert not await limits.reset_limit("nobody", NOW, [])
    assert await limits.reset_limit("one", NOW, [])
    assert not await limits.reset_limit("one", NOW, []), "nothing was taken from it"


async def test_what_stands_is_listed(databases):
    limits = SqlLimitStore(databases[1])
    for key, times in (("full", 3), ("half", 2)):
        for _ in range(times):
            await databases[0].write(lambda connection, key=key: draw(connection, [limit(key)], NOW))
    full = StandingLimit("full", True, NOW + 10 * SECOND, NOW + 30 * SECOND)
    assert await limits.standing(NOW, 10) == (full, StandingLimit("half", False, NOW, NOW + 20 * SECOND))
    assert await limits.standing(NOW, 1) == (full,)
    assert await limits.standing(NOW, 10, refusing=True) == (full,)
    assert await limits.standing(NOW + 10 * SECOND, 10, refusing=True) == ()
    assert await limits.standing(NOW + 30 * SECOND, 10) == ()


async def test_what_is_past_is_forgotten(nodes, databases):
    for number in range(3):
        await databases[0].write(lambda connection, n=number: draw(connection, [limit(f"k{n}")], NOW + n * SECOND))
    assert await nodes[0].prune_limits(NOW + 11 * SECOND, 1) == 1
    assert await nodes[0].prune_limits(NOW + 12 * SECOND, 10) == 1
    assert set(await arrivals(databases[0])) == {"k2"}
