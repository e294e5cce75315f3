"""Quotas of external account keys: as many certificates as they say, however they are asked for."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.ports import UpdateEab
from ca_server.domain.bindings import EabPolicy
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import eab_quota

DAY = 86_400_000_000
"""In microseconds, as the database has times."""


async def age(world, days):
    """Let all certificates be so many days older."""
    change = ", ".join(f"{column} = {column} - {days * DAY}" for column in ("not_before", "not_after", "issued_at"))
    await world.execute(f"UPDATE certificates SET {change} WHERE requester_protocol = 'acme'")


async def impatient(world):
    """Serve with a finalize that does not wait for the certificate."""
    world.options = replace(world.options, finalize_wait=0)
    await world.serve()


async def end(client, order):
    """What becomes of an order that was finalized: `valid`, or the rule of its error."""
    done = await client.poll(order.headers["Location"], "processing")
    if done["status"] == "valid":
        return "valid"
    assert done["status"] == "invalid"
    assert done["error"]["type"] == "urn:ietf:params:acme:error:rateLimited"
    return done["error"]["rule"]


@pytest.mark.parametrize(("quota", "rule"), [({"live": 2}, "eab.live"), ({"rate": "2 per 7d"}, "eab.rate")])
async def test_a_quota_of_all_accounts_of_a_key(world, bound, csr, quota, rule):
    world.resolve("a.test", "b.test", "c.test")
    key = await world.eab(reusable=True, **quota)
    first, _kid = await bound(key)
    second, _kid = await bound(key)
    stranger = await world.client()
    ready = await second.ready("c.test")
    await first.issue("a.test")
    await second.issue("b.test")
    for refused in (await first.order("c.test"), await second.finalize(ready, csr("c.test"))):
        assert (refused.status, refused.problem, refused.json["rule"]) == (429, "rateLimited", rule)
        assert 0 < int(refused.headers["Retry-After"]) < 600
        assert "operators" in refused.json["detail"]
    assert (await second.post(ready.headers["Location"])).json["status"] == "ready", "for when there is room"
    assert (await stranger.order("c.test")).status == 201
    assert world.limited == [rule, rule]


@pytest.mark.parametrize("quota", [{"live": 3}, {"rate": "3 per 7d"}])
async def test_of_orders_that_race_as_many_win_as_there_is_room_for(world, bound, csr, quota):
    await impatient(world)
    names = [f"{letter}.test" for letter in "abcdefgh"]
    world.resolve(*names)
    key = await world.eab(reusable=True, **quota)
    clients = [(await bound(key))[0] for _ in range(2)]
    orders = [(clients[at % 2], await clients[at % 2].ready(name), name) for at, name in enumerate(names)]
    world.core.gate.clear()
    for client, order, name in orders:
        assert (await client.finalize(order, csr(name))).status == 200
    world.core.gate.set()
    ends = await asyncio.gather(*(end(client, order) for client, order, _name in orders))
    assert ends.count("valid") == 3
    assert set(ends) == {"valid", f"eab.{next(iter(quota))}"}
    assert len({event["object"] for event in await world.audit("issuance.refused")}) >= 5


async def test_an_enrollment_is_taken_from_the_rate_once(world, bound, csr, monkeypatch):
    """The answer of the first attempt is lost, and the token is away at the second."""
    monkeypatch.setattr("protocols.acme.issuing._FIRST_PAUSE", 0.01)
    await impatient(world)
    world.resolve("a.test", "b.test", "c.test")
    client, _kid = await bound(rate="2 per 7d")
    world.core.lost_answers = 1
    await client.issue("a.test")
    order = await client.ready("b.test")
    signing = world.issuing.key.sign
    outages = iter([True])

    async def away_once(data):
        if next(outages, False):
            raise CaError(ErrorKind.UNAVAILABLE, "the token is away")
        return await signing(data)

    monkeypatch.setattr(world.issuing.key, "sign", away_once)
    await client.finalize(order, csr("b.test"))
    assert await end(client, order) == "valid"
    states = [row[0] for row in await world.query("SELECT state FROM intents ORDER BY reserved_at")]
    assert states.count("abandoned") == 1
    assert (await client.order("c.test")).json["rule"] == "eab.rate"
    (arrival,) = (await world.query("SELECT arrival FROM eab_keys"))[0]
    left = datetime.fromtimestamp(arrival / 1_000_000, UTC) - datetime.now(UTC)
    assert timedelta(days=6.9) < left <= timedelta(days=7)


async def test_an_attempt_that_came_to_nothing_holds_no_place(world, bound):
    """An abandoned intent is no live certificate; its own order may try again, another may have the place."""
    world.resolve("a.test", "b.test")
    client, _kid = await bound(live=1)
    await client.issue("a.test")
    await world.execute("UPDATE certificates SET revoked_at = 1, revocation_reason = 0")
    await client.issue("b.test")
    assert (await client.order("a.test")).json["rule"] == "eab.live"
    await age(world, 91)
    assert (await client.order("a.test")).status == 201, "the other has expired"


@pytest.mark.parametrize("quota", [{"live": 1}, {"rate": "1 per 365d"}])
async def test_renewals_in_their_window_take_nothing(world, bound, quota):
    world.resolve("a.test", "b.test")
    client, _kid = await bound(**quota)
    await client.issue("a.test")
    assert (await client.order("a.test")).status == 429, "it is too early"
    await age(world, 70)
    await client.issue("a.test")
    assert (await client.order("a.test")).status == 429, "the one that it renewed is renewed once"
    assert (await client.order("b.test")).status == 429
    await age(world, 70)
    await client.issue("a.test")
    assert await world.count("eab_renewals") == 2


async def test_a_certificate_on_hold_keeps_its_place(world, bound):
    world.resolve("a.test", "b.test")
    client, _kid = await bound(live=1)
    await client.issue("a.test")
    await world.execute("UPDATE certificates SET revoked_at = 1, revocation_reason = 6")
    assert (await client.order("b.test")).json["rule"] == "eab.live"


async def test_live_ones_are_counted_only_where_the_quota_may_be_used_up(world, bound, monkeypatch):
    counted = []
    live = eab_quota._live
    monkeypatch.setattr(eab_quota, "_live", lambda *arguments: counted.append(1) or live(*arguments))
    world.resolve("a.test", "b.test", "c.test")
    client, kid = await bound(live=3)
    await client.issue("a.test")
    assert len(counted) == 3, "nobody had counted: at newOrder, at finalize, and then for good"
    for name in ("b.test", "c.test"):
        await client.issue(name)
    assert len(counted) == 3
    await world.execute("UPDATE certificates SET revoked_at = 1, revocation_reason = 0")
    await client.issue("a.test")
    assert (await world.query("SELECT live_bound FROM eab_keys"))[0][0] == 1
    await world.core.accounts.update(UpdateEab(kid, EabPolicy(), None, None, None), "uid:0")
    await client.issue("b.test")
    await world.core.accounts.update(UpdateEab(kid, EabPolicy(live=2), None, None, None), "uid:0")
    assert (await client.order("c.test")).status == 429, "what came while nothing was counted is counted"


async def test_only_the_same_names_are_a_renewal(world, bound):
    world.resolve("a.test", "b.test")
    client, _kid = await bound(live=1)
    await client.issue("a.test", "b.test")
    await age(world, 70)
    assert (await client.order("a.test")).status == 429
    assert (await client.order("a.test", "b.test", "c.test")).status == 429
    assert (await client.order("b.test", "a.test")).status == 201


async def test_of_two_orders_that_renew_one_certificate_one_takes_its_place(world, bound, csr):
    await impatient(world)
    world.resolve("a.test")
    client, _kid = await bound(live=1)
    await client.issue("a.test")
    await age(world, 70)
    orders = [await client.ready("a.test") for _ in range(2)]
    world.core.gate.clear()
    for order in orders:
        assert (await client.finalize(order, csr("a.test"))).status == 200
    world.core.gate.set()
    ends = await asyncio.gather(*(end(client, order) for order in orders))
    assert sorted(ends) == ["eab.live", "valid"]


async def test_a_successor_that_is_revoked_gives_its_place_back(world, bound):
    world.resolve("a.test", "b.test")
    client, _kid = await bound(live=1)
    await client.issue("a.test")
    await age(world, 70)
    await client.issue("a.test")
    await world.execute(
        "UPDATE certificates SET revoked_at = 1, revocation_reason = 0 WHERE id = (SELECT max(id) FROM certificates)"
    )
    assert (await client.order("b.test")).status == 429, "what it renewed is still there"
    assert (await client.order("a.test")).status == 201


async def test_a_quota_that_is_raised_holds_at_once(world, bound):
    world.resolve("a.test", "b.test")
    client, kid = await bound(live=1)
    await client.issue("a.test")
    assert (await client.order("b.test")).status == 429
    await world.core.accounts.update(UpdateEab(kid, EabPolicy(live=2), None, None, None), "uid:0")
    await client.issue("b.test")
