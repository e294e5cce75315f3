"""Strict base64url and JSON, below the JOSE codec: one text for one value, or an error.

Two spellings of one value are how signature checks are got around: what is checked is one reading and what is used
is another. So padding, foreign characters, non-zero spare bits, duplicate members and NaN are errors here.
"""

import base64
import binascii
import json
from typing import Any

MAX_BRACKETS = 64
"""Opening brackets in a JWS, a header or a JWK: none needs ten, and it bounds the depth without parsing."""


class EncodingError(ValueError):
    """The text is not in the one form that is accepted; the message says why."""


def b64url_encode(data: bytes) -> str:
    """Encode without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str, *, padded_ok: bool = False) -> bytes:
    """Decode base64url as RFC 7515 section 2 has it; `padded_ok` also takes correct padding.

    Raises EncodingError for any other character, and for spare bits that are not zero.
    """
    bare = text.rstrip("=")
    if padded_ok and len(text) - len(bare) == -len(bare) % 4:
        text = bare
    try:
        encoded = text.encode("ascii")
        data = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    except (UnicodeEncodeError, binascii.Error) as error:
        raise EncodingError("not base64url") from error
    if base64.urlsafe_b64encode(data).rstrip(b"=") != encoded:
        raise EncodingError("not base64url without padding")
    return data


def strict_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, refusing duplicate members at any depth, NaN and deep nesting."""
    if data.count(b"{") + data.count(b"[") > MAX_BRACKETS:
        raise EncodingError("too many nested values")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except EncodingError:
        raise
    except (ValueError, RecursionError) as error:
        raise EncodingError("not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise EncodingError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise EncodingError("a member appears twice")
    return members


def _no_constant(name: str) -> Any:
    raise EncodingError(f"{name} is not JSON")
