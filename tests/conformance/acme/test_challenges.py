"""Challenges (RFC 8555 section 7.1.5): told by their authorization until one begins, and begun once."""

import asyncio
import json
from dataclasses import replace
from typing import get_args

import msgspec
import pytest

from ca_server.settings import AcmeSettings, ChallengeType
from protocols.acme.validation import ValidationPolicy, validators
from protocols.acme.validation.registry import known_types


async def begun(client, url, kind="http-01"):
    """One challenge, set up and asked for; its URL as shown before."""
    challenge = await client.challenge(url, kind)
    assert (await client.post(challenge["url"], {})).status == 200
    return challenge


async def test_a_challenge_has_a_row_once_it_begins_and_always_the_same_url(world):
    world.resolve("a.test")
    client = await world.client()
    (url,) = (await client.order("a.test", "b.test")).json["authorizations"][:1]
    before = (await client.post(url)).json["challenges"]
    assert await world.count("acme_challenges") == 0
    assert [each["type"] for each in before] == ["http-01", "dns-01", "tls-alpn-01", "dns-account-01"]
    assert len({each["url"] for each in before}) == 4
    assert len({each["token"] for each in before}) == 1
    for each in before:
        assert (await client.post(each["url"])).json == each
    challenge = await begun(client, url)
    assert (await client.poll(challenge["url"], "processing"))["url"] == before[0]["url"]
    assert await world.query("SELECT type, token FROM acme_challenges") == [("http-01", before[0]["token"])]
    (shown,) = (await client.post(url)).json["challenges"]
    assert (shown["url"], shown["status"], shown["token"]) == (before[0]["url"], "valid", before[0]["token"])
    other = (await client.post(before[1]["url"], {})).json
    assert other["status"] == "pending", "nothing begins on an authorization that is settled"
    assert await world.count("acme_challenges") == 1


async def test_evidence_is_kept_with_the_challenge_and_on_record(world):
    world.resolve("a.test")
    client = await world.client()
    await client.ready("a.test")
    await client.ready("b.test", kind="dns-01")
    events = {event["names"][0]: event["extra"] for event in await world.audit("challenge.validated")}
    first, second = events["dns:a.test"], events["dns:b.test"]
    assert f"127.0.0.1 port {world.web.port} answered 200" in first["seen"]
    assert "TXT _acme-challenge.b.test: 1 records" in second["seen"]
    assert all(len(each["seen"]) <= 500 and each["seen"].isprintable() for each in (first, second))
    rows = await world.query("SELECT type, evidence FROM acme_challenges WHERE status = 'valid' ORDER BY type DESC")
    kept = [json.loads(bytes(evidence)) for _, evidence in rows]
    assert kept == [{"seen": first["seen"]}, {"seen": second["seen"]}]


async def test_what_failed_leaves_no_evidence(world):
    await world.serve(replace(world.options, validation_attempts=1))
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    await begun(client, url)
    assert (await client.poll(url, "pending"))["status"] == "invalid"
    assert await world.query("SELECT evidence FROM acme_challenges") == [(None,)]


@pytest.mark.parametrize("kind", ["dns-persist-01", "x", "", "http-01/", "HTTP-01", "http-01/x"])
async def test_a_challenge_that_is_not_offered(world, kind):
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = f"{url.replace('/authorization/', '/challenge/')}/{kind}"
    assert (await client.post(challenge, {})).status == 404
    assert await world.count("acme_challenges") == 0


async def test_a_challenge_of_another_account(world):
    client, other = await world.client(), await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = await client.challenge(url, "http-01")
    assert (await other.post(challenge["url"], {})).status == 404
    assert (await client.post(challenge["url"])).json["status"] == "pending"


async def test_posts_at_two_fronts_at_once_begin_one_validation(world):
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = await client.challenge(url, "dns-01")
    requests = [await client.jws(challenge["url"], {}) for _ in range(8)]
    first = world.server
    await world.serve(process="front-2")
    fronts = [first, world.server]

    async def post(number, jws):
        at = str(fronts[number % 2].make_url("/")).rstrip("/") + challenge["url"].removeprefix(
            "https://ca.example.test:8443"
        )
        headers = {"Content-Type": "application/jose+json"}
        async with world.session.post(at, json=jws, headers=headers) as answer:
            return answer.status, (await answer.json())["status"]

    answers = await asyncio.gather(*(post(number, jws) for number, jws in enumerate(requests)))
    assert {status for status, _ in answers} == {200}
    assert {shown for _, shown in answers} <= {"processing", "valid"}
    assert (await client.poll(url, "pending"))["status"] == "valid"
    assert len([name for name, kind in world.dns.asked if kind == "TXT"]) == 1
    assert len(await world.audit("challenge.validated")) == 1


async def test_challenges_made_before_they_were_lazy_go_on(world, csr):
    """Migration 0009 leaves them as they are: each has a row, and an id of its own."""
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test")
    (url,) = order.json["authorizations"]
    authorization_id = url.rpartition("/")[2]
    await world.execute("UPDATE acme_authorizations SET token = NULL, offered = NULL")
    for kind in ("http-01", "dns-01"):
        await world.execute(
            "INSERT INTO acme_challenges (id, authorization_id, account_id, type, token, status, attempts) "
            f"SELECT 'old-{kind}', id, account_id, '{kind}', 'of-old', 'pending', 0 FROM acme_authorizations "
            f"WHERE id = '{authorization_id}'"
        )
    shown = (await client.post(url)).json["challenges"]
    assert [each["type"] for each in shown] == ["dns-01", "http-01"]
    challenge = await begun(client, url)
    assert challenge["url"].endswith("/acme/challenge/old-http-01")
    assert (await client.poll(url, "pending"))["status"] == "valid"
    assert (await client.post(challenge["url"], {})).json["status"] == "valid"
    await client.finalize(order, csr("a.test"))
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert world.core.asked[-1].evidence[0].method == "http-01"
    assert (await client.post(challenge["url"].replace("old-http", "new-http"))).status == 404


async def test_the_types_that_are_offered_are_configured(world):
    await world.serve(replace(world.options, challenges=("dns-01", "http-01")))
    client = await world.client()
    order = await client.order("a.test", "127.0.0.1")
    shown = [(await client.post(url)).json["challenges"] for url in order.json["authorizations"]]
    assert [[each["type"] for each in challenges] for challenges in shown] == [["dns-01", "http-01"], ["http-01"]]
    await world.serve(replace(world.options, challenges=("dns-01",)))
    assert (await client.order("127.0.0.1")).problem == "rejectedIdentifier"


def test_the_settings_know_the_types_there_are():
    assert set(get_args(ChallengeType)) == set(known_types())
    with pytest.raises(ValueError, match="http-02"):
        validators(ValidationPolicy(), ("http-01", "http-02"))
    for wrong in ([], ["http-02"], "http-01"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"challenges": wrong}, AcmeSettings)
