"""A little DER (X.690): the signature around what was signed, and a strict reader for what we made ourselves.

Signed structures of X.509 share one shape, SEQUENCE { toBeSigned, AlgorithmIdentifier, BIT STRING }, so that the
bytes that were linted and signed are put in as they are, never encoded again.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from ca_server.domain.keys import KeyAlgorithm

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OID: Final = 0x06
ENUMERATED: Final = 0x0A
UTF8_STRING: Final = 0x0C
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

_SHORT_LENGTH: Final = 0x80
_OCSP_BASIC: Final = bytes.fromhex("06092b0601050507300101")
_RSA_SHA256: Final = bytes.fromhex("300d06092a864886f70d01010b0500")
_SIGNATURE_ALGORITHMS: Final = {
    KeyAlgorithm.P256: bytes.fromhex("300a06082a8648ce3d040302"),
    KeyAlgorithm.P384: bytes.fromhex("300a06082a8648ce3d040303"),
    KeyAlgorithm.P521: bytes.fromhex("300a06082a8648ce3d040304"),
    KeyAlgorithm.RSA2048: _RSA_SHA256,
    KeyAlgorithm.RSA3072: _RSA_SHA256,
    KeyAlgorithm.RSA4096: _RSA_SHA256,
    KeyAlgorithm.ED25519: bytes.fromhex("300506032b6570"),
}
_CURVES: Final = {"secp256r1": KeyAlgorithm.P256, "secp384r1": KeyAlgorithm.P384, "secp521r1": KeyAlgorithm.P521}
_RSA_SIZES: Final = {2048: KeyAlgorithm.RSA2048, 3072: KeyAlgorithm.RSA3072, 4096: KeyAlgorithm.RSA4096}


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


def encode(tag: int, *contents: bytes) -> bytes:
    """Encode one element with a single-octet tag and definite length."""
    body = b"".join(contents)
    size = len(body)
    if size < _SHORT_LENGTH:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _SHORT_LENGTH | len(length))) + length + body


def encode_integer(value: int) -> bytes:
    """Encode a non-negative INTEGER in its shortest form."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_oid(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER. DerError where the text is none."""
    try:
        arcs = [int(arc) for arc in dotted.split(".")]
    except ValueError:
        raise DerError("not a dotted object identifier") from None
    first_limit, second_limit = 2, 39
    if len(arcs) < 2 or min(arcs) < 0 or arcs[0] > first_limit or (arcs[0] < first_limit and arcs[1] > second_limit):  # noqa: PLR2004
        raise DerError("not a dotted object identifier")
    body = bytearray()
    for arc in (arcs[0] * 40 + arcs[1], *arcs[2:]):
        septets = [arc & 0x7F]
        rest = arc >> 7
        while rest:
            septets.append(rest & 0x7F | 0x80)
            rest >>= 7
        body += bytes(reversed(septets))
    return encode(OID, bytes(body))


def decode_oid(contents: bytes) -> str:
    """Decode the contents of an OBJECT IDENTIFIER in dotted form. DerError where they are not minimal or too long."""
    if not contents or contents[-1] & 0x80 or len(contents) > 64:  # noqa: PLR2004
        raise DerError("not an object identifier")
    arcs: list[int] = []
    arc = 0
    fresh = True
    for octet in contents:
        if fresh and octet == 0x80:  # noqa: PLR2004
            raise DerError("not a minimal object identifier")
        arc = arc << 7 | octet & 0x7F
        fresh = not octet & 0x80
        if fresh:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - first * 40, *arcs[1:])))


def read(data: bytes, offset: int = 0) -> tuple[int, int, int]:
    """Read the element at `offset`: (tag, start of contents, end). DerError unless it is definite, shortest form."""
    try:
        tag = data[offset]
        size = data[offset + 1]
    except IndexError:
        raise DerError("truncated") from None
    start = offset + 2
    if tag & 0x1F == 0x1F:  # noqa: PLR2004
        raise DerError("tag in more than one octet")
    if size >= _SHORT_LENGTH:
        count = size & 0x7F
        length = data[start : start + count]
        if not 1 <= count <= 4 or len(length) != count or length[0] == 0:  # noqa: PLR2004
            raise DerError("length is indefinite, too long or not minimal")
        size = int.from_bytes(length, "big")
        if size < _SHORT_LENGTH:
            raise DerError("length is not minimal")
        start += count
    end = start + size
    if end > len(data):
        raise DerError("truncated")
    return tag, start, end


def children(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk the elements in `data[start:end]`: (tag, offset, start of contents, end)."""
    offset = start
    while offset < end:
        # Most elements have a low tag and a short length; `read` knows the rest, and what is wrong.
        if offset + 1 < end and data[offset + 1] < _SHORT_LENGTH and data[offset] & 0x1F != 0x1F:  # noqa: PLR2004
            tag, content = data[offset], offset + 2
            stop = content + data[offset + 1]
        else:
            tag, content, stop = read(data, offset)
        if stop > end:
            raise DerError("an element passes the end of its parent")
        yield tag, offset, content, stop
        offset = stop


def whole(data: bytes, tag: int) -> tuple[int, int]:
    """Read `data` as exactly one element of this tag; return the bounds of its contents."""
    found, start, end = read(data)
    if found != tag or end != len(data):
        raise DerError(f"not exactly one element with tag {tag:#04x}")
    return start, end


def signature_algorithm(algorithm: KeyAlgorithm) -> bytes:
    """The DER AlgorithmIdentifier that keys of this algorithm sign with.

    RFC 5758 section 3.2 (ECDSA, no parameters), RFC 4055 section 5 (RSA, NULL), RFC 8410 section 3 (Ed25519).
    """
    return _SIGNATURE_ALGORITHMS[algorithm]


def hash_for(algorithm: KeyAlgorithm) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """The hash that keys of this algorithm sign with; None for Ed25519, which hashes by itself."""
    if algorithm is KeyAlgorithm.ED25519:
        return None
    if algorithm is KeyAlgorithm.P384:
        return hashes.SHA384()
    if algorithm is KeyAlgorithm.P521:
        return hashes.SHA512()
    return hashes.SHA256()


def key_algorithm(public_key: object) -> KeyAlgorithm | None:
    """The algorithm of a public key; None where this server has no name for it."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _CURVES.get(public_key.curve.name)
    if isinstance(public_key, rsa.RSAPublicKey):
        return _RSA_SIZES.get(public_key.key_size)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return KeyAlgorithm.ED25519
    return None


def assemble(tbs_der: bytes, algorithm: KeyAlgorithm, signature: bytes) -> bytes:
    """Put a signature around the exact bytes that it is over: Certificate, CertificateList, CertificationRequest."""
    return encode(SEQUENCE, tbs_der, _SIGNATURE_ALGORITHMS[algorithm], encode(BIT_STRING, b"\x00", signature))


def assemble_ocsp_response(
    tbs_der: bytes, algorithm: KeyAlgorithm, signature: bytes, certificates: Sequence[bytes] = ()
) -> bytes:
    """Wrap signed ResponseData in a successful OCSPResponse (RFC 6960 section 4.2.1) with `certificates` in DER."""
    certs = encode(0xA0, encode(SEQUENCE, *certificates)) if certificates else b""
    basic = encode(SEQUENCE, tbs_der, _SIGNATURE_ALGORITHMS[algorithm], encode(BIT_STRING, b"\x00", signature), certs)
    response_bytes = encode(SEQUENCE, _OCSP_BASIC, encode(OCTET_STRING, basic))
    return encode(SEQUENCE, encode(ENUMERATED, b"\x00"), encode(0xA0, response_bytes))


def verify(public_key: PublicKey, algorithm: KeyAlgorithm, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` is by `public_key`, which must be of `algorithm`."""
    if key_algorithm(public_key) is not algorithm:
        return False
    digest = hash_for(algorithm)
    try:
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(signature, data)
        elif digest is None:
            return False
        elif isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(signature, data, ec.ECDSA(digest))
        else:
            public_key.verify(signature, data, padding.PKCS1v15(), digest)
    except InvalidSignature:
        return False
    return True
