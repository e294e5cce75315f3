"""Names in status URLs and OCSP requests in GET paths: bytes and text to values, no I/O."""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MAX_GET_PATH = 4096
_NAME = re.compile(r"(?P<issuer>[a-z0-9][a-z0-9-]{0,62})(\.(?P<generation>\d{1,6})(\.(?P<partition>\d{1,6}))?)?")


class MalformedPathError(ValueError):
    """The path names nothing that this server could have."""


@dataclass(frozen=True, slots=True)
class IssuerPath:
    """`ISSUER[.GENERATION[.PARTITION]]`, as in `/crl/issuing.1.0.crl`; None where left out."""

    issuer: str
    generation: int | None
    partition: int


def parse_issuer_path(name: str, suffix: str) -> IssuerPath:
    """Parse the last segment of a CRL or CA certificate URL. MalformedPathError."""
    if not name.endswith(suffix):
        raise MalformedPathError(name)
    found = _NAME.fullmatch(name.removesuffix(suffix))
    if found is None:
        raise MalformedPathError(name)
    generation = found["generation"]
    return IssuerPath(found["issuer"], int(generation) if generation else None, int(found["partition"] or 0))


def decode_get_path(raw_path: str, prefix: str) -> bytes:
    """Decode the base64 OCSPRequest that follows `prefix` in a raw request path (RFC 6960 appendix A.1.1).

    Takes what clients send: escaped or plain `/`, `+` and `=`, a missing padding, leading extra slashes.
    MalformedPathError for everything else.
    """
    if len(raw_path) > MAX_GET_PATH or not raw_path.startswith(prefix):
        raise MalformedPathError("too long")
    text = unquote_to_bytes(raw_path.removeprefix(prefix)).lstrip(b"/").rstrip(b"=")
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except Base64Error as error:
        raise MalformedPathError("not base64") from error
