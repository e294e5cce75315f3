"""Hostile OCSP requests: whatever the bytes, the codec says DerError and nothing else, and the responder answers."""

import asyncio
import base64
import warnings
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ca_server.core.der import DerError, encode, encode_integer, encode_oid
from ca_server.core.ocsp import OcspResponder, Responder
from ca_server.core.ocsp_codec import MAX_CERT_IDS, OcspRequest, parse_request
from ca_server.core.ports import OcspQuery
from ca_server.domain.certificates import RevocationReason, SerialStatus, StatusValue
from ca_server.domain.keys import KeyAlgorithm
from protocols.status.wire import IssuerPath, MalformedPathError, decode_get_path, parse_issuer_path

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
STATUSES = [
    SerialStatus(StatusValue.GOOD),
    SerialStatus(StatusValue.REVOKED, NOW, RevocationReason.SUPERSEDED),
    SerialStatus(StatusValue.REVOKED, NOW, RevocationReason.UNSPECIFIED),
    SerialStatus(StatusValue.RESERVED),
    SerialStatus(StatusValue.ABANDONED),
    SerialStatus(StatusValue.UNKNOWN),
]


@cache
def private():
    return ec.derive_private_key(7, ec.SECP256R1())


@cache
def authority() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    builder = x509.CertificateBuilder(name, name, private().public_key(), 1, NOW, NOW + timedelta(days=1))
    return builder.sign(private(), hashes.SHA256())


class Key:
    label = "ocsp"
    algorithm = KeyAlgorithm.P256

    @property
    def spki_der(self) -> bytes:
        return private().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(self, data: bytes) -> bytes:
        return private().sign(data, ec.ECDSA(hashes.SHA256()))


class Store:
    """Every serial has one of all statuses."""

    async def serial_status(self, issuer: str, serial: str) -> SerialStatus:
        return STATUSES[int(serial, 16) % len(STATUSES)]


@cache
def responder() -> OcspResponder:
    made = OcspResponder(
        store=Store(),
        issuers=SimpleNamespace(all=lambda: [SimpleNamespace(name="ca", certificate=authority())]),
        responder=lambda _: Responder(Key(), authority()),
        lifetime=timedelta(hours=1),
        unknown_serial="unknown",
        clock=lambda: NOW,
    )
    made.index()
    return made


def answer(der: bytes) -> ocsp.OCSPResponse:
    """What the responder says to any bytes, without so much as a warning; its signature is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answered = asyncio.run(responder().respond(OcspQuery(der)))
    response = ocsp.load_der_ocsp_response(answered.response_der)
    if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
        private().public_key().verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
    else:
        assert not answered.cacheable
    return response


def parsed(der: bytes) -> OcspRequest | None:
    try:
        return parse_request(der)
    except DerError:
        return None


@cache
def samples() -> tuple[bytes, ...]:
    made = []
    for algorithm in (hashes.SHA1(), hashes.SHA256()):
        builder = ocsp.OCSPRequestBuilder().add_certificate(authority(), authority(), algorithm)
        made.append(builder.build().public_bytes(Encoding.DER))
        builder = builder.add_extension(x509.OCSPNonce(b"n" * 32), critical=False)
        made.append(builder.build().public_bytes(Encoding.DER))
    # Two CertIDs, with a requestorName and a signature.
    cert_ids = [request[6 : 6 + 2 + request[7]] for request in made[:1]] * 2
    tbs = encode(0x30, encode(0xA1, encode(0x82, b"c.test")), encode(0x30, *cert_ids))
    made.append(encode(0x30, tbs, encode(0xA0, encode(0x30, b"\x05\x00"))))
    return tuple(made)


def test_the_samples_are_good():
    for sample in samples():
        assert answer(sample).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL


@given(st.binary(max_size=400))
@example(b"\x30" * 20_000)
@settings(deadline=None)
def test_arbitrary_bytes(data):
    for der in (data, encode(0x30, data), encode(0x30, encode(0x30, encode(0x30, encode(0x30, data))))):
        assert answer(der).response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


@given(st.integers(0, 4), st.data())
@settings(deadline=None)
def test_mutated_requests(index, data):
    der = bytearray(samples()[index])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(der) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert"]))
        if action == "set":
            der[position] = data.draw(st.integers(0, 255))
        elif action == "delete":
            del der[position]
        else:
            der.insert(position, data.draw(st.integers(0, 255)))
    response = answer(bytes(der))
    understood = response.response_status is not ocsp.OCSPResponseStatus.MALFORMED_REQUEST
    assert understood is (parsed(bytes(der)) is not None)
    agrees_with_the_library(bytes(der))


def agrees_with_the_library(der: bytes) -> None:
    """Where both understand a request, they understand the same."""
    ours = parsed(der)
    try:
        theirs = ocsp.load_der_ocsp_request(der)
        fields = (theirs.serial_number, theirs.issuer_name_hash, theirs.issuer_key_hash)
        nonces = [item.value.nonce for item in theirs.extensions if isinstance(item.value, x509.OCSPNonce)]
    except Exception:  # noqa: BLE001 - the library may refuse in any way
        return
    if ours is None:
        return
    (cert_id,) = ours.cert_ids
    assert (cert_id.serial, cert_id.issuer_name_hash, cert_id.issuer_key_hash) == fields
    assert ([] if ours.nonce is None else [ours.nonce]) == nonces


HASHES = st.sampled_from(["1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.3", "1.2.3.4"])
CERT_IDS = st.builds(
    lambda oid, null, name, key, serial: encode(
        0x30,
        encode(0x30, encode_oid(oid), b"\x05\x00" if null else b""),
        encode(0x04, name),
        encode(0x04, key),
        encode_integer(serial),
    ),
    HASHES,
    st.booleans(),
    st.binary(max_size=64),
    st.binary(max_size=64),
    st.integers(0, 2**170),
)


@given(st.lists(CERT_IDS, max_size=MAX_CERT_IDS + 2), st.none() | st.binary(max_size=140))
@settings(deadline=None)
def test_requests_are_read_as_written(cert_ids, nonce):
    extensions = b""
    if nonce is not None:
        value = encode(0x04, encode(0x04, nonce))
        extensions = encode(0xA2, encode(0x30, encode(0x30, encode_oid("1.3.6.1.5.5.7.48.1.2"), value)))
    listed = encode(0x30, *(encode(0x30, cert_id) for cert_id in cert_ids))
    der = encode(0x30, encode(0x30, listed, extensions))
    request = parsed(der)
    fits = 1 <= len(cert_ids) <= MAX_CERT_IDS and (nonce is None or 1 <= len(nonce) <= 128)
    assert (request is not None) is fits
    if request is not None:
        assert [cert_id.der for cert_id in request.cert_ids] == cert_ids
        assert request.nonce == nonce
    if len(cert_ids) == 1:
        agrees_with_the_library(der)


@given(st.lists(st.integers(1, 2**150), min_size=1, max_size=MAX_CERT_IDS))
@settings(deadline=None)
def test_answers_are_in_order(serials):
    known = parse_request(samples()[0]).cert_ids[0]
    hashed = encode(0x04, known.issuer_name_hash) + encode(0x04, known.issuer_key_hash)
    algorithm = encode(0x30, encode_oid("1.3.14.3.2.26"))
    cert_ids = [encode(0x30, algorithm, hashed, encode_integer(serial)) for serial in serials]
    der = encode(0x30, encode(0x30, encode(0x30, *(encode(0x30, cert_id) for cert_id in cert_ids))))
    responses = list(answer(der).responses)
    assert [single.serial_number for single in responses] == serials
    shown = {0: "GOOD", 1: "REVOKED", 2: "REVOKED", 3: "UNKNOWN", 4: "REVOKED", 5: "UNKNOWN"}
    assert [single.certificate_status.name for single in responses] == [shown[serial % 6] for serial in serials]


# --- Paths ---------------------------------------------------------------------------------------------------------


@given(
    st.binary(min_size=1, max_size=900),
    st.sampled_from(["", "/", "%2F"]),
    st.sampled_from(["/+=", "/", "+", "", None]),
    st.booleans(),
)
def test_get_paths_round_trip(content, extra, safe, padded):
    """Escaped, partly or wholly, or plain, with slashes in front: a DER SEQUENCE comes out as it went in."""
    der = encode(0x30, content)
    text = base64.b64encode(der).decode()
    text = text if padded else text.rstrip("=")
    written = "".join(f"%{ord(char):02x}" for char in text) if safe is None else quote(text, safe=safe)
    assert decode_get_path(f"/ocsp/{extra}{written}", "/ocsp/") == der


@given(st.one_of(st.text(max_size=200), st.text(alphabet="AM/+=%2Ff0", max_size=200)))
def test_any_get_path(text):
    try:
        der = decode_get_path(f"/ocsp/{text}", "/ocsp/")
    except MalformedPathError:
        return
    answer(der)


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[a-z0-9.-]{0,20}(\.[0-9]{0,8}){0,3}(\.crl)?", fullmatch=True)))
def test_any_issuer_path(text):
    try:
        path = parse_issuer_path(text, ".crl")
    except MalformedPathError:
        return
    assert isinstance(path, IssuerPath)
    assert path.issuer in text
    assert path.partition in range(1_000_000)
    assert path.generation is None or path.generation in range(1_000_000)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    st.integers(0, 999_999),
    st.integers(0, 999_999),
)
def test_issuer_paths_round_trip(issuer, generation, partition):
    assert parse_issuer_path(f"{issuer}.{generation}.{partition}.crl", ".crl") == IssuerPath(
        issuer, generation, partition
    )
