"""RFC 8737 and RFC 8738 section 6, seen through the server."""

from dataclasses import replace

import pytest
from tls_responder import challenge_pair, responder


@pytest.fixture
async def peer(world):
    """The applicant's TLS server, on the port that validation connects to."""
    made = await world.stack.enter_async_context(responder())
    validation = replace(world.options.validation, tls_alpn_01_port=made.port)
    await world.serve(replace(world.options, validation=validation))
    return made


async def attempt(client, peer, url, name, **differs):
    """Try the challenge of an authorization to its end; return authorization and challenge."""
    challenge = await client.challenge(url, "tls-alpn-01")
    peer.use(challenge_pair([name], f"{challenge['token']}.{client.key.thumbprint}", **differs))
    assert (await client.post(challenge["url"], {})).status == 200
    return await client.poll(url, "pending"), (await client.post(challenge["url"])).json


@pytest.mark.parametrize("name", ["a.test", "127.0.0.1"])
async def test_a_certificate_is_issued_on_its_evidence(world, peer, csr, name):
    world.resolve("a.test")
    client = await world.client()
    order = await client.order(name)
    (url,) = order.json["authorizations"]
    found, challenge = await attempt(client, peer, url, name)
    assert (found["status"], challenge["status"]) == ("valid", "valid")
    assert [each["type"] for each in found["challenges"]] == ["tls-alpn-01"]
    await client.finalize(order, csr(name))
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    (event,) = await world.audit("challenge.validated")
    assert event["extra"]["challenge"] == "tls-alpn-01"
    assert f"port {peer.port}: connected; TLS certificate of" in event["extra"]["seen"]
    assert world.core.asked[-1].evidence[0].method == "tls-alpn-01"
    assert ("tls-alpn-01", "valid") in world.observed


async def test_a_wrong_certificate_ends_the_challenge(world, peer):
    world.resolve("a.test")
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    found, challenge = await attempt(client, peer, url, "a.test", critical=False)
    assert (found["status"], challenge["status"]) == ("invalid", "invalid")
    assert challenge["error"]["type"].endswith(":incorrectResponse")
    (event,) = await world.audit("challenge.failed")
    assert "not critical" in event["reason"]
    assert world.observed[-1] == ("tls-alpn-01", "incorrectResponse")
    assert len(peer.names) == 1, "no second attempt can end otherwise"


async def test_a_server_without_the_protocol_is_asked_again(world):
    world.resolve("a.test")
    client = await world.client()
    peer = await world.stack.enter_async_context(responder(protocols=("http/1.1",)))
    validation = replace(world.options.validation, tls_alpn_01_port=peer.port)
    await world.serve(replace(world.options, validation=validation))
    (url,) = (await client.order("a.test")).json["authorizations"]
    found, challenge = await attempt(client, peer, url, "a.test")
    assert found["status"] == "invalid"
    assert challenge["error"]["type"].endswith(":tls")
    assert len(peer.names) == world.options.validation_attempts


async def test_denied_networks(world, peer):
    world.resolve("a.test", address="127.0.0.66")
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    found, challenge = await attempt(client, peer, url, "a.test")
    assert found["status"] == "invalid"
    assert challenge["error"]["type"].endswith(":connection")
    assert "policy forbids" in challenge["error"]["detail"]


async def test_a_wildcard_is_not_shown_so(world):
    client = await world.client()
    (url,) = (await client.order("*.a.test")).json["authorizations"]
    assert "tls-alpn-01" not in {each["type"] for each in (await client.post(url)).json["challenges"]}


async def test_a_validation_is_taken_up_after_a_restart(world, peer):
    world.resolve("a.test")
    options = replace(world.options, validation=replace(world.options.validation, tls_alpn_01_port=peer.port))
    client = await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = await client.challenge(url, "tls-alpn-01")
    peer.use(challenge_pair(["a.test"], f"{challenge['token']}.{client.key.thumbprint}"))
    world.front._validating._add = lambda _job: None
    await client.post(challenge["url"], {})
    await world.front.stop()
    assert peer.names == []
    await world.serve(options)
    assert (await client.poll(url, "pending"))["status"] == "valid"
