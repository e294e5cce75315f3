"""RFC 8555 section 7.4.1: authorizations without an order."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.store.acme import SqlAcmeStore


@pytest.fixture
def authorize():
    async def send(client, value, kind="dns"):
        return await client.post(f"{client.base}/new-authz", {"identifier": {"type": kind, "value": value}})

    return send


async def validated(world, client, answer):
    challenge = await client.challenge(answer.headers["Location"], "http-01")
    await client.post(challenge["url"], {})
    assert (await client.poll(answer.headers["Location"], "pending"))["status"] == "valid"


async def test_the_directory_names_it(world, external):
    for path in ("", "/short"):
        directory = (await world.send("GET", f"{external}/acme{path}/directory")).json
        assert directory["newAuthz"] == f"{external}/acme{path}/new-authz"


@pytest.mark.parametrize(("kind", "name"), [("dns", "A.test"), ("ip", "127.0.0.1")])
async def test_a_later_order_stands_on_it(world, authorize, csr, kind, name):
    world.resolve("a.test")
    client = await world.client()
    answer = await authorize(client, name, kind)
    url = answer.headers["Location"]
    assert (answer.status, answer.json["status"], answer.json["identifier"]) == (
        201,
        "pending",
        {"type": kind, "value": name.lower()},
    )
    assert answer.headers["Retry-After"]
    assert {item["type"] for item in answer.json["challenges"]} >= {"http-01"}
    assert (await client.post(url)).json == answer.json
    assert (await client.order(name)).json["authorizations"] != [url], "pending ones are not reused"
    await validated(world, client, answer)
    again = await authorize(client, name, kind)
    assert (again.status, again.headers["Location"], again.json["status"]) == (201, url, "valid")
    order = await client.order(name)
    assert (order.json["status"], order.json["authorizations"]) == ("ready", [url])
    assert (await client.finalize(order, csr(name))).json["status"] == "valid"
    (event,) = await world.audit("authorization.created")
    assert event["names"] == [f"{kind}:{name.lower()}"]
    assert event["object"].endswith(url.rpartition("/")[2])


async def test_no_wildcard_is_authorized_by_it(world, authorize):
    world.resolve("a.test")
    client = await world.client()
    refused = await authorize(client, "*.a.test")
    assert (refused.status, refused.problem, refused.json["rule"]) == (
        400,
        "rejectedIdentifier",
        "names.preauthorization",
    )
    await validated(world, client, await authorize(client, "a.test"))
    assert (await client.order("*.a.test")).json["status"] == "pending"


@pytest.mark.parametrize(
    ("kind", "value", "problem", "rule"),
    [
        ("dns", "a.elsewhere.example", "rejectedIdentifier", "names.dns"),
        ("ip", "192.0.2.1", "rejectedIdentifier", "names.ip"),
        ("dns", "not a name", "rejectedIdentifier", "names.syntax"),
        ("email", "a@a.test", "unsupportedIdentifier", None),
    ],
)
async def test_policy_is_asked_as_for_an_order(world, authorize, kind, value, problem, rule):
    client = await world.client()
    refused = await authorize(client, value, kind)
    ordered = await client.post(f"{client.base}/new-order", {"identifiers": [{"type": kind, "value": value}]})
    assert (refused.status, refused.problem, refused.json.get("rule")) == (400, problem, rule)
    assert (ordered.status, ordered.json) == (refused.status, refused.json)
    told = [event["rule"] for event in await world.audit("issuance.refused")]
    assert told == ([rule] * 2 if rule in {"names.dns", "names.ip"} else [])
    assert await world.count("acme_authorizations") == 0


async def test_a_profiles_entry_point_asks_that_profile(world, authorize, external):
    client = await world.client(profile="short")
    assert (await authorize(client, "a.short.test")).status == 201
    assert (await authorize(client, "a.test")).json["rule"] == "names.dns"


@pytest.mark.parametrize("payload", [None, {}, {"identifier": "a.test"}, {"identifiers": []}])
async def test_payloads_that_are_none(world, payload):
    client = await world.client()
    refused = await client.post(f"{client.base}/new-authz", payload)
    assert (refused.status, refused.problem) == (400, "malformed")


async def test_what_an_account_leaves_pending_is_bounded(world, authorize):
    """Also where many come at once; what is settled or expired, and what orders made, does not count."""
    await world.serve(replace(world.options, max_open_authorizations=5))
    world.resolve("a.test")
    client, other = await world.client(), await world.client()
    assert (await client.order(*(f"o{n}.test" for n in range(9)))).status == 201
    answers = await asyncio.gather(*(authorize(client, f"n{n}.test") for n in range(12)))
    assert sorted(answer.status for answer in answers) == [201] * 5 + [429] * 7
    refused = next(answer for answer in answers if answer.status == 429)
    assert (refused.problem, refused.json["rule"]) == ("rateLimited", "acme.max_open_authorizations")
    assert int(refused.headers["Retry-After"]) > 0
    assert (await authorize(other, "a.test")).status == 201
    made = next(answer for answer in answers if answer.status == 201)
    assert (await client.post(made.headers["Location"], {"status": "deactivated"})).status == 200
    assert (await authorize(client, "a.test")).status == 201
    assert (await authorize(client, "b.test")).status == 429
    await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    assert (await authorize(client, "b.test")).status == 201


async def test_it_goes_with_its_account(world, authorize):
    client = await world.client()
    await authorize(client, "a.test")
    assert (await client.post(client.kid, {"status": "deactivated"})).status == 200
    assert [row[0] for row in await world.query("SELECT status FROM acme_authorizations")] == ["deactivated"]


async def test_it_is_forgotten_after_its_time_unless_an_order_has_it(world, authorize):
    world.resolve("a.test")
    client = await world.client()
    await validated(world, client, await authorize(client, "a.test"))
    assert (await client.order("a.test")).json["status"] == "ready"
    for name in ("b.test", "c.test"):
        await authorize(client, name)
    await client.order("d.test")
    store, now = SqlAcmeStore(world.database), datetime.now(UTC)
    assert await store.forget_preauthorizations(now, 10) == 0
    later = now + timedelta(days=400)
    assert await store.forget_preauthorizations(later, 1) == 1
    assert await store.forget_preauthorizations(later, 10) == 1
    left = {row[0] for row in await world.query("SELECT value FROM acme_authorizations")}
    assert left == {"a.test", "d.test"}
    orphans = "SELECT count(*) FROM acme_challenges WHERE authorization_id NOT IN (SELECT id FROM acme_authorizations)"
    assert (await world.query(orphans))[0][0] == 0


async def test_housekeeping_forgets_it(world, authorize):
    client = await world.client()
    await authorize(client, "a.test")
    await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    await world.front._forget()
    await world.serve(process="front-2")
    for _ in range(300):
        if await world.count("acme_authorizations") == 0:
            break
        await asyncio.sleep(0.02)
    assert await world.count("acme_authorizations") == 0
