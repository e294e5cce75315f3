"""The WebAuthn attestation object (WebAuthn section 6.5.4) in CBOR: hostile octets in, a statement out.

The octets are walked once before cbor2 sees them: what it would make dates, bignums, regular expressions or shared
references of (tags), what nests deeply and what holds thousands of items never reaches it.
"""

from typing import Final

import cbor2

from protocols.acme.attestation.model import MAX_OBJECT, AttestationError, Statement, printable, refuse

MAX_DEPTH: Final = 6
MAX_ITEMS: Final = 200
MAX_FORMAT: Final = 32

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_INDEFINITE: Final = 31
_ONE_OCTET: Final = 24
_EIGHT_OCTETS: Final = 27
_PLAIN: Final = frozenset({20, 21, 22})
"""false, true and null; of the other simple values and floats an attestation has none."""


def decode_object(data: bytes) -> Statement:
    """Read an attestation object of at most 64 KiB. Raises AttestationError for anything else."""
    decoded = _decode(data)
    if not isinstance(decoded, dict):
        refuse("the attestation object is no map")
    kind, members = decoded.get("fmt"), decoded.get("attStmt")
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_FORMAT:
        refuse("the attestation object has no fmt")
    if not isinstance(members, dict) or not all(isinstance(key, str) for key in members):
        refuse("the attestation object has no attStmt")
    return Statement(printable(kind), members)


def decode_octets(data: bytes) -> bytes:
    """Read one byte string. Raises AttestationError for anything else."""
    decoded = _decode(data)
    if not isinstance(decoded, bytes):
        refuse("not one byte string in CBOR")
    return decoded


def _decode(data: bytes) -> object:
    if len(data) > MAX_OBJECT:
        refuse(f"the attestation object has more than {MAX_OBJECT} octets")
    walk = _Walk(data)
    if walk.item(0, 0) != len(data):
        refuse("octets follow the attestation object")
    try:
        return cbor2.loads(data)
    except Exception as error:  # whatever is left, such as text that is no UTF-8 or a key that can't be one
        raise AttestationError("the attestation object is no CBOR") from error


class _Walk:
    """Walks well-formed items of definite length, and counts them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items = 0

    def item(self, at: int, depth: int) -> int:
        """Walk the item at an offset; returns where it ends."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            refuse(f"the attestation object nests more than {MAX_DEPTH} deep, or has more than {MAX_ITEMS} items")
        kind, value, at = self._head(at)
        if kind in {_BYTES, _TEXT}:
            at += value
            if at > len(self._data):
                refuse("the attestation object is cut off")
        elif kind in {_ARRAY, _MAP}:
            # Each item has an octet at least: a length that can't be true ends the walk by the count.
            for _ in range(min(value, MAX_ITEMS) * (2 if kind == _MAP else 1)):
                at = self.item(at, depth + 1)
            if value > MAX_ITEMS:
                refuse(f"the attestation object has more than {MAX_ITEMS} items")
        elif kind == _TAG:
            refuse("the attestation object has a tag; CBOR of WebAuthn has none")
        elif kind == _SIMPLE and value not in _PLAIN:
            refuse("the attestation object has a value that is no number, text, octets, list or map")
        return at

    def _head(self, at: int) -> tuple[int, int, int]:
        """Major type, argument and where what follows begins (RFC 8949 section 3)."""
        if at >= len(self._data):
            refuse("the attestation object is cut off")
        kind, value = self._data[at] >> 5, self._data[at] & 0x1F
        at += 1
        if value < _ONE_OCTET:
            return kind, value, at
        if value > _EIGHT_OCTETS or kind == _SIMPLE:
            # CTAP2's canonical CBOR, which WebAuthn wants, has definite lengths alone.
            refuse("the attestation object has a length or value that canonical CBOR has not")
        size = 1 << (value - _ONE_OCTET)
        argument = self._data[at : at + size]
        if len(argument) != size:
            refuse("the attestation object is cut off")
        return kind, int.from_bytes(argument, "big"), at + size
