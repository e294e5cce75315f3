"""Looks for private keys and PINs in clear, in whatever form files hold them."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

_EC = bytes.fromhex("06072a8648ce3d0201")
_RSA = bytes.fromhex("06092a864886f70d0101010500")
_ED25519 = bytes.fromhex("06032b6570")

_MARKS = {
    "PEM": b"PRIVATE KEY-----",
    # PrivateKeyInfo (RFC 5208): INTEGER 0, SEQUENCE { algorithm ... }, and only then an OCTET STRING.
    "PKCS#8 EC P-256": b"\x02\x01\x00\x30\x13" + _EC,
    "PKCS#8 EC P-384 or P-521": b"\x02\x01\x00\x30\x10" + _EC,
    "PKCS#8 RSA": b"\x02\x01\x00\x30\x0d" + _RSA + b"\x04",
    "PKCS#8 Ed25519": b"\x02\x01\x00\x30\x05" + _ED25519 + b"\x04",
    # ECPrivateKey (RFC 5915): INTEGER 1, the scalar, and the curve under [0].
    "SEC 1 P-256": b"\x02\x01\x01\x04\x20",
    "SEC 1 P-384": b"\x02\x01\x01\x04\x30",
}


def private_keys(data: bytes) -> Iterator[str]:
    """What forms of private key are in some bytes: PEM, DER, and DER in base64 or hexadecimal."""
    for name, mark in _MARKS.items():
        if mark in data:
            yield name
        if name.startswith("PKCS#8") and mark.hex().encode() in data.lower():
            yield f"{name} in hexadecimal"
        # The mark stands 3 bytes into the structure (4 where it is longer than 255 bytes): 30 81 xx or 30 82 xx xx.
        if name.startswith("PKCS#8") and base64.b64encode(b"\x00" * (3 - 3 % 3) + mark[:15])[4:] in data:
            yield f"{name} in base64"


def forms(secret: bytes) -> list[bytes]:
    """A secret as it may stand in a file."""
    return [secret, base64.b64encode(secret).rstrip(b"="), secret.hex().encode(), secret.decode().encode("utf-16-le")]


def files_below(*tops: Path, apart_from: Iterable[Path] = ()) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below some folders, or the files themselves, with its content."""
    left_out = {path.resolve() for path in apart_from}
    for top in tops:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.resolve() not in left_out:
                yield path, path.read_bytes()
