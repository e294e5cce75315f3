"""RFC 8555 section 8, seen through the server."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web


async def attempt(client, name, kind="http-01", *, change=lambda _challenge: None):
    """Try one challenge to its end; return the authorization and the challenge."""
    order = await client.order(name)
    (url,) = order.json["authorizations"]
    challenge = await client.challenge(url, kind)
    change(challenge)
    await client.post(challenge["url"], {})
    found = await client.poll(url, "pending")
    return order, found, (await client.post(challenge["url"])).json


async def test_a_failed_challenge_takes_authorization_and_order_with_it(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order, found, challenge = await attempt(client, "a.test", change=lambda _: world.web.answers.clear())
    assert (found["status"], challenge["status"]) == ("invalid", "invalid")
    assert challenge["error"]["type"].startswith("urn:ietf:params:acme:error:")
    assert "404" in challenge["error"]["detail"]
    shown = (await client.post(order.headers["Location"])).json
    assert (shown["status"], shown["error"]) == ("invalid", challenge["error"])
    assert (await client.finalize(order, csr("a.test"))).problem == "orderNotReady"
    (event,) = await world.audit("challenge.failed")
    assert event["names"] == ["dns:a.test"]
    assert "404" in event["reason"]
    assert world.observed[-1][0] == "http-01"
    again = await client.post(challenge["url"], {})
    assert again.json["status"] == "invalid"


async def test_nothing_listens(world):
    world.resolve("a.test", address="127.0.0.2")
    closed = replace(world.options.validation, http_01_port=1)
    await world.serve(replace(world.options, validation=closed))
    client = await world.client()
    _, _, challenge = await attempt(client, "a.test")
    assert challenge["error"]["type"].endswith(":connection")


@pytest.mark.parametrize("kind", ["http-01", "dns-01"])
async def test_the_name_does_not_exist(world, kind):
    client = await world.client()
    _, _, challenge = await attempt(client, "a.test", kind, change=lambda _: world.dns.records.clear())
    assert challenge["error"]["type"].endswith(":dns")


async def test_a_wrong_txt_record(world):
    client = await world.client()

    def spoil(_challenge):
        world.dns.records["_acme-challenge.a.test", "TXT"] = ['"something else"']

    _, _, challenge = await attempt(client, "a.test", "dns-01", change=spoil)
    assert challenge["error"]["type"].rpartition(":")[2] in {"incorrectResponse", "unauthorized"}
    assert "something else" in challenge["error"]["detail"]


async def test_one_of_many_txt_records_behind_aliases(world):
    client = await world.client()

    def move(_challenge):
        right = world.dns.records.pop(("_acme-challenge.a.test", "TXT"))
        world.dns.records["_acme-challenge.a.test", "CNAME"] = ["one.other.test."]
        world.dns.records["one.other.test", "CNAME"] = ["two.other.test."]
        world.dns.records["two.other.test", "TXT"] = ['"wrong"', *right, '"also wrong"']

    _, found, _ = await attempt(client, "*.a.test", "dns-01", change=move)
    assert found["status"] == "valid"
    assert found["wildcard"] is True


async def test_a_record_that_comes_late(world):
    await world.serve(replace(world.options, validation_attempts=4))
    client = await world.client()
    right = []

    def hide(_challenge):
        right.extend(world.dns.records.pop(("_acme-challenge.a.test", "TXT")))
        asyncio.get_running_loop().call_later(0.3, show)

    def show():
        world.dns.records["_acme-challenge.a.test", "TXT"] = right

    _, found, _ = await attempt(client, "a.test", "dns-01", change=hide)
    assert found["status"] == "valid"
    attempts = await world.query("SELECT attempts FROM acme_challenges WHERE type = 'dns-01'")
    assert attempts[0][0] > 1


async def test_addresses_are_connected_to(world):
    client = await world.client()
    _, found, _ = await attempt(client, "127.0.0.1")
    assert found["status"] == "valid"
    assert world.web.asked[0][0].startswith("127.0.0.1")


@pytest.mark.parametrize(
    ("location", "type_"),
    [
        ("http://127.0.0.66:80/x", "connection"),
        ("http://a.test:1234/x", "connection"),
        ("ftp://a.test/x", "connection"),
        ("gopher://a.test/x", "connection"),
        ("http://denied.test:{port}/x", "connection"),
        ("http://user:secret@a.test:{port}/x", "connection"),
        ("/.well-known/again", "connection"),
    ],
)
async def test_fact_21_redirects_that_are_not_followed(world, location, type_):
    world.resolve("a.test")
    world.resolve("denied.test", address="127.0.0.66")
    target = location.format(port=world.web.port)

    def redirect(challenge):
        answer = web.Response(status=302, headers={"Location": target})
        world.web.answers[f"/.well-known/acme-challenge/{challenge['token']}"] = lambda: web.Response(
            status=302, headers=answer.headers
        )
        world.web.answers["/.well-known/again"] = lambda: web.Response(status=301, headers={"Location": target})

    client = await world.client()
    _, found, challenge = await attempt(client, "a.test", change=redirect)
    assert found["status"] == "invalid"
    assert challenge["error"]["type"].endswith(type_)
    assert len([path for _, path in world.web.asked if path == "/.well-known/again"]) <= 10
    assert not [path for _, path in world.web.asked if path == "/x"]


async def test_fact_21_a_redirect_that_is_followed(world):
    world.resolve("a.test", "b.test")
    client = await world.client()

    def move(challenge):
        path = f"/.well-known/acme-challenge/{challenge['token']}"
        world.web.answers["/elsewhere"] = world.web.answers[path]
        target = f"http://b.test:{world.web.port}/elsewhere"
        world.web.answers[path] = lambda: web.Response(status=308, headers={"Location": target})

    _, found, _ = await attempt(client, "a.test", change=move)
    assert found["status"] == "valid"


@pytest.mark.parametrize("where", ["name", "address"])
async def test_fact_21_denied_networks(world, where):
    world.resolve("a.test", address="127.0.0.66")
    client = await world.client()
    _, found, challenge = await attempt(client, "a.test" if where == "name" else "127.0.0.66")
    assert found["status"] == "invalid"
    assert challenge["error"]["type"].endswith(":connection")
    assert world.web.asked == []


async def test_fact_21_a_long_body(world):
    world.resolve("a.test")
    client = await world.client()

    def pad(challenge):
        path = f"/.well-known/acme-challenge/{challenge['token']}"
        right = f"{challenge['token']}.{client.key.thumbprint}"
        world.web.answers[path] = lambda: web.Response(text=right + "\n" * 1_000_000)

    _, found, _ = await attempt(client, "a.test", change=pad)
    assert found["status"] == "invalid"


async def test_a_validation_is_taken_up_by_another_front(world):
    """The front that began it died: its lease runs out."""
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test")
    (url,) = order.json["authorizations"]
    challenge = await client.challenge(url, "http-01")
    dead = world.front
    dead._validating._add = lambda _job: None
    assert (await client.post(challenge["url"], {})).json["status"] == "processing"
    await world.execute("UPDATE acme_challenges SET lease_until = 1 WHERE status = 'processing'")
    await world.serve(process="front-2")
    assert (await client.poll(url, "pending"))["status"] == "valid"


@pytest.mark.parametrize("kind", ["http-01", "dns-01"])
async def test_a_validation_is_taken_up_after_a_restart(world, kind):
    """At once: the node's own work does not wait for a lease to run out."""
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test")
    (url,) = order.json["authorizations"]
    challenge = await client.challenge(url, kind)
    world.front._validating._add = lambda _job: None
    await client.post(challenge["url"], {})
    await world.front.stop()
    await world.serve()
    assert (await client.poll(url, "pending"))["status"] == "valid"


async def test_a_challenge_type_that_was_switched_off(world):
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test")
    (url,) = order.json["authorizations"]
    challenge = await client.challenge(url, "dns-01")
    del world.front._validating._validators["dns-01"]
    await client.post(challenge["url"], {})
    assert (await client.poll(url, "pending"))["status"] == "invalid"


async def test_a_redirect_to_a_name_that_is_none_ends_the_challenge(world):
    world.resolve("a.test")
    client = await world.client()

    def move(challenge):
        world.web.answers[f"/.well-known/acme-challenge/{challenge['token']}"] = lambda: web.Response(
            status=302, headers={"Location": "http://xn--a/"}
        )

    _, found, challenge = await attempt(client, "a.test", change=move)
    assert found["status"] == "invalid"
    assert challenge["error"]["type"].endswith(":connection")


async def test_a_name_of_another_script(world):
    world.resolve("xn--bcher-kva.test")
    client = await world.client()
    _, found, _ = await attempt(client, "xn--bcher-kva.test")
    assert found["status"] == "valid"
