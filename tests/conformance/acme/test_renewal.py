"""RFC 9773: renewal information, and orders that replace a certificate."""

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
    assert 21_000 <= int(answer.headers["Retry-After"]) <= 22_000
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
    assert 3_600 < int(answer.headers["Retry-After"]) < 4_500, "a twentieth of a day: it looks before its window ends"


async def test_the_pause_is_a_setting(world, external):
    _client, leaf = await issued(world, "a.test")
    await world.serve(replace(world.options, renewal_retry_after=timedelta(hours=1)))
    assert (await renewal_info(world, external, certid(leaf))).headers["Retry-After"] == "3600"


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
    assert (refused.status, refused.headers["Allow"]) == (405, "GET")
