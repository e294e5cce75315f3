"""Finalized orders until they have a certificate or an error, and what is left of them (RFC 8555 section 7.4)."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.domain.errors import CaError, ErrorKind


def microseconds(moment):
    return int(moment.timestamp() * 1_000_000)


async def processing(world, client, csr, name="a.test"):
    """An order that waits for a core that is away."""
    world.resolve(name)
    order = await client.ready(name)
    world.core.outages = 1_000_000
    assert (await client.finalize(order, csr(name))).json["status"] == "processing"
    async with asyncio.timeout(10):
        while not world.core.asked:  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)
    return order


async def stored(world, order):
    """Status and error of an order as stored."""
    name = order.headers["Location"].rpartition("/")[2]
    ((status, error),) = await world.query(f"SELECT status, error FROM acme_orders WHERE id = '{name}'")
    return status, json.loads(error or b"{}")


async def idle(world):
    """Wait until no order is worked on."""
    tasks = world.front._issuing._tasks.values()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def hurry(monkeypatch):
    """No pauses between attempts."""
    monkeypatch.setattr("protocols.acme.issuing._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("protocols.acme.issuing._LAST_PAUSE", 0.01)


async def impatient(world):
    await world.serve(replace(world.options, finalize_wait=0.01))


async def test_a_deactivated_account_gets_nothing_any_more(world, csr, hurry):
    await impatient(world)
    client = await world.client()
    order = await processing(world, client, csr)
    assert (await client.post(client.kid, {"status": "deactivated"})).json["status"] == "deactivated"
    await idle(world)
    world.core.outages = 0
    assert await world.front._issuing.resume(restarted=True) == 0
    status, error = await stored(world, order)
    assert (status, error["type"]) == ("invalid", "urn:ietf:params:acme:error:unauthorized")
    assert await world.count("certificates") == 2, "those of the CAs"


async def test_a_deactivated_authorization_takes_a_processing_order_with_it(world, csr, hurry):
    await impatient(world)
    client = await world.client()
    order = await processing(world, client, csr)
    await client.post(order.json["authorizations"][0], {"status": "deactivated"})
    await idle(world)
    world.core.outages = 0
    assert await world.front._issuing.resume(restarted=True) == 0
    shown = (await client.post(order.headers["Location"])).json
    assert (shown["status"], shown["error"]["type"]) == ("invalid", "urn:ietf:params:acme:error:unauthorized")
    assert await world.count("certificates") == 2, "those of the CAs"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("acme_accounts SET status = 'revoked'", "acme.account"),
        ("acme_authorizations SET status = 'revoked'", "acme.authorization"),
        ("acme_authorizations SET expires_at = 1", "acme.authorization"),
        ("acme_orders SET expires_at = 1", "acme.expired"),
    ],
)
async def test_what_an_order_stands_on_is_looked_at_before_each_attempt(world, csr, hurry, change, rule):
    await impatient(world)
    client = await world.client()
    order = await processing(world, client, csr)
    await world.execute(f"UPDATE {change}")
    await idle(world)
    world.core.outages = 0
    assert await world.front._issuing.resume(restarted=True) == 0
    status, error = await stored(world, order)
    assert (status, error["rule"]) == ("invalid", rule)
    assert await world.count("certificates") == 2, "those of the CAs"
    assert [event["rule"] for event in await world.audit("issuance.refused")] == [rule]


async def test_an_order_is_valid_once_its_certificate_is_there_whatever_was_told_before(world, csr, hurry):
    """The call ran out of time, the order expired and was given up; then the core was done."""
    await impatient(world)
    client = await world.client()
    order = await processing(world, client, csr)
    request = world.core.asked[-1]
    await world.execute("UPDATE acme_orders SET expires_at = 1")
    await idle(world)
    assert (await client.post(order.headers["Location"])).json["status"] == "invalid"
    await world.core.issuance.issue(request)
    shown = (await client.post(order.headers["Location"])).json
    assert shown["status"] == "valid"
    assert (await client.post(shown["certificate"])).status == 200


async def test_an_order_is_not_given_up_while_the_core_is_at_work_on_it(world, csr, hurry):
    await impatient(world)
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    signing, signed = asyncio.Event(), asyncio.Event()
    sign = world.issuing.key.sign
    began = []

    async def slow(data):
        signing.set()
        await signed.wait()
        return await sign(data)

    async def lose(request):
        began.append(asyncio.create_task(world.core.issuance.issue(request)))
        await signing.wait()
        raise CaError(ErrorKind.UNAVAILABLE, "the core did not answer in time")

    world.issuing.key.sign = slow
    world.core.issue = lose
    assert (await client.finalize(order, csr("a.test"))).json["status"] == "processing"
    await signing.wait()
    await world.execute("UPDATE acme_orders SET expires_at = 1")
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert (await client.post(order.headers["Location"])).json["status"] == "processing"
    signed.set()
    await asyncio.gather(*began)
    assert (await client.post(order.headers["Location"])).json["status"] == "valid"
    # It may have been asked again before it expired; the answer was the same.
    assert len({task.result().serial for task in began}) == 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (CaError(ErrorKind.INTERNAL, "the certificate did not pass its checks", rule="lint"), 1),
        (CaError(ErrorKind.INTERNAL, "a mistake"), 5),
        (ZeroDivisionError(), 5),
    ],
    ids=str,
)
async def test_an_order_does_not_meet_the_same_failure_for_ever(world, csr, hurry, error, attempts):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    asked = []

    async def fail(request):
        asked.append(request)
        raise error

    world.core.issue = fail
    await client.finalize(order, csr("a.test"))
    found = await client.poll(order.headers["Location"], "processing")
    assert (found["status"], found["error"]["type"]) == ("invalid", "urn:ietf:params:acme:error:serverInternal")
    assert len(asked) == attempts


async def test_an_outage_does_not_count_as_a_failure(world, csr, hurry):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    world.core.outages = 20
    await client.finalize(order, csr("a.test"))
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"


async def test_orders_of_the_past_are_forgotten(world, csr):
    """With their authorizations and challenges, where no order needs them and no certificate is in use."""
    world.resolve("a.test", "b.test", "c.test")
    client = await world.client()
    issued = await client.ready("a.test")
    await client.finalize(issued, csr("a.test"))
    shared = await client.ready("b.test")
    again = await client.order("b.test", "c.test")
    recent = await client.order("d.test")
    old, kept = datetime.now(UTC) - timedelta(days=31), datetime.now(UTC) - timedelta(days=29)
    ids = [each.headers["Location"].rpartition("/")[2] for each in (issued, shared, again, recent)]
    for each in ids[:2]:
        await world.execute(f"UPDATE acme_orders SET expires_at = {microseconds(old)} WHERE id = '{each}'")
    await world.execute(f"UPDATE acme_authorizations SET expires_at = {microseconds(old)} WHERE value <> 'd.test'")
    for table in ("acme_orders", "acme_authorizations"):
        await world.execute(
            f"UPDATE {table} SET expires_at = {microseconds(kept)} WHERE expires_at > {microseconds(kept)}"
        )
    world.front._retention_due = datetime.now(UTC)
    await world.front._forget()
    left = {row[0] for row in await world.query("SELECT id FROM acme_orders")}
    assert left == {ids[0], *ids[2:]}
    assert {row[0] for row in await world.query("SELECT value FROM acme_authorizations")} == {
        "a.test",
        "b.test",
        "c.test",
        "d.test",
    }
    await world.execute(f"UPDATE certificates SET not_after = {microseconds(old)}")
    await world.execute(f"UPDATE acme_orders SET expires_at = {microseconds(old)}, lease_until = 1")
    await world.front._issuing.resume()
    world.front._retention_due = datetime.now(UTC)
    await world.front._forget()
    left = {row[0] for row in await world.query("SELECT id FROM acme_orders")}
    assert left == {ids[3]}, "its authorization stands a day more"
    assert {row[0] for row in await world.query("SELECT value FROM acme_authorizations")} == {"d.test"}
    assert await world.count("acme_challenges") == 0
    assert (await client.issue("a.test"))[0].serial_number
