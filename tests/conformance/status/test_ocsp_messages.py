"""OCSP over HTTP, message by message (RFC 6960 sections 4.1 and appendix A, RFC 9654): status facts 1, 4, 6, 7, 10."""

import asyncio
import base64
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ca_server.core.der import encode, encode_oid
from ca_server.core.ports import OcspQuery

MALFORMED, UNAUTHORIZED = "MALFORMED_REQUEST", "UNAUTHORIZED"


def extension(oid: str, value: bytes, *, critical: bytes = b"") -> bytes:
    return encode(0x30, encode_oid(oid), critical, encode(0x04, value))


# --- Fact 1: GET and POST ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["sha1", "sha256"])
@pytest.mark.parametrize("revoked", [False, True])
async def test_get_and_post_mean_the_same(world: Any, digest: str, revoked: bool) -> None:
    certificate = await world.issue()
    if revoked:
        await world.revoke(certificate)
    der = world.request(world.cert_id(certificate.serial_number, digest=digest))
    meanings = []
    for answer in (await world.get(der), await world.post(der)):
        response = answer.ocsp
        (single,) = response.responses
        assert answer.max_age > 0
        meanings.append(
            (
                response.responder_key_hash,
                response.certificates,
                single.certificate_status,
                single.revocation_time_utc,
                single.revocation_reason,
                single.serial_number,
                single.hash_algorithm.name,
                single.issuer_key_hash,
                answer.headers["Content-Type"],
                answer.headers["Cache-Control"],
            )
        )
    assert meanings[0] == meanings[1]


async def awkward_request(world: Any) -> tuple[bytes, str]:
    """A request whose base64 has `+`, `/` and `//`: which it has depends on the serial, asked for at random."""
    for number in range(100_000):
        serial = int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:16], "big") | 0xFFFFF << 48
        der = world.request(world.cert_id(serial))
        text = base64.b64encode(der).decode()
        if "+" in text and "//" in text and text.endswith("="):
            await world.reserve(serial)
            return der, text
    raise AssertionError("none found")


@pytest.mark.parametrize(
    ("path", "replacements"),
    [
        ("/ocsp/", {}),
        ("/ocsp//", {}),
        ("/ocsp/", {"/": "%2F"}),
        ("/ocsp/", {"/": "%2f", "+": "%2b", "=": "%3d"}),
        ("/ocsp/", {"/": "%2F", "+": "%2B", "=": "%3D"}),
        ("/ocsp///", {"+": "%2B"}),
        ("/ocsp/%2F", {}),
        ("/ocsp/", {"=": ""}),
    ],
)
async def test_get_reads_the_raw_path(world: Any, path: str, replacements: dict[str, str]) -> None:
    _, text = await awkward_request(world)
    for old, new in replacements.items():
        text = text.replace(old, new)
    assert (await world.send("GET", path + text)).outcome == "UNKNOWN"
    assert world.observed[-1] == ("issuing", "reserved")


@pytest.mark.parametrize("text", ["", "/", "%", "not%20base64!", "TUlJ", "MEUwQ%zz", "A", "%00", "%ff%fe", "MA==MA=="])
async def test_get_of_what_is_no_request(world: Any, text: str) -> None:
    assert (await world.send("GET", f"/ocsp/{text}")).outcome == MALFORMED


async def test_get_is_unescaped_once(world: Any) -> None:
    _, text = await awkward_request(world)
    assert (await world.send("GET", f"/ocsp/{text.replace('+', '%252B')}")).outcome == MALFORMED


async def test_get_ignores_the_query(world: Any) -> None:
    certificate = await world.issue()
    der = world.request(world.cert_id(certificate.serial_number))
    assert (await world.send("GET", f"/ocsp/{base64.b64encode(der).decode()}?x=1")).outcome == "GOOD"


async def test_post_wants_the_media_type(world: Any) -> None:
    """Appendix A.1."""
    der = world.request(world.cert_id(1))
    answer = await world.send("POST", "/ocsp", der, {"Content-Type": "application/octet-stream"})
    assert (answer.status, answer.headers["Cache-Control"]) == (415, "no-store")
    answer = await world.send("POST", "/ocsp/", der, {"Content-Type": "application/ocsp-request"})
    assert answer.outcome == "UNKNOWN"


# --- Fact 4: issuer and serial, CertID echoed ----------------------------------------------------------------------


async def test_a_serial_is_of_an_issuer(world: Any) -> None:
    here, there = await world.issue(), await world.issue("elsewhere")
    assert await world.ask(here.serial_number) == "GOOD"
    assert await world.ask(here.serial_number, "other") == "UNKNOWN"
    assert await world.ask(there.serial_number, "other") == "GOOD"
    assert await world.ask(there.serial_number) == "UNKNOWN"
    await world.revoke(here)
    assert await world.ask(here.serial_number) == "REVOKED"
    assert await world.ask(there.serial_number, "other") == "GOOD"


@pytest.mark.parametrize("digest", ["sha1", "sha256"])
@pytest.mark.parametrize("null", [False, True])
async def test_the_cert_id_is_echoed_byte_for_byte(world: Any, digest: str, null: bool) -> None:
    certificate = await world.issue()
    cert_id = world.cert_id(certificate.serial_number, digest=digest, null=null)
    answer = await world.post(world.request(cert_id))
    assert answer.outcome == "GOOD"
    assert answer.body.count(cert_id + bytes.fromhex("8000")) == 1


async def test_an_issuer_that_is_not_ours(world: Any) -> None:
    """Section 2.3: not capable of answering authoritatively."""
    ours = world.cert_id(5)
    for at in (30, 55):  # in issuerNameHash, in issuerKeyHash
        theirs = bytearray(ours)
        theirs[at] ^= 1
        assert (await world.post(world.request(bytes(theirs)))).outcome == UNAUTHORIZED
    # A hash that the hashes are not of.
    assert (await world.post(world.request(world.cert_id(5, oid="2.16.840.1.101.3.4.2.1")))).outcome == UNAUTHORIZED
    # The root delegates to no responder.
    assert (await world.post(world.request(world.cert_id(5, "root")))).outcome == UNAUTHORIZED


@pytest.mark.parametrize("oid", ["1.2.840.113549.2.5", "2.16.840.1.101.3.4.2.4", "1.2.3.4"])
async def test_a_hash_that_nobody_here_computes(world: Any, oid: str) -> None:
    assert (await world.post(world.request(world.cert_id(5, oid=oid)))).outcome == UNAUTHORIZED


@pytest.mark.parametrize("serial", [0, -1, -(2**70), 2**160, 2**4000], ids=range(5))
async def test_a_serial_that_no_certificate_has(world: Any, serial: int) -> None:
    assert await world.ask(serial) == "UNKNOWN"


async def test_a_signed_request_is_answered(world: Any) -> None:
    """Section 4.1.1: requestorName and signature may be there; who asks does not matter."""
    certificate = await world.issue()
    plain = world.request(world.cert_id(certificate.serial_number))
    name = encode(0xA1, encode(0x82, b"client.test"))
    request_list = plain[4:]
    signature = encode(0xA0, encode(0x30, encode(0x30, encode_oid("1.2.840.10045.4.3.2")), encode(0x03, b"\0\0")))
    der = encode(0x30, encode(0x30, name, request_list), signature)
    assert (await world.post(der)).outcome == "GOOD"


# --- Fact 6: several requests in one message -----------------------------------------------------------------------


async def test_several_are_answered_in_order(world: Any) -> None:
    certificates = [await world.issue() for _ in range(3)]
    await world.revoke(certificates[1])
    serials = [certificate.serial_number for certificate in certificates] + [77]
    ids = [world.cert_id(serial, digest=("sha1", "sha256")[n % 2], null=n > 1) for n, serial in enumerate(serials)]
    answer = await world.post(world.request(*ids))
    assert answer.outcome == "GOOD REVOKED GOOD UNKNOWN"
    assert [single.serial_number for single in answer.ocsp.responses] == serials
    places = [answer.body.index(cert_id) for cert_id in ids]
    assert places == sorted(places)
    assert answer.headers["Cache-Control"] == "no-store"
    assert world.observed[-4:] == [("issuing", value) for value in ("good", "revoked", "good", "unknown")]


async def test_they_are_capped(world: Any) -> None:
    cert_id = world.cert_id(5)
    assert (await world.post(world.request(*[cert_id] * 20))).outcome == " ".join(["UNKNOWN"] * 20)
    assert (await world.post(world.request(*[cert_id] * 21))).outcome == MALFORMED


async def test_none_is_too_few(world: Any) -> None:
    assert (await world.post(world.request())).outcome == MALFORMED


async def test_two_issuers_have_no_common_responder(world: Any) -> None:
    here, there = await world.issue(), await world.issue("elsewhere")
    ids = world.cert_id(here.serial_number), world.cert_id(there.serial_number, "other")
    assert (await world.post(world.request(*ids))).outcome == UNAUTHORIZED


# --- Fact 7: nonces (RFC 9654) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 32, 128])
async def test_a_nonce_is_echoed_and_not_cached(world: Any, length: int) -> None:
    certificate = await world.issue()
    nonce = bytes(range(length))
    der = world.request(world.cert_id(certificate.serial_number), nonce=nonce)
    for answer in (await world.post(der), await world.get(der)):
        echoed = answer.ocsp.extensions.get_extension_for_class(x509.OCSPNonce)
        assert (echoed.value.nonce, echoed.critical) == (nonce, False)
        assert answer.headers["Cache-Control"] == "no-store"
    assert len({(await world.post(der)).ocsp.signature for _ in range(3)}) == 3


@pytest.mark.parametrize("length", [0, 129, 1000])
async def test_a_nonce_of_another_length_is_malformed(world: Any, length: int) -> None:
    """RFC 9654 section 2.1."""
    assert (await world.post(world.request(world.cert_id(5), nonce=b"n" * length))).outcome == MALFORMED


async def test_no_nonce_no_nonce(world: Any) -> None:
    assert list((await world.post(world.request(world.cert_id(5)))).ocsp.extensions) == []


# --- Section 4.1.2: extensions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extensions", "outcome"),
    [
        ([extension("1.3.6.1.5.5.7.48.1.4", encode(0x30, encode_oid("1.3.6.1.5.5.7.48.1.1")))], "UNKNOWN"),
        ([extension("1.2.3.4", b"anything")], "UNKNOWN"),
        ([extension("1.2.3.4", b"anything", critical=encode(0x01, b"\xff"))], MALFORMED),
        ([extension("1.2.3.4", b"", critical=encode(0x01, b"\x00"))], MALFORMED),
        ([extension("1.2.3.4", b"a"), extension("1.2.3.4", b"b")], MALFORMED),
        ([extension("1.3.6.1.5.5.7.48.1.2", encode(0x04, b"n"), critical=encode(0x01, b"\xff"))], "UNKNOWN"),
        ([extension("1.3.6.1.5.5.7.48.1.2", encode(0x04, b"n"), critical=encode(0x01, b"\x00"))], MALFORMED),
        ([extension("1.3.6.1.5.5.7.48.1.2", encode(0x04, b"n"), critical=encode(0x01, b"\x01"))], MALFORMED),
        ([extension("1.3.6.1.5.5.7.48.1.2", b"bare")], MALFORMED),
        ([extension("1.3.6.1.5.5.7.48.1.2", encode(0x04, b"n") + b"more")], MALFORMED),
    ],
)
async def test_request_extensions(world: Any, extensions: list[bytes], outcome: str) -> None:
    assert (await world.post(world.request(world.cert_id(5), extensions=extensions))).outcome == outcome


@pytest.mark.parametrize(("critical", "outcome"), [(b"", "UNKNOWN"), (encode(0x01, b"\xff"), MALFORMED)])
async def test_a_nonce_is_the_requests_alone(world: Any, critical: bytes, outcome: str) -> None:
    """In singleRequestExtensions it means nothing (RFC 9654 section 2.1)."""
    nonce = extension("1.3.6.1.5.5.7.48.1.2", encode(0x04, b"n"), critical=critical)
    single = encode(0x30, world.cert_id(5), encode(0xA0, encode(0x30, nonce)))
    answer = await world.post(encode(0x30, encode(0x30, encode(0x30, single))))
    assert answer.outcome == outcome
    if outcome == "UNKNOWN":
        assert list(answer.ocsp.extensions) == []


# --- Fact 10: what is no request -----------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    der = b"\x05\x00"
    for _ in range(depth):
        der = encode(0x30, der)
    return der


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x80\x00\x00",
        b"\x30\x00",
        b"\xff" * 100,
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x03\x30\x01\x30",
        nested(3000),
        b"\x30" * 16_000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(10),
)
async def test_garbage(world: Any, der: bytes) -> None:
    assert len(der) <= 16_384
    assert (await world.post(der)).outcome == MALFORMED
    assert world.observed[-1] == ("", "malformed")


def variants(good: bytes) -> dict[str, bytes]:
    """A good request, spoilt."""
    tbs = good[2:]
    return {
        "trailing": good + b"\x00",
        "trailing element": good + b"\x05\x00",
        "cut": good[:-1],
        "indefinite": b"\x30\x80" + tbs + b"\x00\x00",
        "long length": b"\x30\x81" + good[1:],
        "set": b"\x31" + good[1:],
        "something after the TBSRequest": encode(0x30, tbs, b"\x05\x00"),
        "version 1 written out": encode(0x30, encode(0x30, encode(0xA0, encode(0x02, b"\x00")), tbs[2:])),
        "empty Extensions": encode(0x30, encode(0x30, tbs[2:], encode(0xA2, encode(0x30)))),
        "two requestorNames in one": encode(0x30, encode(0x30, encode(0xA1, b"\x82\x00\x82\x00"), tbs[2:])),
        "two signatures in one": encode(0x30, tbs, encode(0xA0, b"\x30\x00\x30\x00")),
        "a signature that is empty": encode(0x30, tbs, encode(0xA0)),
        "version 2": encode(0x30, encode(0x30, encode(0xA0, encode(0x02, b"\x01")), tbs[2:])),
    }


async def test_not_quite_a_request(world: Any) -> None:
    good = world.request(world.cert_id(5))
    assert (await world.post(good)).outcome == "UNKNOWN"
    for name, der in variants(good).items():
        assert (await world.post(der)).outcome == MALFORMED, name


async def test_cert_ids_that_are_none(world: Any) -> None:
    algorithm = encode(0x30, encode_oid("1.3.14.3.2.26"), b"\x05\x00")
    hashed = encode(0x04, b"h" * 20)
    for parts in (
        (algorithm, hashed, hashed, b"\x02\x02\x00\x01"),  # not minimal
        (algorithm, hashed, hashed, b"\x02\x02\xff\xff"),
        (algorithm, hashed, hashed, b"\x02\x00"),
        (algorithm, hashed, hashed),
        (algorithm, hashed, hashed, b"\x02\x01\x05", b"\x05\x00"),
        (algorithm, hashed, b"\x03\x01\x00", b"\x02\x01\x05"),
        (encode(0x30, encode_oid("1.3.14.3.2.26"), b"\x05\x01\x00"), hashed, hashed, b"\x02\x01\x05"),
        (encode(0x30, encode_oid("1.3.14.3.2.26"), b"\x04\x00"), hashed, hashed, b"\x02\x01\x05"),
        (encode(0x30, b"\x06\x01\x80"), hashed, hashed, b"\x02\x01\x05"),
    ):
        assert (await world.post(world.request(encode(0x30, *parts)))).outcome == MALFORMED, parts


async def test_bodies_of_64_kilobytes(world: Any) -> None:
    """With a length and without: refused before anybody looks inside."""

    async def chunks() -> Any:
        for _ in range(64):
            yield b"\x30" * 1024

    asked = len(world.observed)
    assert (await world.post(b"\x30" * 65_536)).outcome == MALFORMED
    assert (await world.post(chunks())).outcome == MALFORMED
    await world.serve(max_body=32_768)
    assert (await world.post(b"\x30" * 65_536)).outcome == MALFORMED
    assert (await world.post(chunks())).outcome == MALFORMED
    assert len(world.observed) == asked


async def test_the_core_has_its_own_limit(world: Any) -> None:
    """What comes through the port was read by a front, in which the core has no trust."""

    def padded(size: int) -> bytes:
        der: bytes = world.request(world.cert_id(5), extensions=[extension("1.2.3.4", b"x" * size)])
        return der

    over = 16_384 - len(padded(16_000)) + 16_000
    for size, outcome in ((over, "SUCCESSFUL"), (over + 1, MALFORMED)):
        answer = await world.core.respond_ocsp(OcspQuery(padded(size)))
        assert ocsp.load_der_ocsp_response(answer.response_der).response_status.name == outcome


async def test_a_length_alone_is_enough_to_refuse(world: Any) -> None:
    """Nobody waits for the body of a request that says how long it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    head = "POST /ocsp HTTP/1.1", "Host: a", "Content-Type: application/ocsp-request", "Content-Length: 65536", "", ""
    writer.write("\r\n".join(head).encode())
    status = await reader.readline()
    assert status == b"HTTP/1.1 200 OK\r\n"
    while await reader.readline() != b"\r\n":
        pass
    assert await reader.readexactly(5) == bytes.fromhex("30030a0101")
    writer.close()


# --- What clients build --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
async def test_requests_of_cryptography(world: Any, algorithm: hashes.HashAlgorithm) -> None:
    certificate = await world.issue()
    built = (
        ocsp.OCSPRequestBuilder()
        .add_certificate(certificate, world.issuer().certificate, algorithm)
        .add_extension(x509.OCSPNonce(b"n" * 32), critical=False)
        .build()
    )
    response = (await world.post(built.public_bytes(Encoding.DER))).ocsp
    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert response.hash_algorithm.name == algorithm.name
    assert response.issuer_key_hash == built.issuer_key_hash
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32
    key = response.certificates[0].public_key()
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(response.signature_hash_algorithm))
