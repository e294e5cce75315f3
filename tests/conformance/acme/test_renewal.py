"""RFC 9773: renewal information, and orders that replace a certificate."""

import asyncio
import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def certid(certificate):
    """As a client makes it, of the certificate alone (section 4.1)."""
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    return f"{b64url(authority)}.{b64url(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


async def issued(world, *names):
    world.resolve(*names)
    client = await world.client()
    return client, (await client.issue(*names))[0]


async def renewal_info(world, external, text):
    directory = (await world.send("GET", f"{external}/acme/directory")).json
    return await world.send("GET", f"{directory['renewalInfo']}/{text}")


def times(answer):
    window = answer.json["suggestedWindow"]
    return datetime.fromisoformat(window["start"]), datetime.fromisoformat(window["end"])


async def test_fact_24_renewal_information(world, external):
    """Whoever asks, without a signature; the same each time."""
    _client, leaf = await issued(world, "a.test")
    answer = await renewal_info(world, external, certid(leaf))
    assert answer.status == 200
    assert set(answer.json) == {"suggestedWindow"}
    assert 17_280 <= int(answer.headers["Retry-After"]) <= 21_600
    start, end = times(answer)
    lifetime = timedelta(days=90)
    assert leaf.not_valid_after_utc - lifetime * 0.42 < start < end < leaf.not_valid_after_utc - lifetime * 0.22
    assert (await renewal_info(world, external, certid(leaf))).body == answer.body
    assert answer.links("index") == [f"{external}/acme/directory"]


async def test_a_lifetime_shorter_than_the_pause(world, external):
    world.resolve("a.short.test")
    client = await world.client(profile="short")
    leaf = (await client.issue("a.short.test"))[0]
    answer = await renewal_info(world, external, certid(leaf))
    start, end = times(answer)
    assert datetime.now(UTC) + timedelta(hours=12) < start < end < leaf.not_valid_after_utc
    assert 3_300 < int(answer.headers["Retry-After"]) <= 4_320, "a twentieth of a day: it looks before its window ends"


async def test_the_pause_is_a_setting(world, external):
    _client, leaf = await issued(world, "a.test")
    await world.serve(replace(world.options, renewal_retry_after=timedelta(hours=1)))
    assert 2_880 <= int((await renewal_info(world, external, certid(leaf))).headers["Retry-After"]) <= 3_600


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(minutes=5)])
async def test_fact_24_a_revoked_certificates_window_lies_in_the_past(world, external, ahead):
    """Also where the clock of the node that revoked it is ahead."""
    client, leaf = await issued(world, "a.test")
    der = b64url(leaf.public_bytes(Encoding.DER))
    assert (await client.post(f"{client.base}/revoke-cert", {"certificate": der})).status == 200
    moved = int(ahead.total_seconds()) * 1_000_000
    await world.execute(f"UPDATE certificates SET revoked_at = revoked_at + {moved} WHERE revoked_at IS NOT NULL")
    answer = await renewal_info(world, external, certid(leaf))
    start, end = times(answer)
    assert start < end < datetime.now(UTC)
    assert int(answer.headers["Retry-After"]) > 0


async def test_fact_24_a_serial_whose_high_bit_is_set(world, external):
    """DER begins it with a zero octet, and so does its CertID."""
    world.core.issuance._random = lambda length: b"\x01" * length
    _client, leaf = await issued(world, "a.test")
    assert leaf.serial_number == int.from_bytes(b"\x80" * 19, "big")
    key, _, serial = certid(leaf).partition(".")
    assert serial == b64url(b"\0" + b"\x80" * 19)
    assert (await renewal_info(world, external, f"{key}.{serial}")).status == 200
    refused = await renewal_info(world, external, f"{key}.{b64url(bytes(19 * [0x80]))}")
    assert (refused.status, refused.problem) == (400, "malformed")


async def test_unknown_and_foreign_certificates(world, external):
    _client, leaf = await issued(world, "a.test")
    key, _, serial = certid(leaf).partition(".")
    foreign = [f"{b64url(b'k' * 20)}.{serial}", f"{key}.{b64url(b'k' * 20)}"]
    (der,) = (await world.query("SELECT der FROM certificates WHERE subject LIKE '%issuing%'"))[0]
    foreign.append(certid(x509.load_der_x509_certificate(bytes(der))))
    for text in foreign:
        refused = await renewal_info(world, external, text)
        assert (refused.status, refused.problem) == (404, "malformed"), text


async def test_another_tenants_certificate(world, external):
    _client, leaf = await issued(world, "a.test")
    await world.serve(replace(world.options, tenant="other"))
    refused = await renewal_info(world, external, certid(leaf))
    assert (refused.status, refused.problem) == (404, "malformed")


@pytest.mark.parametrize(
    "text", ["x", "directory", "a.b.c", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.h2VDIQ", "%00.%00", "A" * 4000]
)
async def test_a_malformed_certid(world, external, text):
    refused = await renewal_info(world, external, text)
    assert (refused.status, refused.problem) == (400, "malformed")


async def test_other_methods_have_no_such_url(world, external):
    client, leaf = await issued(world, "a.test")
    refused = await client.post(f"{external}/acme/renewal-info/{certid(leaf)}")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


# --- Section 5: orders that replace a certificate -----------------------------------------------------------------


async def test_an_order_that_replaces(world, csr):
    client, leaf = await issued(world, "a.test", "b.test")
    order = await client.order("b.test", "c.test", replaces=certid(leaf))
    assert (order.status, order.json["replaces"]) == (201, certid(leaf))
    for url in (order.headers["Location"],):
        assert (await client.post(url)).json["replaces"] == certid(leaf)
    created = await world.audit("order.created")
    assert [event.get("extra") for event in created] == [None, {"replaces": certid(leaf)}]
    world.resolve("c.test")
    await client.authorize(order)
    done = await client.finalize(order, csr("b.test", "c.test"))
    assert (done.json["status"], done.json["replaces"]) == ("valid", certid(leaf))


async def test_an_order_that_replaces_nothing(world):
    client, _leaf = await issued(world, "a.test")
    assert "replaces" not in (await client.order("a.test")).json
    order = await client.order("a.test", replaces=None)
    assert order.status == 201
    assert "replaces" not in order.json


@pytest.mark.parametrize("state", ["pending", "ready", "processing", "valid", "issued after all"])
async def test_fact_24_a_certificate_is_replaced_once(world, csr, state):
    client, leaf = await issued(world, "a.test")
    names = ("a.test", "b.test") if state == "pending" else ("a.test",)
    await world.serve(replace(world.options, finalize_wait=0.0))
    order = await client.order(*names, replaces=certid(leaf))
    if state == "processing":
        world.core.gate.clear()
    if state in {"processing", "valid", "issued after all"}:
        await client.finalize(order, csr("a.test"))
    if state in {"valid", "issued after all"}:
        await client.poll(order.headers["Location"], "processing")
    if state == "issued after all":
        await world.execute("UPDATE acme_orders SET status = 'invalid' WHERE replaces IS NOT NULL")
    else:
        assert (await client.post(order.headers["Location"])).json["status"] == state
    refused = await client.order("a.test", replaces=certid(leaf))
    assert (refused.status, refused.problem) == (409, "alreadyReplaced")
    assert await world.count("acme_orders") == 2
    assert (await client.order("a.test")).status == 201, "without replaces"
    world.core.gate.set()


async def test_fact_24_two_at_once(world):
    client, leaf = await issued(world, "a.test")
    requests = [
        await client.jws(
            f"{client.base}/new-order",
            {"identifiers": [{"type": "dns", "value": "a.test"}], "replaces": certid(leaf)},
        )
        for _ in range(5)
    ]
    answers = await asyncio.gather(*(client.send(f"{client.base}/new-order", jws) for jws in requests))
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409]


async def test_a_replacement_that_failed_frees_the_certificate(world):
    client, leaf = await issued(world, "a.test")
    for _ in range(2):
        order = await client.order("a.test", "b.test", replaces=certid(leaf))
        assert order.status == 201
        for url in order.json["authorizations"]:
            if (await client.post(url)).json["status"] == "pending":
                assert (await client.post(url, {"status": "deactivated"})).status == 200
        assert (await client.post(order.headers["Location"])).json["status"] == "invalid"
    assert (await client.order("a.test", replaces=certid(leaf))).status == 201


async def test_a_replacement_that_expired_frees_the_certificate(world):
    client, leaf = await issued(world, "a.test")
    assert (await client.order("a.test", "b.test", replaces=certid(leaf))).status == 201
    await world.execute("UPDATE acme_orders SET expires_at = 1 WHERE status = 'pending'")
    assert (await client.order("a.test", "b.test", replaces=certid(leaf))).status == 201


async def test_a_replacement_is_replaced_itself(world, csr):
    client, leaf = await issued(world, "a.test")
    order = await client.order("a.test", replaces=certid(leaf))
    await client.finalize(order, csr("a.test"))
    done = await client.poll(order.headers["Location"], "processing")
    renewed = x509.load_pem_x509_certificates((await client.post(done["certificate"])).body)[0]
    assert (await client.order("a.test", replaces=certid(renewed))).status == 201


async def test_fact_24_what_may_not_be_replaced(world):
    """A certificate of another account, or of another CA, or with other names: all malformed, and on record."""
    client, leaf = await issued(world, "a.test")
    _other, others = await issued(world, "o.test")
    foreign = certid(leaf).partition(".")[0] + "." + b64url(b"k" * 20)
    details = set()
    for text in (certid(others), foreign):
        refused = await client.order("a.test", "o.test", replaces=text)
        assert (refused.status, refused.problem, refused.json["rule"]) == (400, "malformed", "acme.replaces")
        details.add(refused.json["detail"])
    assert len(details) == 1, "whether others have such a certificate is not told"
    refused = await client.order("b.test", "*.a.test", replaces=certid(leaf))
    assert (refused.status, refused.problem, refused.json["rule"]) == (400, "malformed", "acme.replaces")
    assert [event["rule"] for event in await world.audit("issuance.refused")] == ["acme.replaces"] * 3
    assert await world.count("acme_orders") == 2


@pytest.mark.parametrize("text", ["", "x", "a.b", "aYhba4dGQEHhs3uEe6CuLN4ByNQ.h2VDIQ", "A" * 2000, 7, ["x"]])
async def test_fact_24_a_malformed_replaces(world, text):
    client = await world.client()
    refused = await client.order("a.test", replaces=text)
    assert (refused.status, refused.problem) == (400, "malformed")
    assert await world.count("acme_orders") == 0
