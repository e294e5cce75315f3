"""Certificates in a row, DER after DER: each tells its own length (X.690 section 8.1.3)."""

from collections.abc import Iterable

_SEQUENCE = 0x30
_LONG_FORM = 0x80
_MAX_LENGTH_OCTETS = 4
_HEADER = 2


def join_der(certificates: Iterable[bytes]) -> bytes:
    """Write certificates one after another."""
    return b"".join(certificates)


def split_der(data: bytes) -> tuple[bytes, ...]:
    """Undo `join_der`. Raises ValueError where the bytes are no row of DER SEQUENCEs."""
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        end = position + _length_at(data, position)
        if end > len(data):
            raise ValueError("DER is cut short")
        parts.append(data[position:end])
        position = end
    return tuple(parts)


def _length_at(data: bytes, position: int) -> int:
    header = data[position : position + _HEADER]
    if len(header) < _HEADER or header[0] != _SEQUENCE:
        raise ValueError("not a DER SEQUENCE")
    if header[1] < _LONG_FORM:
        return _HEADER + header[1]
    octets = header[1] - _LONG_FORM
    encoded = data[position + _HEADER : position + _HEADER + octets]
    if not 0 < octets <= _MAX_LENGTH_OCTETS or len(encoded) < octets:
        raise ValueError("not a DER length")
    return _HEADER + octets + int.from_bytes(encoded, "big")
