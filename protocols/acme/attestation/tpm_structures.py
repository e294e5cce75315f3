"""TPM 2.0 structures (Trusted Platform Module Library, part 2): hostile octets in, values out, nothing decided."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec, rsa

ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ST_ATTEST_CERTIFY: Final = 0x8017
GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE: no TPM signs other data that begins so with a restricted key."""
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
RESTRICTED: Final = 1 << 16

_ALG_RSA: Final = 0x0001
_ALG_ECC: Final = 0x0023
_ALG_NULL: Final = 0x0010
_ALG_RSAES: Final = 0x0015
_ALG_ECDAA: Final = 0x001A
_CURVES: Final[dict[int, Callable[[], ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
_DEFAULT_EXPONENT: Final = 65_537
_MAX_BUFFER: Final = 1024


class StructureError(ValueError):
    """The octets are not the structure that was expected; the message says which."""


def _wrong(what: str) -> NoReturn:
    raise StructureError(f"not a {what}")


@dataclass(frozen=True, slots=True)
class Certify:
    """A TPMS_ATTEST that certifies a key: what a TPM signed."""

    extra_data: bytes
    firmware_version: int
    name: bytes
    """Of the key that was certified."""


@dataclass(frozen=True, slots=True)
class Public:
    """A TPMT_PUBLIC: a key of a TPM."""

    name_algorithm: int
    attributes: int
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE; `values` are the signature, or r and s."""

    algorithm: int
    hash_algorithm: int
    values: tuple[bytes, ...]


class _Reader:
    """Reads big-endian fields; StructureError where they end too early or too late."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            _wrong(self._what)
        self._at += size
        return found

    def buffer(self) -> bytes:
        """A TPM2B: its size in two octets, then so many."""
        size = self.number(2)
        if size > _MAX_BUFFER:
            _wrong(self._what)
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._data):
            _wrong(self._what)


def parse_certify(data: bytes) -> Certify:
    """Read a TPMS_ATTEST of type TPM_ST_ATTEST_CERTIFY (part 2, section 10.12). Raises StructureError."""
    reader = _Reader(data, "TPMS_ATTEST of a key that was certified")
    if reader.number(4) != GENERATED or reader.number(2) != ST_ATTEST_CERTIFY:
        _wrong("TPMS_ATTEST of a key that was certified")
    reader.buffer()  # qualifiedSigner
    extra_data = reader.buffer()
    reader.take(8 + 4 + 4 + 1)  # clockInfo
    firmware_version = reader.number(8)
    name = reader.buffer()
    reader.buffer()  # qualifiedName
    reader.end()
    return Certify(extra_data, firmware_version, name)


def parse_public(data: bytes) -> Public:
    """Read a TPMT_PUBLIC of an RSA or ECC key (part 2, section 12.2.4). Raises StructureError."""
    reader = _Reader(data, "TPMT_PUBLIC of an RSA or ECC key")
    kind, name_algorithm, attributes = reader.number(2), reader.number(2), reader.number(4)
    reader.buffer()  # authPolicy
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    try:
        if kind == _ALG_RSA:
            key = _rsa(reader)
        elif kind == _ALG_ECC:
            key = _ecc(reader)
        else:
            _wrong("TPMT_PUBLIC of an RSA or ECC key")
    except StructureError:
        raise
    except ValueError as error:  # no point of the curve, or no modulus
        raise StructureError("not a TPMT_PUBLIC of a valid key") from error
    reader.end()
    return Public(name_algorithm, attributes, key)


def _symmetric(reader: _Reader) -> None:
    """A TPMT_SYM_DEF_OBJECT: keys that protect others have one."""
    if reader.number(2) != _ALG_NULL:
        reader.take(4)


def _rsa(reader: _Reader) -> rsa.RSAPublicKey:
    _symmetric(reader)
    if reader.number(2) not in {_ALG_NULL, _ALG_RSAES}:
        reader.take(2)
    reader.take(2)  # keyBits
    exponent = reader.number(4) or _DEFAULT_EXPONENT
    modulus = int.from_bytes(reader.buffer(), "big")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ecc(reader: _Reader) -> ec.EllipticCurvePublicKey:
    _symmetric(reader)
    scheme = reader.number(2)
    if scheme != _ALG_NULL:
        reader.take(4 if scheme == _ALG_ECDAA else 2)
    curve = _CURVES.get(reader.number(2))
    if curve is None:
        _wrong("TPMT_PUBLIC on a NIST curve")
    if reader.number(2) != _ALG_NULL:
        reader.take(2)
    x, y = int.from_bytes(reader.buffer(), "big"), int.from_bytes(reader.buffer(), "big")
    return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA (part 2, section 11.3.4). Raises StructureError."""
    reader = _Reader(data, "TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA")
    algorithm, hash_algorithm = reader.number(2), reader.number(2)
    if algorithm not in {ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA}:
        _wrong("TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA")
    values = (reader.buffer(), reader.buffer()) if algorithm == ALG_ECDSA else (reader.buffer(),)
    reader.end()
    return Signature(algorithm, hash_algorithm, values)
