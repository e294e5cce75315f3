"""The flattened JWS that carries every ACME request (RFC 8555 section 6.2), and the one inside a binding (7.3.4).

Bytes in, checked objects out. `parse_jws` checks form alone; whose key a `kid` names, whether the nonce is fresh and
the URL is ours is for the caller, and nothing may be believed before `verify_jws` has returned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ca_server.domain.accounts import ExternalBinding
from protocols.acme.encoding import EncodingError, b64url_decode, b64url_encode, strict_object
from protocols.acme.jwk import Jwk, JwsError, JwsErrorKind, parse_jwk

__all__ = [
    "MAC_ALGORITHMS",
    "SIGNATURE_ALGORITHMS",
    "Jwk",
    "Jws",
    "JwsError",
    "JwsErrorKind",
    "b64url_decode",
    "b64url_encode",
    "parse_binding",
    "parse_jwk",
    "parse_jws",
    "verify_jws",
]

SIGNATURE_ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256")
MAC_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms of an external account binding, with the octets of their MAC."""

_EC_HASHES: dict[str, tuple[hashes.HashAlgorithm, int]] = {
    "ES256": (hashes.SHA256(), 32),
    "ES384": (hashes.SHA384(), 48),
    "ES512": (hashes.SHA512(), 66),
}
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)
_MAX_KID = 2048
_MAX_NONCE = 512


@dataclass(frozen=True, slots=True)
class Jws:
    """A well-formed ACME JWS whose signature is not verified yet; exactly one of `jwk` and `kid` is set."""

    algorithm: str
    nonce: str | None
    url: str
    jwk: Jwk | None
    kid: str | None
    payload: bytes
    signing_input: bytes
    signature: bytes


def parse_jws(body: bytes, *, max_size: int = 131_072) -> Jws:
    """Read a flattened JWS in the form of RFC 8555 section 6.2; the nonce may be absent (keyChange, section 7.3.5).

    Raises JwsError: MALFORMED for anything else, also above `max_size` octets; BAD_SIGNATURE_ALGORITHM for MACs,
    `none` and algorithms that the embedded key can't be used with; BAD_PUBLIC_KEY from that key.
    """
    if len(body) > max_size:
        raise _malformed(f"JWS is longer than {max_size} octets")
    header, payload, signing_input, signature = _flattened(_object(body, "JWS"))
    algorithm = _text(header, "alg")
    if algorithm not in SIGNATURE_ALGORITHMS:
        raise _bad_algorithm("alg is not accepted", SIGNATURE_ALGORITHMS)
    url = _text(header, "url")
    nonce = _nonce(header)
    if ("jwk" in header) == ("kid" in header):
        raise _malformed("protected header has not exactly one of jwk and kid")
    jwk, kid = None, None
    if "jwk" in header:
        if not isinstance(header["jwk"], dict):
            raise _malformed("jwk is not an object")
        jwk = parse_jwk(header["jwk"])
        _check_fit(algorithm, jwk)
    else:
        kid = _text(header, "kid")
    return Jws(algorithm, nonce, url, jwk, kid, payload, signing_input, signature)


def verify_jws(jws: Jws, key: Jwk) -> None:
    """Return if `key` made the signature.

    Raises JwsError: BAD_SIGNATURE_ALGORITHM where `alg` is not of this key, UNAUTHORIZED where the signature is not.
    """
    _check_fit(jws.algorithm, key)
    try:
        if not _is_signed(jws, key):
            raise JwsError(JwsErrorKind.UNAUTHORIZED, "JWS signature has the wrong length")
    except InvalidSignature as error:
        raise JwsError(JwsErrorKind.UNAUTHORIZED, "JWS signature does not verify") from error


def _is_signed(jws: Jws, key: Jwk) -> bool:
    """Raise InvalidSignature, or return whether the signature had a length that could be verified."""
    public_key = key.public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        digest, size = _EC_HASHES[jws.algorithm]
        if len(jws.signature) != 2 * size:
            return False
        r, s = int.from_bytes(jws.signature[:size], "big"), int.from_bytes(jws.signature[size:], "big")
        public_key.verify(encode_dss_signature(r, s), jws.signing_input, ec.ECDSA(digest))
    elif isinstance(public_key, ed25519.Ed25519PublicKey):
        public_key.verify(jws.signature, jws.signing_input)
    elif isinstance(public_key, rsa.RSAPublicKey):
        if len(jws.signature) != (public_key.key_size + 7) // 8:
            return False
        scheme = _PSS if jws.algorithm == "PS256" else padding.PKCS1v15()
        public_key.verify(jws.signature, jws.signing_input, scheme, hashes.SHA256())
    return True


def parse_binding(data: bytes | Mapping[str, Any], outer_url: str, account_key: Jwk) -> ExternalBinding:
    """Read an externalAccountBinding (RFC 8555 section 7.3.4); the MAC is left to the owner of the key.

    Raises JwsError: MALFORMED where form, `url`, the absent nonce or the key inside are not as required,
    BAD_SIGNATURE_ALGORITHM for anything but HS256, HS384 and HS512.
    """
    members = data if isinstance(data, Mapping) else _object(data, "externalAccountBinding")
    header, payload, signing_input, mac = _flattened(members)
    algorithm = _text(header, "alg")
    if algorithm not in MAC_ALGORITHMS:
        raise _bad_algorithm("alg of the externalAccountBinding is not accepted", tuple(MAC_ALGORITHMS))
    if "nonce" in header or "jwk" in header:
        raise _malformed("externalAccountBinding has a nonce or a jwk in its header")
    kid = _text(header, "kid")
    if _text(header, "url") != outer_url:
        raise _malformed("url of the externalAccountBinding is not that of the request")
    if parse_jwk(payload) != account_key:
        raise _malformed("externalAccountBinding is about another key than the account's")
    if len(mac) != MAC_ALGORITHMS[algorithm]:
        raise _malformed("MAC of the externalAccountBinding has the wrong length")
    return ExternalBinding(kid=kid, algorithm=algorithm, signing_input=signing_input, mac=mac)


def _flattened(members: Mapping[str, Any]) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Take apart the outer object: protected header, payload, signing input (RFC 7515 section 5.1), signature."""
    if "header" in members:
        raise _malformed("JWS has an unprotected header")
    if "signatures" in members:
        raise _malformed("JWS has several signatures")
    parts = [_member(members, name) for name in ("protected", "payload", "signature")]
    try:
        protected, payload, signature = (b64url_decode(part) for part in parts)
    except EncodingError as error:
        raise _malformed(f"a part of the JWS is {error}") from error
    header = _object(protected, "protected header")
    if "crit" in header:
        raise _malformed("crit names extensions, and none is understood")
    if header.get("b64", True) is not True:
        raise _malformed("b64 is not true")
    return header, payload, f"{parts[0]}.{parts[1]}".encode("ascii"), signature


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        return strict_object(data)
    except EncodingError as error:
        raise _malformed(f"{what}: {error}") from error


def _member(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise _malformed(f"JWS: {name} is missing or not a string")
    return value


def _text(header: dict[str, Any], name: str) -> str:
    value = header.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_KID or not (value.isascii() and value.isprintable()):
        raise _malformed(f"protected header: {name} is missing or not a short text in ASCII")
    return value


def _nonce(header: dict[str, Any]) -> str | None:
    if "nonce" not in header:
        return None
    value = header["nonce"]
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NONCE:
        raise _malformed("protected header: nonce is not a short text")
    try:
        b64url_decode(value)
    except EncodingError as error:
        # RFC 8555 section 6.5.2: a nonce with other characters makes the JWS malformed, not the nonce bad
        raise _malformed(f"nonce is {error}") from error
    return value


def _check_fit(algorithm: str, key: Jwk) -> None:
    if algorithm not in key.algorithms:
        raise _bad_algorithm("alg does not fit the key", key.algorithms)


def _malformed(detail: str) -> JwsError:
    return JwsError(JwsErrorKind.MALFORMED, detail)


def _bad_algorithm(detail: str, algorithms: tuple[str, ...]) -> JwsError:
    return JwsError(JwsErrorKind.BAD_SIGNATURE_ALGORITHM, detail, algorithms=algorithms)
