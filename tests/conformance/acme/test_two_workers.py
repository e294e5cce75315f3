"""Two fronts over one database, each with connections of its own; requests go to them by turns, and they are as one."""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace

import pytest

from ca_server.domain.rates import parse_rate
from ca_server.store.database import Database
from protocols.acme.limits import Limits

REPLAYS = 1000
AT_ONCE = 20


class Workers:
    """The two servers, and how often each was asked."""

    def __init__(self, world):
        self._world, self._send = world, world.send
        self._turns = itertools.cycle((0, 1))
        self.servers = []
        self.asked = Counter()
        world.send = self.send

    async def send(self, *arguments):
        turn = next(self._turns)
        self.asked[turn] += 1
        self._world.server = self.servers[turn]
        return await self._send(*arguments)


@pytest.fixture
async def workers(world, url):
    """Gives them with the options that a test wants."""
    second = await Database.open(url)
    world.stack.push_async_callback(second.close)

    async def open_shop(**options):
        made = Workers(world)
        for number, database in enumerate((world.database, second), start=1):
            first, world.database = world.database, database
            await world.serve(replace(world.options, **options), process=f"front-{number}")
            world.database = first
            made.servers.append(world.server)
        return made

    return open_shop


def limited(**rates):
    return Limits(**{name: parse_rate(rate) for name, rate in rates.items()})


async def test_every_step_of_an_order_at_another_worker(world, workers):
    both = await workers()
    world.resolve("a.test", "b.test")
    client = await world.client()
    for name in ("a.test", "b.test"):
        await client.issue(name)
    assert min(both.asked.values()) > 5
    assert (await client.order("a.test")).json["status"] == "ready", "what one validated the other knows"


async def test_fact_03_replays_at_both_workers_give_one_success(world, workers):
    both = await workers()
    client = await world.client()
    jws = await client.jws(client.kid, None)
    answers = await asyncio.gather(*(client.send(client.kid, jws) for _ in range(REPLAYS)))
    assert Counter(answer.status for answer in answers) == {200: 1, 400: REPLAYS - 1}
    assert {answer.problem for answer in answers if answer.status != 200} == {"badNonce"}
    assert min(both.asked.values()) >= REPLAYS // 2


async def test_a_limit_counts_what_both_admit(world, workers):
    await workers(limits=limited(orders_per_account="3 per 1h"))
    client = await world.client()
    answers = await asyncio.gather(*(client.order(f"n{number}.test") for number in range(AT_ONCE)))
    assert Counter(answer.status for answer in answers) == {201: 3, 429: AT_ONCE - 3}
    assert await world.count("acme_orders") == 3


async def test_open_orders_are_those_of_both(world, workers):
    await workers(max_open_orders=4)
    client = await world.client()
    answers = await asyncio.gather(*(client.order(f"n{number}.test") for number in range(AT_ONCE)))
    assert Counter(answer.status for answer in answers) == {201: 4, 429: AT_ONCE - 4}


async def test_fact_11_a_key_for_one_account_is_used_at_one_worker(world, workers, new_client, binding):
    await workers(require_eab=True)
    kid, secret = await world.eab()
    clients = [new_client(world) for _ in range(8)]
    bindings = [binding(each.key.jwk, f"{each.base}/new-account", kid, secret) for each in clients]
    answers = await asyncio.gather(
        *(each.register(externalAccountBinding=bound) for each, bound in zip(clients, bindings, strict=True))
    )
    assert Counter(answer.status for answer in answers) == {201: 1, 403: 7}
    assert await world.count("acme_accounts") == 1
    assert len(await world.audit("eab.used")) == 1


async def test_a_challenge_is_validated_by_one(world, workers):
    await workers()
    world.resolve("a.test")
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = await client.challenge(url, "http-01")
    answers = await asyncio.gather(*(client.post(challenge["url"], {}) for _ in range(AT_ONCE)))
    assert {answer.status for answer in answers} == {200}
    assert (await client.poll(url, "pending"))["status"] == "valid"
    assert [path for _, path in world.web.asked].count(f"/.well-known/acme-challenge/{challenge['token']}") == 1
    assert world.observed == [("http-01", "valid")]


async def test_fact_26_finalize_at_both_workers_gives_one_certificate(world, workers, csr):
    await workers()
    world.resolve("a.test")
    client = await world.client()
    order, request = await client.ready("a.test"), csr("a.test")
    answers = await asyncio.gather(*(client.finalize(order, request) for _ in range(AT_ONCE)))
    assert {answer.status for answer in answers} == {200}
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert await world.count("certificates WHERE requester_protocol = 'acme'") == 1
