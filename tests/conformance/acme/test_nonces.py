"""RFC 8555 sections 6.5 and 7.2."""

import asyncio
import base64
from dataclasses import replace
from datetime import timedelta

import pytest


async def test_fact_01_every_answer_to_a_post_has_a_fresh_nonce(world, external):
    client = await world.client()
    answers = [
        await client.post(client.kid),
        await client.post(client.kid, nonce="A" * 48),
        await client.post(client.kid, url=f"{external}/acme/elsewhere"),
        await client.post(f"{external}/acme/order/AAAAAAAAAAAAAAAAAAAAAA"),
        await client.post(f"{external}/acme/nothing-here", {}),
        await client.post(f"{external}/acme/directory", {}),
        await client.send(client.kid, b"{"),
        await client.send(client.kid, b"x" * 200_000),
        await client.send(client.kid, {}, "application/json"),
        await client.order("a.elsewhere.example"),
    ]
    assert [answer.status for answer in answers] == [200, 400, 401, 404, 404, 405, 400, 413, 415, 400]
    nonces = [answer.headers["Replay-Nonce"] for answer in answers]
    assert len(set(nonces)) == len(nonces)
    assert all("=" not in nonce and base64.urlsafe_b64decode(nonce + "==") for nonce in nonces)
    assert all("no-store" in answer.headers["Cache-Control"] for answer in answers)


@pytest.mark.parametrize("path", ["new-nonce", "short/new-nonce"])
async def test_fact_01_new_nonce_by_head_and_get(world, external, path):
    head = await world.send("HEAD", f"{external}/acme/{path}")
    get = await world.send("GET", f"{external}/acme/{path}")
    assert (head.status, get.status) == (200, 204)
    assert head.headers["Cache-Control"] == get.headers["Cache-Control"] == "no-store"
    assert head.headers["Replay-Nonce"] != get.headers["Replay-Nonce"]


async def test_fact_02_a_nonce_of_one_front_works_on_another_and_after_a_restart(world):
    client = await world.client()
    nonces = [await client.nonce() for _ in range(2)]
    await world.serve(process="front-2")
    assert (await client.post(client.kid, nonce=nonces[0])).status == 200
    await world.front.stop()
    await world.serve(process="front-2")
    assert (await client.post(client.kid, nonce=nonces[1])).status == 200
    replayed = await client.post(client.kid, nonce=nonces[0])
    assert replayed.problem == "badNonce"


async def test_fact_03_bad_nonce_brings_a_good_one(world):
    client = await world.client()
    used = await client.nonce()
    assert (await client.post(client.kid, nonce=used)).status == 200
    for bad in (used, None, "A" * 48, "AAAA"):
        client.spare.clear()
        refused = await client.post(client.kid, nonce=bad)
        assert (refused.status, refused.problem) == (400, "badNonce"), bad
        assert (await client.post(client.kid, nonce=refused.headers["Replay-Nonce"])).status == 200


async def test_fact_03_replays_at_once_give_one_success(world):
    client = await world.client()
    jws = await client.jws(client.kid, None)
    answers = await asyncio.gather(*(client.send(client.kid, jws) for _ in range(1000)))
    assert sorted(answer.status for answer in answers)[:2] == [200, 400]
    assert all(answer.problem == "badNonce" for answer in answers if answer.status != 200)


async def test_fact_03_replays_of_a_change_change_once(world):
    client = await world.client()
    url = f"{client.base}/new-order"
    jws = await client.jws(url, {"identifiers": [{"type": "dns", "value": "a.test"}]})
    answers = await asyncio.gather(*(client.send(url, jws) for _ in range(50)))
    assert sorted(answer.status for answer in answers) == [201] + [400] * 49
    assert await world.count("acme_orders") == 1


async def test_fact_03_a_request_that_fails_has_used_its_nonce_up(world):
    client = await world.client()
    nonce = await client.nonce()
    refused = await client.post(f"{client.base}/new-order", {"identifiers": []}, nonce=nonce)
    assert refused.problem == "malformed"
    assert (await client.post(client.kid, nonce=nonce)).problem == "badNonce"


async def test_fact_04_issuing_a_nonce_writes_nothing(world, external):
    client = await world.client()
    before = await world.count("acme_nonces")
    for _ in range(50):
        await world.send("HEAD", f"{external}/acme/new-nonce")
    assert await world.count("acme_nonces") == before
    await client.post(client.kid)
    assert await world.count("acme_nonces") == before + 1


async def test_fact_04_used_nonces_are_forgotten_by_age(world):
    await world.front.stop()
    await world.serve(replace(world.options, nonce_lifetime=timedelta(milliseconds=600)))
    client = await world.client()
    old = await client.nonce()
    await asyncio.sleep(0.7)
    assert (await client.post(client.kid, nonce=old)).problem == "badNonce"
    await asyncio.sleep(0.6)
    await world.serve(replace(world.options, nonce_lifetime=timedelta(milliseconds=600)))
    for _ in range(100):
        if await world.count("acme_nonces") == 0:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("used nonces are kept for ever")
