"""RFC 8555 sections 7.4 and 7.5."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509


async def test_fact_13_a_new_order(world, external):
    client = await world.client()
    order = await client.order("B.test", "a.TEST", "*.C.test", "127.0.0.1")
    assert order.status == 201
    assert order.headers["Location"].startswith(f"{external}/acme/order/")
    assert order.json["identifiers"] == [
        {"type": "dns", "value": "B.test"},
        {"type": "dns", "value": "a.TEST"},
        {"type": "dns", "value": "*.C.test"},
        {"type": "ip", "value": "127.0.0.1"},
    ]
    assert order.json["status"] == "pending"
    assert len(order.json["authorizations"]) == 4
    shown = await client.post(order.headers["Location"])
    assert (shown.json, shown.headers["Location"]) == (order.json, order.headers["Location"])
    (event,) = await world.audit("order.created")
    assert event["names"] == ["dns:b.test", "dns:a.test", "dns:*.c.test", "ip:127.0.0.1"]
    assert event["request_id"] == order.headers["X-Request-Id"]


async def test_fact_13_finalize_has_the_orders_location(world, csr):
    client = await world.client()
    world.resolve("a.test")
    order = await client.ready("a.test")
    assert (await client.finalize(order, csr("a.test"))).headers["Location"] == order.headers["Location"]


async def test_fact_14_a_challenge(world):
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test")
    (authorization,) = order.json["authorizations"]
    for payload in ({}, {"keyAuthorization": "x.y"}, {"resource": "challenge", "type": "http-01"}):
        challenge = await client.challenge(authorization, "http-01")
        shown = await client.post(challenge["url"])
        assert shown.json["url"] == challenge["url"]
        answer = await client.post(challenge["url"], payload)
        assert (answer.status, answer.json["url"]) == (200, challenge["url"])
        assert answer.links("up") == [authorization]
        assert answer.json["status"] in {"processing", "valid"}
    assert (await client.poll(authorization, "pending"))["status"] == "valid"
    final = await client.post(challenge["url"])
    assert final.json["validated"].endswith("Z")
    assert (await client.post(challenge["url"], {})).json["status"] == "valid"
    (event,) = await world.audit("challenge.validated")
    assert event["names"] == ["dns:a.test"]


async def test_fact_14_post_as_get_starts_nothing(world):
    client = await world.client()
    order = await client.order("a.test")
    challenge = await client.challenge(order.json["authorizations"][0], "http-01")
    assert (await client.post(challenge["url"])).json["status"] == "pending"
    assert world.web.asked == []


async def test_fact_14_the_answer_does_not_wait_for_validation(world):
    client = await world.client()
    order = await client.order("a.test")
    challenge = await client.challenge(order.json["authorizations"][0], "dns-01")
    held, ended = asyncio.Event(), []

    class Slow:
        type = "dns-01"

        async def validate(self, _target):
            await held.wait()
            ended.append(True)

    world.front._validating._validators["dns-01"] = Slow()
    answer = await client.post(challenge["url"], {})
    assert answer.json["status"] == "processing"
    assert not ended
    held.set()
    assert (await client.poll(order.json["authorizations"][0], "pending"))["status"] == "valid"


async def test_fact_15_processing_tells_when_to_come_back(world, csr):
    world.resolve("a.test")
    await world.serve(replace(world.options, finalize_wait=0.0))
    client = await world.client()
    order = await client.ready("a.test")
    world.core.gate.clear()
    answer = await client.finalize(order, csr("a.test"))
    assert (answer.status, answer.json["status"]) == (200, "processing")
    assert 1 <= int(answer.headers["Retry-After"]) < 600
    shown = await client.post(order.headers["Location"])
    assert 1 <= int(shown.headers["Retry-After"]) < 600
    assert "certificate" not in shown.json
    world.core.gate.set()
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"


async def test_fact_15_an_order_that_waits_for_approval(world, csr):
    world.resolve("a.test")
    await world.serve(replace(world.options, finalize_wait=0.5))
    client = await world.client(profile="held")
    order = await client.ready("a.test")
    answer = await client.finalize(order, csr("a.test"))
    assert answer.json["status"] == "processing"
    shown = await client.post(order.headers["Location"])
    assert 10 <= int(shown.headers["Retry-After"]) < 600
    await asyncio.sleep(2)
    assert len(world.core.asked) == 1, "asked again at leisure: each time is an event of the log"
    held = await world.audit("issuance.held")
    assert [event["rule"] for event in held] == ["approval"]


async def test_fact_16_finalize_again(world, csr):
    world.resolve("a.test")
    client = await world.client()
    pending = await client.order("c.test")
    refused = await client.finalize(pending, csr("c.test"))
    assert (refused.status, refused.problem) == (403, "orderNotReady")
    order = await client.ready("a.test")
    world.core.gate.clear()
    own, other = csr("a.test"), csr("a.test")
    await world.serve(replace(world.options, finalize_wait=0.0))
    for state in ("processing", "valid"):
        same = await client.finalize(order, own)
        assert (same.status, same.json["status"]) == (200, state)
        different = await client.finalize(order, other)
        assert (different.status, different.problem) == (403, "orderNotReady")
        world.core.gate.set()
        await client.poll(order.headers["Location"], "processing")
    assert await world.count("certificates") == 3, "two of CAs, one of the order"


async def test_fact_17_valid_authorizations_are_reused(world, csr):
    world.resolve("a.test", "b.test")
    client = await world.client()
    first = await client.ready("a.test")
    again = await client.order("A.test")
    assert (again.status, again.json["status"]) == (201, "ready")
    assert again.json["authorizations"] == first.json["authorizations"]
    assert (await client.finalize(again, csr("a.test"))).json["status"] == "valid"
    partly = await client.order("a.test", "b.test")
    assert partly.json["status"] == "pending"
    assert (await (await world.client()).order("a.test")).json["status"] == "pending"
    wildcard = await client.order("*.a.test")
    assert wildcard.json["status"] == "pending", "an authorization for a name is none for its wildcard"


def microseconds(moment):
    return int(moment.timestamp() * 1_000_000)


async def test_fact_17_not_beyond_their_lifetime(world, csr):
    """No certificate on an authorization that expired after the order was made."""
    world.resolve("a.test", "b.test")
    client = await world.client()
    first = await client.ready("a.test")
    end = datetime.now(UTC) + timedelta(minutes=10)
    await world.execute(f"UPDATE acme_authorizations SET expires_at = {microseconds(end)}")
    ready, partly = await client.order("a.test"), await client.order("a.test", "b.test")
    assert ready.json["authorizations"] == first.json["authorizations"]
    for order in (ready, partly):
        assert datetime.fromisoformat(order.json["expires"]) <= end
    await client.authorize(partly)
    past = datetime.now(UTC) - timedelta(seconds=1)
    for table in ("acme_authorizations", "acme_orders"):
        await world.execute(
            f"UPDATE {table} SET expires_at = {microseconds(past)} WHERE expires_at <= {microseconds(end)}"
        )
    for order, names in ((ready, ["a.test"]), (partly, ["a.test", "b.test"])):
        assert (await client.finalize(order, csr(*names))).problem == "orderNotReady"
    assert (await client.post(first.json["authorizations"][0])).json["status"] == "expired"
    assert (await client.order("a.test")).json["status"] == "pending"


async def test_fact_17_an_authorization_about_to_expire_is_not_reused(world):
    world.resolve("a.test")
    client = await world.client()
    await client.ready("a.test")
    soon = datetime.now(UTC) + timedelta(minutes=1)
    await world.execute(f"UPDATE acme_authorizations SET expires_at = {microseconds(soon)}")
    assert (await client.order("a.test")).json["status"] == "pending"


@pytest.mark.parametrize(
    ("names", "members"),
    [
        (["a.test"], {}),
        (["a.test", "b.test", "c.test"], {}),
        (["b.test"], {"common_name": "c.test"}),
        ([], {}),
        (["a.test", "b.test", "127.0.0.1"], {}),
    ],
    ids=str,
)
async def test_fact_18_a_csr_for_other_names(world, csr, names, members):
    world.resolve("a.test", "b.test")
    client = await world.client()
    order = await client.ready("a.test", "b.test")
    answer = await client.finalize(order, csr(*names, **members))
    assert (answer.status, answer.problem) == (400, "badCSR")
    assert (await client.post(order.headers["Location"])).json["status"] == "ready"
    refusals = await world.audit("issuance.refused")
    assert [event["rule"] for event in refusals] == ["csr.names"]
    assert (await client.finalize(order, csr("a.test", "b.test"))).json["status"] == "valid"


async def test_fact_18_names_are_compared_in_canonical_form(world, csr):
    world.resolve("a.test", "b.test")
    client = await world.client()
    order = await client.ready("A.test", "b.test", "127.0.0.1")
    der = csr("a.TEST", "127.0.0.1", common_name="B.test")
    answer = await client.finalize(order, der)
    assert answer.json["status"] == "valid", answer.body


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("account key", "badCSR"),
        ("not der", "badCSR"),
        ("bad signature", "badCSR"),
        ("small key", "badPublicKey"),
        ("curve", "badPublicKey"),
        ("blocklist", "badPublicKey"),
    ],
)
async def test_fact_18_csrs_that_are_refused_at_once(world, csr, fault, problem):
    from hashlib import sha256

    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from ca_server.store.issuance import SqlIssuanceStore

    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    key = {
        "account key": lambda: client.key.private,
        "small key": lambda: rsa.generate_private_key(65537, 1024),
        "curve": lambda: ec.generate_private_key(ec.SECP521R1()),
    }.get(fault, lambda: ec.generate_private_key(ec.SECP256R1()))()
    der = bytearray(csr("a.test", key=key))
    if fault == "bad signature":
        der[-1] ^= 1
    if fault == "not der":
        der = der[:-3]
    if fault == "blocklist":
        from ca_server.domain.certificates import BlockedKey

        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        blocked = BlockedKey(sha256(spki).digest(), "test", datetime.now(UTC))
        await SqlIssuanceStore(world.database).block_spki(blocked, [])
    answer = await client.finalize(order, bytes(der))
    assert (answer.status, answer.problem) == (400, problem)
    assert (await client.post(order.headers["Location"])).json["status"] == "ready"
    assert (await world.audit("issuance.refused"))[0]["rule"]


async def test_fact_19_several_bad_identifiers(world):
    client = await world.client()
    answer = await client.order("a.test", "a.example", "b..test", "c.example")
    assert answer.status == 400
    document = answer.json
    assert answer.problem == "rejectedIdentifier"
    assert {sub["identifier"]["value"] for sub in document["subproblems"]} == {"a.example", "b..test", "c.example"}
    one = await client.order("a.test", "x.onion")
    (sub,) = one.json["subproblems"]
    assert (sub["identifier"]["value"], sub["rule"]) == ("x.onion", "names.onion")
    mixed = [{"type": "dns", "value": "a.example"}, {"type": "email", "value": "a@a.test"}]
    mixed = await client.post(f"{client.base}/new-order", {"identifiers": mixed})
    assert mixed.problem == "compound"
    assert [sub["identifier"]["type"] for sub in mixed.json["subproblems"]] == ["email", "dns"]
    denied = await client.order("a.test", "a.example", "c.example")
    assert denied.problem == "rejectedIdentifier"
    assert {sub["identifier"]["value"] for sub in denied.json["subproblems"]} == {"a.example", "c.example"}
    assert all(sub["type"].endswith("rejectedIdentifier") for sub in denied.json["subproblems"])
    assert (await world.audit("issuance.refused"))[-1]["rule"] == "names.dns"
    assert await world.count("acme_orders") == 0


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "malformed"),
        ({"identifiers": []}, "malformed"),
        ({"identifiers": "a.test"}, "malformed"),
        ({"identifiers": [{"type": "dns"}]}, "malformed"),
        ({"identifiers": [{"type": "email", "value": "a@a.test"}]}, "unsupportedIdentifier"),
        ({"identifiers": [{"type": "dns", "value": "127.0.0.1"}]}, "rejectedIdentifier"),
        ({"identifiers": [{"type": "ip", "value": "a.test"}]}, "rejectedIdentifier"),
        ({"identifiers": [{"type": "dns", "value": "*.*.test"}]}, "rejectedIdentifier"),
        ({"identifiers": [{"type": "dns", "value": "a.test"}] * 200}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "a.test"}], "notAfter": "tomorrow"}, "malformed"),
    ],
    ids=str,
)
async def test_orders_that_are_refused(world, payload, problem):
    client = await world.client()
    answer = await client.post(f"{client.base}/new-order", payload)
    assert answer.status in {400, 403}
    assert answer.problem in {problem, "malformed"}


async def test_fact_20_wildcards_get_dns_challenges_only(world):
    client = await world.client()
    order = await client.order("*.a.test", "a.test", "127.0.0.1")
    shown = [(await client.post(url)).json for url in order.json["authorizations"]]
    assert [each["identifier"]["value"] for each in shown] == ["a.test", "a.test", "127.0.0.1"]
    assert [each.get("wildcard") for each in shown] == [True, None, None]
    kinds = [sorted(challenge["type"] for challenge in each["challenges"]) for each in shown]
    assert kinds == [
        ["dns-01", "dns-account-01"],
        ["dns-01", "dns-account-01", "http-01", "tls-alpn-01"],
        ["http-01", "tls-alpn-01"],
    ]
    assert all(len(challenge["token"]) >= 22 for each in shown for challenge in each["challenges"])


async def test_an_authorization_is_deactivated(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    (url,) = order.json["authorizations"]
    assert (await client.post(url, {"status": "deactivated"})).json["status"] == "deactivated"
    assert (await client.post(order.headers["Location"])).json["status"] == "invalid"
    assert (await client.finalize(order, csr("a.test"))).problem == "orderNotReady"
    assert (await client.order("a.test")).json["status"] == "pending"
    assert (await client.post(url, {"status": "valid"})).status in {200, 400}


async def test_what_belongs_to_another_account(world):
    first, second = await world.client(), await world.client()
    order = await first.order("a.test")
    (authorization,) = order.json["authorizations"]
    challenge = (await first.post(authorization)).json["challenges"][0]
    for url in (order.headers["Location"], authorization, challenge["url"], order.json["finalize"]):
        assert (await second.post(url, {"csr": ""})).status in {403, 404}
    assert (await first.post(challenge["url"])).json["status"] == "pending"


async def test_too_many_open_orders(world):
    await world.serve(replace(world.options, max_open_orders=2))
    client = await world.client()
    assert [(await client.order("a.test")).status for _ in range(2)] == [201, 201]
    answer = await client.order("a.test")
    assert (answer.status, answer.problem) == (429, "rateLimited")
    assert 0 < int(answer.headers["Retry-After"]) < 600


async def test_too_many_names_in_open_orders(world):
    await world.serve(replace(world.options, max_open_names=5))
    client, other = await world.client(), await world.client()
    assert (await client.order("a.test", "b.test", "c.test", "d.test")).status == 201
    answer = await client.order("a.test", "e.test")
    assert (answer.status, answer.problem, answer.json["rule"]) == (429, "rateLimited", "acme.max_open_names")
    assert 0 < int(answer.headers["Retry-After"]) < 600
    last = await client.order("a.test")
    assert last.status == 201
    assert (await client.order("a.test")).problem == "rateLimited"
    assert (await other.order("a.test", "b.test", "c.test", "d.test")).status == 201
    for url in last.json["authorizations"]:
        await client.post(url, {"status": "deactivated"})
    assert (await client.order("a.test")).status == 201, "what is finished counts no more"


async def test_orders_expire(world, csr):
    world.resolve("a.test")
    await world.serve(replace(world.options, order_lifetime=timedelta(seconds=1)))
    client = await world.client()
    order = await client.order("a.test")
    await asyncio.sleep(1.1)
    assert (await client.post(order.headers["Location"])).json["status"] == "invalid"
    assert (await client.post(order.json["authorizations"][0])).json["status"] == "invalid"
    assert (await client.finalize(order, csr("a.test"))).problem == "orderNotReady"


async def test_not_before_and_not_after(world, csr):
    world.resolve("a.test")
    client = await world.client()
    end = (datetime.now(UTC) + timedelta(days=5)).replace(microsecond=0)
    order = await client.order("a.test", notAfter=end.isoformat())
    assert datetime.fromisoformat(order.json["notAfter"]) == end
    await client.authorize(order)
    done = await client.finalize(order, csr("a.test"))
    from cryptography import x509

    (leaf, *_) = x509.load_pem_x509_certificates((await client.post(done.json["certificate"])).body)
    assert leaf.not_valid_after_utc == end


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ({"notAfter": timedelta(days=91)}, "validity.maximum"),
        ({"notAfter": timedelta(days=-1)}, "validity.not_after"),
        ({"notBefore": timedelta(days=2)}, "validity.not_before"),
        ({"notBefore": timedelta(hours=1), "notAfter": timedelta(minutes=1)}, "validity.not_after"),
    ],
    ids=str,
)
async def test_validity_that_can_not_be_given_is_refused_at_once(world, members, rule):
    client = await world.client()
    times = {name: (datetime.now(UTC) + after).isoformat() for name, after in members.items()}
    answer = await client.order("a.test", **times)
    assert (answer.status, answer.problem, answer.json["rule"]) == (403, "unauthorized", rule)
    assert [event["rule"] for event in await world.audit("issuance.refused")] == [rule]
    assert await world.count("acme_orders") == 0


async def test_an_order_keeps_the_profile_with_which_it_began(world, csr, profiles):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    before = world.profiles.get("default")
    await world.put_in_force(profiles | {"default": profiles["default"].replace('"90d"', '"1d"')})
    done = await client.finalize(order, csr("a.test"))
    assert done.json["status"] == "valid"
    (leaf, *_) = x509.load_pem_x509_certificates((await client.post(done.json["certificate"])).body)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc > timedelta(days=89)
    rows = await world.query("SELECT profile_hash FROM certificates WHERE requester_protocol = 'acme'")
    assert [row[0] for row in rows] == [before.hash]


async def test_an_order_must_still_be_acceptable_when_it_is_signed(world, csr, profiles):
    """What policy has come to refuse is not signed under the profile of yesterday."""
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    await world.put_in_force(profiles | {"default": profiles["short"]})
    assert (await client.order("a.test")).problem == "rejectedIdentifier"
    done = await client.finalize(order, csr("a.test"))
    assert done.json["status"] == "invalid"
    assert done.json["error"]["rule"] == "names.dns"
    assert await world.query("SELECT 1 FROM certificates WHERE requester_protocol = 'acme'") == []
    assert [event["rule"] for event in await world.audit("issuance.refused")][-1] == "names.dns"
