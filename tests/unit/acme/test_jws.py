"""The form of a JWS, member by member (RFC 8555 section 6.2), and keys against the RFCs' examples."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from protocols.acme.jws import (
    JwsError,
    JwsErrorKind,
    b64url_decode,
    b64url_encode,
    parse_binding,
    parse_jwk,
    parse_jws,
    verify_jws,
)

URL = "https://ca.test/acme/new-account"
RFC8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
RFC7638 = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
    "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6q"
    "MQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
    "nqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}
OTHER = {"kty": "OKP", "crv": "Ed25519", "x": "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"}
ABSENT = object()


def number(value: int, size: int | None = None) -> str:
    return b64url_encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def header(**changes: Any) -> dict[str, Any]:
    members = {"alg": "EdDSA", "nonce": "AAAA", "url": URL, "jwk": RFC8037, **changes}
    return {name: value for name, value in members.items() if value is not ABSENT}


def jws(protected: dict[str, Any] | bytes, payload: bytes = b"{}", /, **changes: Any) -> bytes:
    raw = protected if isinstance(protected, bytes) else json.dumps(protected).encode()
    members = {
        "protected": b64url_encode(raw),
        "payload": b64url_encode(payload),
        "signature": b64url_encode(bytes(64)),
        **changes,
    }
    return json.dumps({name: value for name, value in members.items() if value is not ABSENT}).encode()


def test_the_form_that_is_accepted() -> None:
    parsed = parse_jws(jws(header(), b"payload"))
    assert (parsed.algorithm, parsed.nonce, parsed.url, parsed.kid) == ("EdDSA", "AAAA", URL, None)
    assert parsed.jwk == parse_jwk(RFC8037)
    assert (parsed.payload, parsed.signature) == (b"payload", bytes(64))
    assert parsed.signing_input.count(b".") == 1


def test_kid_instead_of_jwk_and_no_nonce() -> None:
    parsed = parse_jws(jws(header(jwk=ABSENT, nonce=ABSENT, kid="https://ca.test/acme/account/1"), b""))
    assert (parsed.jwk, parsed.kid, parsed.nonce) == (None, "https://ca.test/acme/account/1", None)
    assert parsed.payload == b""


def test_members_without_meaning_are_ignored() -> None:
    assert parse_jws(jws(header(typ="JOSE", b64=True), extra=1)).url == URL


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "an array": b"[]",
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "deep": b'{"a":' * 40 + b"1" + b"}" * 40,
    "deeper": b"[" * 100_000,
    "NaN": b'{"payload":NaN}',
    "compact": b"e30.e30.AAAA",
    "member twice": jws(header())[:-1] + b',"payload":"e30"}',
    "unprotected header": jws(header(), header={}),
    "several signatures": jws(header(), signatures=[]),
    "no payload": jws(header(), payload=ABSENT),
    "no signature": jws(header(), signature=ABSENT),
    "no protected": jws(header(), protected=ABSENT),
    "payload an object": jws(header(), payload={}),
    "padded payload": jws(header(), payload="e30="),
    "payload in base64": jws(header(), payload="+/8"),
    "payload with spare bits": jws(header(), payload="e31"),
    "payload with a line break": jws(header(), payload="e3\n0"),
    "payload of one character": jws(header(), payload="e"),
    "header member twice": jws(b'{"alg":"EdDSA","alg":"EdDSA","url":"x","kid":"y"}'),
    "jwk member twice": jws(b'{"alg":"EdDSA","url":"x","jwk":{"kty":"OKP","kty":"OKP"}}'),
    "header an array": jws(b"[]"),
    "header not UTF-8": jws(b'{"alg":"\xff"}'),
    "header with a huge number": jws(b'{"alg":' + b"1" * 5000 + b"}"),
    "no alg": jws(header(alg=ABSENT)),
    "alg a number": jws(header(alg=1)),
    "no url": jws(header(url=ABSENT)),
    "url not ASCII": jws(header(url="https://cä.test")),
    "url a surrogate": jws(header(url="\ud800")),
    "nonce not base64url": jws(header(nonce="A+A/")),
    "nonce padded": jws(header(nonce="AA==")),
    "nonce null": jws(header(nonce=None)),
    "nonce empty": jws(header(nonce="")),
    "jwk and kid": jws(header(kid="https://ca.test/acme/account/1")),
    "neither jwk nor kid": jws(header(jwk=ABSENT)),
    "jwk a string": jws(header(jwk="{}")),
    "kid empty": jws(header(jwk=ABSENT, kid="")),
    "kid an object": jws(header(jwk=ABSENT, kid={})),
    "kid long": jws(header(jwk=ABSENT, kid="k" * 3000)),
    "crit": jws(header(crit=["exp"])),
    "crit empty": jws(header(crit=[])),
    "b64 false": jws(header(b64=False)),
    "too long": jws(header(), b"x" * 131_072),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(body: bytes) -> None:
    with pytest.raises(JwsError) as refusal:
        parse_jws(body)
    assert refusal.value.kind is JwsErrorKind.MALFORMED


@pytest.mark.parametrize("algorithm", ["none", "HS256", "HS512", "RS1", "RS512", "ES256K", "es256", "Ed448"])
def test_algorithms_that_are_refused(algorithm: str) -> None:
    with pytest.raises(JwsError) as refusal:
        parse_jws(jws(header(alg=algorithm)))
    assert refusal.value.kind is JwsErrorKind.BAD_SIGNATURE_ALGORITHM
    assert refusal.value.algorithms == ("ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256")


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256"])
def test_algorithm_that_does_not_fit_the_key(algorithm: str) -> None:
    with pytest.raises(JwsError) as embedded:
        parse_jws(jws(header(alg=algorithm)))
    named = parse_jws(jws(header(alg=algorithm, jwk=ABSENT, kid="https://ca.test/acme/account/1")))
    with pytest.raises(JwsError) as stored:
        verify_jws(named, parse_jwk(RFC8037))
    for refusal in (embedded, stored):
        assert refusal.value.kind is JwsErrorKind.BAD_SIGNATURE_ALGORITHM
        assert refusal.value.algorithms == ("EdDSA",)


def test_thumbprints_of_the_rfcs() -> None:
    assert parse_jwk(RFC7638).thumbprint == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert parse_jwk(RFC8037).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert parse_jwk(RFC8037).canonical == json.dumps(dict(sorted(RFC8037.items())), separators=(",", ":")).encode()


def test_keys_of_equal_value_are_equal() -> None:
    again = parse_jwk({**RFC7638, "kid": "another", "use": "sig"})
    assert again == parse_jwk(RFC7638)
    assert hash(again) == hash(parse_jwk(RFC7638))
    assert again != parse_jwk(RFC8037)


def test_signature_of_the_wrong_length() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": number(key.x, 32), "y": number(key.y, 32)}
    for size in (0, 63, 65, 72):
        parsed = parse_jws(jws(header(alg="ES256", jwk=jwk), signature=b64url_encode(bytes(size))))
        with pytest.raises(JwsError) as refusal:
            verify_jws(parsed, parse_jwk(jwk))
        assert refusal.value.kind is JwsErrorKind.UNAUTHORIZED


P = 2**255 - 19
SMALL_ORDER = (0, 1, P - 1, 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7)


def edwards(y: int) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(y.to_bytes(32, "little"))}


def elliptic(crv: str, x: int, y: int, size: int) -> dict[str, str]:
    return {"kty": "EC", "crv": crv, "x": number(x, size), "y": number(y, size)}


def small_rsa(bits: int) -> dict[str, str]:
    return {
        "kty": "RSA",
        "n": number(rsa.generate_private_key(65537, bits).public_key().public_numbers().n),
        "e": "AQAB",
    }


POINT = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
MODULUS = int.from_bytes(b64url_decode(RFC7638["n"]), "big")
BAD_KEYS = {
    "symmetric": {"kty": "oct", "k": "AAAA"},
    "unknown kty": {"kty": "AKP"},
    "private EC": {**elliptic("P-256", POINT.x, POINT.y, 32), "d": "AAAA"},
    "private RSA": {**RFC7638, "p": "AAAA"},
    "secp256k1": elliptic("secp256k1", POINT.x, POINT.y, 32),
    "not on the curve": elliptic("P-256", POINT.x, POINT.y ^ 1, 32),
    "the origin": elliptic("P-256", 0, 0, 32),
    "not reduced": elliptic("P-256", 2**256 - 1, POINT.y, 32),
    "coordinate too long": elliptic("P-256", POINT.x, POINT.y, 33),
    "coordinates of another curve": elliptic("P-384", POINT.x, POINT.y, 48),
    "X25519": {**RFC8037, "crv": "X25519"},
    "Ed25519 too short": {**RFC8037, "x": "AAAA"},
    "Ed25519 not on the curve": edwards(2),
    "Ed25519 not reduced": edwards(P + 3),
    **{f"Ed25519 of small order {i}": edwards(y) for i, y in enumerate(SMALL_ORDER)},
    "Ed25519 of small order, negated": edwards(P - SMALL_ORDER[3]),
    "RSA of 1024 bits": small_rsa(1024),
    "RSA of 8200 bits": {**RFC7638, "n": number(2**8199 + 1)},
    "RSA even": {**RFC7638, "n": number(MODULUS - 1)},
    "RSA with leading zero": {**RFC7638, "n": number(MODULUS, 257)},
    "RSA without exponent": {**RFC7638, "e": ""},
    "RSA exponent 3": {**RFC7638, "e": number(3)},
    "RSA exponent even": {**RFC7638, "e": number(65538)},
    "RSA exponent large": {**RFC7638, "e": number(2**32 + 1)},
}


@pytest.mark.parametrize("jwk", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_bad_keys(jwk: dict[str, Any]) -> None:
    for data in (jwk, json.dumps(jwk).encode()):
        with pytest.raises(JwsError) as refusal:
            parse_jwk(data)
        assert refusal.value.kind is JwsErrorKind.BAD_PUBLIC_KEY


@pytest.mark.parametrize(
    "jwk", [{}, {"kty": 1}, {"kty": "EC", "crv": "P-256"}, {**RFC8037, "x": "=="}, {**RFC8037, "x": 1}]
)
def test_malformed_keys(jwk: dict[str, Any]) -> None:
    with pytest.raises(JwsError) as refusal:
        parse_jwk(jwk)
    assert refusal.value.kind is JwsErrorKind.MALFORMED


def binding(payload: Any = RFC8037, size: int = 32, /, **changes: Any) -> bytes:
    protected = {"alg": "HS256", "kid": "key-1", "url": URL, **changes}
    protected = {name: value for name, value in protected.items() if value is not ABSENT}
    return jws(protected, json.dumps(payload).encode(), signature=b64url_encode(bytes(size)))


@pytest.mark.parametrize(("algorithm", "size"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_binding(algorithm: str, size: int) -> None:
    raw = binding(dict(reversed(RFC8037.items())), size, alg=algorithm)
    for data in (raw, json.loads(raw)):
        parsed = parse_binding(data, URL, parse_jwk(RFC8037))
        assert (parsed.kid, parsed.algorithm, parsed.mac) == ("key-1", algorithm, bytes(size))
        members = json.loads(raw)
        assert parsed.signing_input == f"{members['protected']}.{members['payload']}".encode()


BAD_BINDINGS = {
    "another url": binding(url=URL + "/"),
    "a nonce": binding(nonce="AAAA"),
    "a jwk": binding(jwk=RFC8037),
    "no kid": binding(kid=ABSENT),
    "another key": binding(OTHER),
    "no key": binding([]),
    "short MAC": binding(RFC8037, 16),
    "MAC of another algorithm": binding(RFC8037, 64),
    "an unprotected header": json.dumps({**json.loads(binding()), "header": {}}).encode(),
    "member twice": binding()[:-1] + b',"payload":""}',
    "a string": b'"binding"',
}


@pytest.mark.parametrize("data", BAD_BINDINGS.values(), ids=BAD_BINDINGS.keys())
def test_bad_bindings(data: bytes) -> None:
    with pytest.raises(JwsError) as refusal:
        parse_binding(data, URL, parse_jwk(RFC8037))
    assert refusal.value.kind is JwsErrorKind.MALFORMED


@pytest.mark.parametrize("algorithm", ["EdDSA", "none", "HS1", "RS256"])
def test_binding_without_a_mac(algorithm: str) -> None:
    with pytest.raises(JwsError) as refusal:
        parse_binding(binding(alg=algorithm), URL, parse_jwk(RFC8037))
    assert refusal.value.kind is JwsErrorKind.BAD_SIGNATURE_ALGORITHM
    assert refusal.value.algorithms == ("HS256", "HS384", "HS512")


def test_padding_is_accepted_only_where_asked_for() -> None:
    assert b64url_decode(base64.urlsafe_b64encode(b"\xff").decode(), padded_ok=True) == b"\xff"
    for text in ("_w=", "_w===", "=", "====", "_=w="):
        with pytest.raises(ValueError, match="base64url"):
            b64url_decode(text, padded_ok=True)
