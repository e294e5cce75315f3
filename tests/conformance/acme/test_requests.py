"""RFC 8555 section 6: how requests are signed, and what is refused before anything is looked at."""

import base64
import json
from dataclasses import replace

import pytest

from ca_server.web.middleware import STATE


def _changed(jws, **changes):
    return {name: value for name, value in (jws | changes).items() if value is not None}


@pytest.mark.parametrize("content_type", ["application/json", "application/jose", "text/plain"])
async def test_fact_05_other_media_types_are_415(world, content_type):
    client = await world.client()
    answer = await client.send(client.kid, await client.jws(client.kid, None), content_type)
    assert (answer.status, answer.problem) == (415, "malformed")


@pytest.mark.parametrize(
    "change",
    [
        {"header": {}},
        {"header": {"alg": "ES256"}},
        {"signatures": []},
        {"protected": None},
        {"payload": None},
        {"signature": None},
        {"payload": "e30="},
        {"signature": "!"},
        {"protected": "e30"},
    ],
    ids=str,
)
async def test_fact_05_only_a_flattened_jws(world, change):
    client = await world.client()
    answer = await client.send(client.kid, _changed(await client.jws(client.kid, None), **change))
    assert (answer.status, answer.problem) == (400, "malformed")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"alg": "HS256"}, "badSignatureAlgorithm"),
        ({"alg": "none"}, "badSignatureAlgorithm"),
        ({"alg": "RS1"}, "badSignatureAlgorithm"),
        ({"alg": "ES384"}, "badSignatureAlgorithm"),
        ({"alg": None}, "malformed"),
        ({"url": None}, "malformed"),
        ({"kid": None}, "malformed"),
        ({"crit": ["b64"], "b64": False}, "malformed"),
        ({"crit": []}, "malformed"),
        ({"b64": False}, "malformed"),
        ({"kid": "https://elsewhere.test/acme/account/1"}, "accountDoesNotExist"),
    ],
    ids=str,
)
async def test_fact_05_headers_that_are_refused(world, header, problem):
    client = await world.client()
    answer = await client.post(client.kid, **header)
    assert (answer.status, answer.problem) == (400, problem)
    if problem == "badSignatureAlgorithm":
        assert "ES256" in answer.json["algorithms"]
        assert not {"none", "HS256"} & set(answer.json["algorithms"])


async def test_fact_05_jwk_and_kid_exclude_each_other(world):
    client = await world.client()
    assert (await client.post(client.kid, jwk=client.key.jwk)).problem == "malformed"
    assert (await client.post(client.kid, jwk=client.key.jwk, kid=None)).problem == "malformed"
    new_account = f"{client.base}/new-account"
    assert (await client.post(new_account, {})).problem == "malformed", "newAccount is signed with jwk (section 6.2)"


async def test_members_that_appear_twice_are_refused(world):
    client = await world.client()
    jws = await client.jws(client.kid, {})
    text = json.dumps(jws)
    twice = text[:-1] + f', "payload": "{jws["payload"]}"}}'
    assert (await client.send(client.kid, twice.encode())).problem == "malformed"


async def test_a_signature_that_is_not_the_keys(world, new_key):
    client = await world.client()
    own, client.key = client.key, new_key()
    answer = await client.post(client.kid)
    client.key = own
    assert answer.status in {400, 401, 403}
    assert answer.problem in {"malformed", "unauthorized"}
    refusals = await world.audit("access.refused")
    assert refusals
    assert refusals[-1]["rule"]


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256"])
async def test_every_algorithm(world, algorithm):
    client = await world.client(algorithm)
    assert (await client.post(client.kid)).json["status"] == "valid"


async def test_fact_06_url_is_the_configured_one(world, external):
    client = await world.client()
    actual = str(world.server.make_url("/acme/")).rstrip("/") + client.kid.removeprefix(f"{external}/acme")
    for url in (actual, client.kid + "?", client.kid + "/", client.kid.replace("https", "http"), f"{client.kid}x"):
        refused = await client.post(client.kid, url=url)
        assert refused.problem == "unauthorized", url
    assert (await client.post(client.kid)).status == 200
    listing = await client.post(f"{client.kid}/orders?after=x", url=f"{client.kid}/orders")
    assert listing.problem == "unauthorized", "the query is part of the URL"


async def test_fact_06_the_host_header_is_never_reflected(world, external):
    directory = await world.send("GET", f"{external}/acme/directory", headers={"Host": "evil.test"})
    assert "evil.test" not in directory.body.decode()
    assert all(value.startswith(external) for name, value in directory.json.items() if name != "meta")


async def test_fact_07_a_padded_csr_is_accepted(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    padded = next(
        text for text in iter(lambda: base64.urlsafe_b64encode(csr("a.test")).decode(), "") if text[-1] == "="
    )
    answer = await client.post(order.json["finalize"], {"csr": padded})
    assert answer.json["status"] == "valid"


async def test_profile_directories(world, external):
    for path, prefix in (("", ""), ("default/", ""), ("short/", "short/")):
        directory = (await world.send("GET", f"{external}/acme/{path}directory")).json
        assert directory["newOrder"] == f"{external}/acme/{prefix}new-order"
        entries = {"newNonce", "newAccount", "newOrder", "newAuthz", "revokeCert", "keyChange", "renewalInfo"}
        assert set(directory) == entries | {"meta"}
    for path in ("inside/directory", "nothing/directory", "inside/new-nonce"):
        missing = await world.send("GET", f"{external}/acme/{path}")
        assert (missing.status, missing.problem) == (404, "malformed"), "this profile is not for ACME"


async def test_wrong_methods_and_places(world, external):
    client = await world.client()
    for method, path, allowed in (
        ("GET", "acme/new-account", "POST"),
        ("GET", "acme/account/x", "POST"),
        ("PUT", "acme/short/new-order", "POST"),
        ("POST", "acme/directory", "GET, HEAD"),
        ("POST", "acme/new-nonce", "GET, HEAD"),
    ):
        answer = await world.send(method, f"{external}/{path}")
        assert (answer.status, answer.problem) == (405, "malformed")
        assert answer.headers["Allow"] == allowed
    for url in (f"{external}/acme/x", f"{external}/acme/order/x/y", f"{client.kid}/x"):
        assert (await world.send("GET", url)).problem == "malformed"
        assert (await client.post(url)).status == 404


async def test_fact_25_a_failure_of_ours_is_a_problem_with_retry_after(world, monkeypatch):
    client = await world.client()

    async def fail(*_arguments):
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(world.front._accounts, "change", fail)
    answer = await client.post(client.kid)
    assert (answer.status, answer.problem) == (500, "serverInternal")
    assert int(answer.headers["Retry-After"]) > 0
    assert "secret" not in answer.body.decode()


@pytest.mark.parametrize("size", [131_073, 300_000])
async def test_too_large_a_body(world, size):
    client = await world.client()
    answer = await client.send(client.kid, b"{" + b" " * size + b"}")
    assert answer.status == 413


async def test_refusals_without_a_genuine_nonce_are_counted(world):
    """Who has nothing must not be able to fill the log."""
    client = await world.client()
    before = await world.count("audit_events")
    unsigned = {"protected": "eyJhbGciOiJub25lIn0", "payload": "", "signature": ""}
    for _ in range(5):
        assert (await client.send(client.kid, unsigned)).status == 400
    client.spare.clear()
    for _ in range(3):
        assert (await client.post(client.kid, nonce="A" * 48)).problem == "badNonce"
        assert (await client.post(client.kid, url="https://elsewhere.test/")).problem == "unauthorized"
    assert await world.count("audit_events") == before
    await world.front._refusals.record()
    await world.front._refusals.record()
    (event,) = await world.audit("access.refused")
    assert event["rule"] == "acme.door"
    assert event["extra"] == {
        "badNonce": "3",
        "badSignatureAlgorithm": "5",
        "sources": "127.0.0.1",
        "unauthorized": "3",
    }


async def test_counted_refusals_are_on_record_when_the_front_stops(world):
    client = await world.client()
    await client.send(client.kid, {})
    await world.front.stop()
    (event,) = await world.audit("access.refused")
    assert event["extra"]["malformed"] == "1"


async def test_a_wrong_signature_is_on_record_once_for_each_nonce(world, new_key):
    client = await world.client()
    client.key = new_key()
    jws = await client.jws(client.kid, None)
    answers = [await client.send(client.kid, jws) for _ in range(3)]
    assert [answer.problem for answer in answers] == ["unauthorized", "badNonce", "badNonce"]
    (event,) = await world.audit("access.refused")
    assert (event["rule"], event["source"]) == ("jws.unauthorized", "127.0.0.1")
    assert event["object"] == client.kid.removeprefix(client.base.removesuffix("/acme"))


@pytest.mark.parametrize("part", ["%00", "a%00b", "%ED%A0%80", "%FF", "a%2Fb", "x" * 65, "a.b"])
async def test_what_can_be_no_id_is_not_found(world, external, part):
    client = await world.client()
    for url in (
        f"{external}/acme/order/{part}",
        f"{external}/acme/challenge/{part}",
        f"{external}/acme/account/{part}",
    ):
        assert (await client.post(url)).status == 404
    if part != "a%2Fb":  # aiohttp's client would send a slash
        listing = await client.post(f"{client.kid}/orders?after={part}")
        assert (listing.status, listing.problem) == (400, "malformed")
    anonymous = await client.send(f"{external}/acme/order/{part}", {"protected": "e30", "payload": "", "signature": ""})
    assert anonymous.status == 404


@pytest.mark.parametrize("character", ["\0", "\ud800"])
async def test_text_that_no_database_holds(world, binding, new_client, character):
    client = await world.client()
    refused = await client.post(client.kid, kid=f"{client.kid}{character}")
    assert (refused.status, refused.problem) == (400, "malformed")
    other = new_client(world)
    url = f"{other.base}/new-account"
    bound = binding(other.key.jwk, url, f"kid{character}", "AAAA")
    refused = await other.register(externalAccountBinding=bound)
    assert (refused.status, refused.problem) == (400, "malformed")
    refused = await client.order(f"a{character}.test")
    assert (refused.status, refused.problem) == (400, "rejectedIdentifier" if character == "\0" else "malformed")


async def test_fact_01_what_the_listener_refuses_is_a_problem_with_a_nonce(world, external):
    client = await world.client()
    huge = await client.send(client.kid, b"x" * 300_000)
    assert (huge.status, huge.problem) == (413, "malformed")
    state = world.server.app[STATE]
    state.options = replace(state.options, max_concurrent=0)
    busy = await client.send(client.kid, b"{}")
    assert (busy.status, busy.problem, busy.headers["Retry-After"]) == (503, "serverInternal", "2")
    unsigned = await world.send("GET", f"{external}/acme/directory")
    assert (unsigned.status, unsigned.problem, unsigned.headers.get("Replay-Nonce")) == (503, "serverInternal", None)
    state.options = replace(state.options, max_concurrent=10)
    for answer in (huge, busy):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.links("index") == [f"{external}/acme/directory"]
        client.spare = [answer.headers["Replay-Nonce"]]
        assert (await client.post(client.kid)).status == 200
