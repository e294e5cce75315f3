"""Public keys as JSON Web Keys (RFC 7517, 7518 section 6, 8037): text in, verified keys out.

A `Jwk` has passed every check: lengths, point on the curve, size of the modulus. Its canonical bytes are the one
spelling of the key, so equal keys are equal bytes.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocols.acme.encoding import EncodingError, b64url_decode, b64url_encode, strict_object

RSA_BITS = range(2048, 8193)
MAX_RSA_EXPONENT = 2**32 - 1
"""A larger exponent makes verification slow and no key better."""
MIN_RSA_EXPONENT = 65537

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: dict[str, tuple[ec.EllipticCurve, int, str]] = {
    "P-256": (ec.SECP256R1(), 32, "ES256"),
    "P-384": (ec.SECP384R1(), 48, "ES384"),
    "P-521": (ec.SECP521R1(), 66, "ES512"),
}
_ED25519_BYTES = 32
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})
"""y of the points whose order divides 8."""

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class JwsErrorKind(StrEnum):
    """How a JWS or a key fails."""

    MALFORMED = "malformed"
    BAD_SIGNATURE_ALGORITHM = "bad-signature-algorithm"
    BAD_PUBLIC_KEY = "bad-public-key"
    UNAUTHORIZED = "unauthorized"
    """The signature does not verify."""


class JwsError(Exception):
    """A JWS or JWK that is refused; `algorithms` are those that would do, where the algorithm was the fault."""

    def __init__(self, kind: JwsErrorKind, detail: str, *, algorithms: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.algorithms = algorithms


@dataclass(frozen=True, slots=True, eq=False)
class Jwk:
    """A public key that was checked; equal to another with the same canonical bytes."""

    kind: str
    """`kty`: EC, OKP or RSA."""
    canonical: bytes
    """The required members in the order of RFC 7638 section 3, without white space."""
    thumbprint: str
    """SHA-256 of `canonical` in base64url (RFC 7638)."""
    public_key: PublicKey
    algorithms: tuple[str, ...]
    """Signature algorithms that the key can be used with."""

    @property
    def spki_der(self) -> bytes:
        """The key as SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7)."""
        return self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of `spki_der`."""
        return sha256(self.spki_der).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Jwk) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)


def parse_jwk(data: bytes | Mapping[str, Any]) -> Jwk:
    """Read and check a public JWK; members that are no part of the key are ignored (RFC 7517 section 4).

    Raises JwsError: MALFORMED where the text is no JWK, BAD_PUBLIC_KEY where the key is private, of another type,
    too small or too large, or no valid point.
    """
    if isinstance(data, Mapping):
        members = data
    else:
        try:
            members = strict_object(data)
        except EncodingError as error:
            raise JwsError(JwsErrorKind.MALFORMED, f"JWK: {error}") from error
    if not _PRIVATE_MEMBERS.isdisjoint(members):
        raise _bad_key("JWK has private members")
    kind = members.get("kty")
    if kind == "EC":
        return _ec_key(members)
    if kind == "RSA":
        return _rsa_key(members)
    if kind == "OKP":
        return _okp_key(members)
    if not isinstance(kind, str):
        raise JwsError(JwsErrorKind.MALFORMED, "JWK: kty is missing")
    raise _bad_key("JWK: kty is none of EC, OKP and RSA")


@functools.lru_cache(maxsize=4096)
def account_key(stored: bytes) -> Jwk:
    """`parse_jwk` of an account's key as stored, remembered by its bytes: the same account signs many requests."""
    return parse_jwk(stored)


def _ec_key(members: Mapping[str, Any]) -> Jwk:
    curve_name = members.get("crv")
    if not isinstance(curve_name, str) or curve_name not in _CURVES:
        raise _bad_key(f"JWK: crv is none of {', '.join(_CURVES)}")
    curve, size, algorithm = _CURVES[curve_name]
    x, y = _bytes(members, "x", size), _bytes(members, "y", size)
    try:
        public_key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + x + y)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_key("JWK: the point is not on the curve") from error
    required = {"crv": curve_name, "kty": "EC", "x": members["x"], "y": members["y"]}
    return _jwk("EC", required, public_key, (algorithm,))


def _okp_key(members: Mapping[str, Any]) -> Jwk:
    if members.get("crv") != "Ed25519":
        raise _bad_key("JWK: crv of an OKP key is not Ed25519")
    x = _bytes(members, "x", _ED25519_BYTES)
    if not _is_strong_ed25519_point(x):
        raise _bad_key("JWK: the point is not on the curve, or of small order")
    public_key = ed25519.Ed25519PublicKey.from_public_bytes(x)
    return _jwk("OKP", {"crv": "Ed25519", "kty": "OKP", "x": members["x"]}, public_key, ("EdDSA",))


def _is_strong_ed25519_point(encoded: bytes) -> bool:
    """Whether the bytes are a canonical point (RFC 8032 5.1.3) under which not just anyone can sign.

    OpenSSL looks at the point only when it verifies, and accepts those of order 1, 2, 4 and 8.
    """
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if y >= _P or y in _SMALL_ORDER_Y:
        return False
    # x² = u/v has a root exactly where u·v is a square, as v is never 0
    u, v = y * y - 1, _D * y * y + 1
    return pow(u * v % _P, (_P - 1) // 2, _P) == 1


def _rsa_key(members: Mapping[str, Any]) -> Jwk:
    modulus, exponent = _integer(members, "n"), _integer(members, "e")
    if modulus.bit_length() not in RSA_BITS:
        raise _bad_key(f"JWK: RSA keys have {RSA_BITS.start} to {RSA_BITS.stop - 1} bits")
    if modulus % 2 == 0:
        raise _bad_key("JWK: the RSA modulus is even")
    if not MIN_RSA_EXPONENT <= exponent <= MAX_RSA_EXPONENT or exponent % 2 == 0:
        raise _bad_key(f"JWK: the RSA exponent is odd and from {MIN_RSA_EXPONENT} to {MAX_RSA_EXPONENT}")
    try:
        public_key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_key("JWK: not an RSA key") from error
    return _jwk("RSA", {"e": members["e"], "kty": "RSA", "n": members["n"]}, public_key, ("RS256", "PS256"))


def _jwk(kind: str, required: dict[str, str], public_key: PublicKey, algorithms: tuple[str, ...]) -> Jwk:
    canonical = json.dumps(required, separators=(",", ":"), sort_keys=True).encode("ascii")
    return Jwk(kind, canonical, b64url_encode(sha256(canonical).digest()), public_key, algorithms)


def _bytes(members: Mapping[str, Any], name: str, size: int | None = None) -> bytes:
    text = members.get(name)
    if not isinstance(text, str):
        raise JwsError(JwsErrorKind.MALFORMED, f"JWK: {name} is missing or not a string")
    try:
        value = b64url_decode(text)
    except EncodingError as error:
        raise JwsError(JwsErrorKind.MALFORMED, f"JWK: {name} is {error}") from error
    if size is not None and len(value) != size:
        raise _bad_key(f"JWK: {name} is not {size} octets long")
    return value


def _integer(members: Mapping[str, Any], name: str) -> int:
    value = _bytes(members, name)
    if not value or value[0] == 0:
        raise _bad_key(f"JWK: {name} is empty or has leading zeros")
    return int.from_bytes(value, "big")


def _bad_key(detail: str) -> JwsError:
    return JwsError(JwsErrorKind.BAD_PUBLIC_KEY, detail)
