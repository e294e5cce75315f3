"""Hostile bytes into the JOSE codec and the payload decoder; signatures of every algorithm, and flipped bits."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.acme.encoding import EncodingError, b64url_decode, b64url_encode
from protocols.acme.jws import (
    SIGNATURE_ALGORITHMS,
    Jws,
    JwsError,
    JwsErrorKind,
    parse_binding,
    parse_jwk,
    parse_jws,
    verify_jws,
)
from protocols.acme.key_change import parse_key_change
from protocols.acme.nonces import BadNonceError, NonceBook
from protocols.acme.objects import (
    AccountUpdate,
    AuthorizationUpdate,
    ChallengeResponse,
    ContactError,
    Finalize,
    KeyChange,
    NewAccount,
    NewAuthorization,
    NewOrder,
    PayloadError,
    RevokeCert,
    decode_payload,
    parse_contact,
)

URL = "https://ca.test/acme/new-order"
KINDS = (
    AccountUpdate,
    AuthorizationUpdate,
    ChallengeResponse,
    Finalize,
    KeyChange,
    NewAccount,
    NewAuthorization,
    NewOrder,
    RevokeCert,
)
Signer = Callable[[bytes], bytes]


def _text(number: int, size: int) -> str:
    return b64url_encode(number.to_bytes(size, "big"))


@cache
def signer(algorithm: str) -> tuple[dict[str, str], Signer]:
    """A fixed key of the algorithm: its JWK, and what signs with it."""
    if algorithm.startswith("ES"):
        curve, crv, size, digest = {
            "ES256": (ec.SECP256R1(), "P-256", 32, hashes.SHA256()),
            "ES384": (ec.SECP384R1(), "P-384", 48, hashes.SHA384()),
            "ES512": (ec.SECP521R1(), "P-521", 66, hashes.SHA512()),
        }[algorithm]
        ec_key = ec.generate_private_key(curve)
        point = ec_key.public_key().public_numbers()

        def sign_ec(data: bytes) -> bytes:
            r, s = decode_dss_signature(ec_key.sign(data, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")

        return {"kty": "EC", "crv": crv, "x": _text(point.x, size), "y": _text(point.y, size)}, sign_ec
    if algorithm == "EdDSA":
        ed_key = ed25519.Ed25519PrivateKey.generate()
        x = b64url_encode(ed_key.public_key().public_bytes_raw())
        return {"kty": "OKP", "crv": "Ed25519", "x": x}, ed_key.sign
    rsa_key = rsa.generate_private_key(65537, 2048)
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if algorithm == "PS256" else padding.PKCS1v15()
    jwk = {"kty": "RSA", "n": _text(rsa_key.public_key().public_numbers().n, 256), "e": "AQAB"}
    return jwk, lambda data: rsa_key.sign(data, scheme, hashes.SHA256())


def signed(algorithm: str, payload: bytes, **more: Any) -> bytes:
    """A JWS as a client would send it; None leaves a member of the header out."""
    jwk, sign = signer(algorithm)
    members = {"alg": algorithm, "nonce": "AAAA", "url": URL, "jwk": jwk, **more}
    header = b64url_encode(json.dumps({name: value for name, value in members.items() if value is not None}).encode())
    body = b64url_encode(payload)
    signature = b64url_encode(sign(f"{header}.{body}".encode()))
    return json.dumps({"protected": header, "payload": body, "signature": signature}).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
jwk_texts = (
    st.text(alphabet="ABCDabcd0123-_=", max_size=90)
    | st.binary(max_size=66).map(b64url_encode)
    | st.sampled_from([32, 48, 66, 256]).flatmap(lambda n: st.binary(min_size=n, max_size=n)).map(b64url_encode)
)
jwks = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["EC", "RSA", "OKP", "oct"]) | json_values,
        "crv": st.sampled_from(["P-256", "P-384", "P-521", "Ed25519", "X25519"]) | json_values,
        "d": json_values,
        **dict.fromkeys(("x", "y", "n", "e"), jwk_texts | json_values),
    },
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from([*SIGNATURE_ALGORITHMS, "HS256", "none"]) | json_values,
        "url": st.just(URL) | json_values,
        "nonce": st.just("AAAA") | json_values,
        "kid": st.just("https://ca.test/acme/account/1") | json_values,
        "jwk": jwks | json_values,
        "crit": json_values,
        "b64": json_values,
    },
)
parts = st.text(max_size=20) | st.binary(max_size=40).map(b64url_encode) | json_values
outers = st.fixed_dictionaries(
    {},
    optional={
        "protected": headers.map(lambda value: b64url_encode(json.dumps(value).encode())) | parts,
        "payload": jwks.map(lambda value: b64url_encode(json.dumps(value).encode())) | parts,
        "signature": parts,
        "header": json_values,
        "signatures": json_values,
    },
)
bodies = st.binary(max_size=200) | (json_values | outers).map(lambda value: json.dumps(value).encode())
ACCOUNT_KEY = parse_jwk(signer("ES256")[0])


@given(bodies)
def test_any_body_gives_a_jws_or_a_typed_error(body: bytes) -> None:
    with suppress(JwsError):
        jws = parse_jws(body)
        assert (jws.jwk is None) != (jws.kid is None)
        assert jws.algorithm in SIGNATURE_ALGORITHMS
        with suppress(JwsError):
            verify_jws(jws, jws.jwk or ACCOUNT_KEY)


@given(jwks | st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_key_is_read_or_a_typed_error(data: dict[str, Any] | bytes) -> None:
    with suppress(JwsError):
        key = parse_jwk(data)
        assert parse_jwk(key.canonical) == key


@given(bodies)
def test_any_binding_is_refused_with_a_typed_error(body: bytes) -> None:
    with suppress(JwsError):
        parse_binding(body, URL, ACCOUNT_KEY)


ACCOUNT = "https://ca.test/acme/account/1"
inner_payloads = st.fixed_dictionaries(
    {},
    optional={
        "account": st.just(ACCOUNT) | json_values,
        "oldKey": st.just(signer("ES256")[0]) | jwks | json_values,
    },
).map(lambda value: json.dumps(value).encode())


@given(bodies)
def test_any_key_change_is_refused_with_a_typed_error(body: bytes) -> None:
    with pytest.raises((JwsError, PayloadError)):
        parse_key_change(body, URL, ACCOUNT, ACCOUNT_KEY)


@given(inner_payloads | st.binary(max_size=60), st.sampled_from([URL, ACCOUNT]), st.booleans())
@settings(deadline=None)
def test_a_signed_key_change_is_taken_only_where_all_of_it_is_right(payload: bytes, url: str, nonce: bool) -> None:
    header = {"url": url} | ({"nonce": "AAAA"} if nonce else {"nonce": None})
    body = signed("EdDSA", payload, **header)
    try:
        new = parse_key_change(body, URL, ACCOUNT, ACCOUNT_KEY)
    except (JwsError, PayloadError):
        return
    members = json.loads(payload)
    assert (members["account"], parse_jwk(members["oldKey"])) == (ACCOUNT, ACCOUNT_KEY)
    assert (url, nonce, new) == (URL, False, parse_jwk(signer("EdDSA")[0]))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=40)
def test_any_payload_is_decoded_or_a_typed_error(kind: type, data: bytes) -> None:
    with suppress(PayloadError):
        assert isinstance(decode_payload(kind, data), kind)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "identifiers": st.lists(st.fixed_dictionaries({"type": json_values, "value": json_values}), max_size=3),
            "notAfter": st.datetimes().map(lambda time: time.isoformat() + "+12:00") | st.text(max_size=30),
            "csr": st.text(alphabet="ABab-_=/+", max_size=12),
            "certificate": st.text(alphabet="ABab-_=/+", max_size=12),
            "reason": json_values,
            "contact": json_values | st.lists(st.text(max_size=8), max_size=3),
        },
    )
)
def test_payloads_with_known_members_are_decoded_or_a_typed_error(value: dict[str, Any]) -> None:
    for kind in KINDS:
        with suppress(PayloadError):
            decode_payload(kind, json.dumps(value).encode())


@given(st.text(max_size=40) | st.text(max_size=40).map("mailto:{}".format))
def test_any_contact_is_taken_or_a_typed_error(contact: str) -> None:
    with suppress(ContactError):
        parse_contact(contact)


@given(st.text(max_size=60) | st.binary(min_size=36, max_size=36).map(b64url_encode))
def test_no_nonce_that_was_not_issued_is_taken(text: str) -> None:
    from datetime import timedelta

    with pytest.raises(BadNonceError):
        NonceBook(b"k" * 32, timedelta(hours=1)).check(text)


@given(st.binary(max_size=64))
def test_base64url_round_trip(data: bytes) -> None:
    text = b64url_encode(data)
    assert b64url_decode(text) == data
    padded = base64.urlsafe_b64encode(data).decode()
    assert b64url_decode(padded, padded_ok=True) == data
    if padded != text:
        with pytest.raises(EncodingError):
            b64url_decode(padded)


@given(st.text(alphabet="ABCabc019-_=+/ \n", max_size=12))
def test_base64url_has_one_text_for_one_value(text: str) -> None:
    with suppress(EncodingError):
        assert b64url_encode(b64url_decode(text)) == text


@pytest.mark.parametrize("algorithm", SIGNATURE_ALGORITHMS)
@given(payload=st.binary(max_size=60))
@settings(max_examples=10, deadline=None)
def test_signature_round_trip(algorithm: str, payload: bytes) -> None:
    jws = parse_jws(signed(algorithm, payload))
    assert jws.jwk is not None
    verify_jws(jws, jws.jwk)
    assert (jws.payload, jws.algorithm, jws.url, jws.nonce) == (payload, algorithm, URL, "AAAA")


@pytest.mark.parametrize("algorithm", SIGNATURE_ALGORITHMS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_flipped_bits_are_refused(algorithm: str, data: st.DataObject) -> None:
    jws = parse_jws(signed(algorithm, b'{"a":1}'))
    assert jws.jwk is not None
    part = data.draw(st.sampled_from(["signing_input", "signature"]))
    octets = bytearray(getattr(jws, part))
    bit = data.draw(st.integers(0, len(octets) * 8 - 1))
    octets[bit // 8] ^= 1 << bit % 8
    members = {name: getattr(jws, name) for name in Jws.__slots__}
    with pytest.raises(JwsError) as refusal:
        verify_jws(Jws(**{**members, part: bytes(octets)}), jws.jwk)
    assert refusal.value.kind is JwsErrorKind.UNAUTHORIZED
