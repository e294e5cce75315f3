"""OCSP in bytes (RFC 6960): requests to values, answers to DER. Pure, and strict: what is not DER is refused.

`cryptography` reads and builds messages of one CertID, and writes the hash algorithm's parameters its own way. A
message may name several certificates, and each CertID goes back byte for byte as it came.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

from ca_server.core.der import (
    BIT_STRING,
    BOOLEAN,
    ENUMERATED,
    GENERALIZED_TIME,
    INTEGER,
    NULL,
    OCTET_STRING,
    OID,
    SEQUENCE,
    DerError,
    children,
    decode_oid,
    encode,
    encode_oid,
    read,
    whole,
)
from ca_server.domain.certificates import RevocationReason

MAX_REQUEST: Final = 16_384
"""Octets of a message."""
MAX_CERT_IDS: Final = 20
"""CertIDs of a message: each costs a look-up."""
MAX_NONCE: Final = 128
"""Octets of a nonce; at least one (RFC 9654 section 2.1)."""

_NONCE: Final = "1.3.6.1.5.5.7.48.1.2"
_EXTENDED_REVOKE: Final = "1.3.6.1.5.5.7.48.1.9"
_HASHES: Final = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_EXPLICIT: Final = (0xA0, 0xA1, 0xA2)
_TRUE: Final = b"\xff"

Element = tuple[int, bytes, bytes]
"""A tag, the contents, and the whole encoding."""


class ResponseStatus(IntEnum):
    """OCSPResponseStatus (RFC 6960 section 4.2.1); 4 does not exist, and 5 is never asked for here."""

    MALFORMED_REQUEST = 1
    INTERNAL_ERROR = 2
    TRY_LATER = 3
    UNAUTHORIZED = 6


@dataclass(frozen=True, slots=True)
class CertId:
    """One certificate that is asked about; `digest` is None for a hash algorithm that this server does not know."""

    der: bytes
    """As it came, to be echoed."""
    digest: str | None
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """A request: at least one CertID, in order; the nonce's octets where there is one."""

    cert_ids: tuple[CertId, ...]
    nonce: bytes | None


@dataclass(frozen=True, slots=True)
class CertStatus:
    """Good, revoked or unknown. `revoked_at` is set for revoked alone; the reason is left out where unspecified."""

    good: bool
    revoked_at: datetime | None = None
    reason: RevocationReason | None = None


@dataclass(frozen=True, slots=True)
class SingleResponse:
    """The answer about one CertID."""

    cert_id: CertId
    status: CertStatus


def parse_request(der: bytes) -> OcspRequest:
    """Read an OCSPRequest (RFC 6960 section 4.1.1). DerError where it is none, or more than this server takes.

    Who asks does not matter: a requestorName and a signature are let pass unread. Extensions that are not known are
    ignored unless they are critical (section 4.1.2).
    """
    if len(der) > MAX_REQUEST:
        raise DerError("an OCSP request is too long")
    start, end = whole(der, SEQUENCE)
    parts = _Fields(der, start, end)
    tbs = parts.take(SEQUENCE)
    parts.optional(0xA0)
    parts.done()
    fields = _Fields(tbs, 0, len(tbs))
    if fields.optional(0xA0) is not None:
        raise DerError("v1 is the default, which DER leaves out, and there is no other version")
    fields.optional(0xA1)
    listed = fields.take(SEQUENCE)
    nonce = _nonce(fields.optional(0xA2))
    fields.done()
    return OcspRequest(tuple(_cert_ids(listed)), nonce)


def _cert_ids(listed: bytes) -> Iterator[CertId]:
    count = 0
    for tag, contents, _ in _elements(listed, 0, len(listed)):
        count += 1
        if tag != SEQUENCE or count > MAX_CERT_IDS:
            raise DerError(f"a request list has up to {MAX_CERT_IDS} requests")
        request = _Fields(contents, 0, len(contents))
        cert_id = request.take_whole(SEQUENCE)
        _nonce(request.optional(0xA0), may_stand_here=False)
        request.done()
        yield _cert_id(cert_id)
    if not count:
        raise DerError("a request asks about at least one certificate")


def _cert_id(der: bytes) -> CertId:
    start, end = whole(der, SEQUENCE)
    fields = _Fields(der, start, end)
    digest = _digest(fields.take(SEQUENCE))
    name_hash, key_hash = fields.take(OCTET_STRING), fields.take(OCTET_STRING)
    serial = fields.take(INTEGER)
    fields.done()
    if not serial or (len(serial) > 1 and serial[0] in {0x00, 0xFF} and (serial[0] ^ serial[1]) & 0x80 == 0):
        raise DerError("not a minimal integer")
    return CertId(der, digest, name_hash, key_hash, int.from_bytes(serial, "big", signed=True))


def _digest(algorithm: bytes) -> str | None:
    """The hash's name: parameters are absent or NULL (RFC 5754 section 2)."""
    fields = _Fields(algorithm, 0, len(algorithm))
    oid = decode_oid(fields.take(OID))
    parameters = fields.optional(NULL)
    known = _HASHES.get(oid)
    if known is not None:
        fields.done()
        if parameters:
            raise DerError("NULL has no contents")
    return known


def _nonce(extensions: bytes | None, *, may_stand_here: bool = True) -> bytes | None:
    """Read Extensions for the nonce; DerError for a critical extension that is not understood."""
    if extensions is None:
        return None
    start, end = whole(extensions, SEQUENCE)
    seen: dict[bytes, bytes] = {}
    nonce = None
    for tag, contents, _ in _elements(extensions, start, end):
        if tag != SEQUENCE:
            raise DerError("not an extension")
        fields = _Fields(contents, 0, len(contents))
        oid = fields.take(OID)
        critical = fields.optional(BOOLEAN)
        value = fields.take(OCTET_STRING)
        fields.done()
        if critical not in {None, _TRUE} or oid in seen:
            raise DerError("an extension is there twice, or critical in another way than DER's")
        seen[oid] = value
        if decode_oid(oid) == _NONCE and may_stand_here:
            content, stop = whole(value, OCTET_STRING)
            nonce = value[content:stop]
            if not 1 <= len(nonce) <= MAX_NONCE:
                raise DerError(f"a nonce has 1 to {MAX_NONCE} octets (RFC 9654 section 2.1)")
        elif critical:
            raise DerError("a critical extension is not understood")
    if not seen:
        raise DerError("Extensions has at least one")
    return nonce


class _Fields:
    """The fields of a SEQUENCE, taken one after the other; each may be there or not, none is left over."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._elements = _elements(data, start, end)
        self._next = next(self._elements, None)

    def optional(self, tag: int) -> bytes | None:
        """The contents of the next field where it has this tag; one that is explicit has exactly one element inside."""
        if self._next is None or self._next[0] != tag:
            return None
        _, contents, _ = self._next
        self._next = next(self._elements, None)
        if tag in _EXPLICIT and read(contents)[2] != len(contents):
            raise DerError("an explicit tag has exactly one element inside")
        return contents

    def take(self, tag: int) -> bytes:
        """The contents of the next field, which must be there and have this tag."""
        contents = self.optional(tag)
        if contents is None:
            raise DerError(f"no element with tag {tag:#04x} where one is due")
        return contents

    def take_whole(self, tag: int) -> bytes:
        """The next field with its tag and length."""
        found = self._next
        self.take(tag)
        assert found is not None
        return found[2]

    def done(self) -> None:
        """DerError where a field is left over."""
        if self._next is not None:
            raise DerError("an element too many")


def _elements(data: bytes, start: int, end: int) -> Iterator[Element]:
    for tag, offset, content, stop in children(data, start, end):
        yield tag, data[content:stop], data[offset:stop]


def build_response_data(
    responder_key_hash: bytes,
    produced_at: datetime,
    next_update: datetime,
    responses: Iterable[SingleResponse],
    *,
    nonce: bytes | None = None,
    extended_revoke: bool = False,
) -> bytes:
    """Encode ResponseData (RFC 6960 section 4.2.1): what is signed. thisUpdate is `produced_at` for all.

    `responder_key_hash` is the SHA-1 of the responder's public key bits: responderID byKey. `extended_revoke` is due
    where a serial that was never issued is shown as revoked (section 4.4.8). Times are cut to whole seconds.
    """
    this_update, until = _time(produced_at), encode(0xA0, _time(next_update))
    extensions = []
    if nonce is not None:
        extensions.append(_extension(_NONCE, encode(OCTET_STRING, nonce)))
    if extended_revoke:
        extensions.append(_extension(_EXTENDED_REVOKE, encode(NULL)))
    return encode(
        SEQUENCE,
        encode(0xA2, encode(OCTET_STRING, responder_key_hash)),
        this_update,
        encode(
            SEQUENCE,
            *(encode(SEQUENCE, item.cert_id.der, _status(item.status), this_update, until) for item in responses),
        ),
        encode(0xA1, encode(SEQUENCE, *extensions)) if extensions else b"",
    )


def _status(status: CertStatus) -> bytes:
    if status.good:
        return encode(0x80)
    if status.revoked_at is None:
        return encode(0x82)
    reason = b""
    if status.reason not in {None, RevocationReason.UNSPECIFIED}:
        reason = encode(0xA0, encode(ENUMERATED, bytes((status.reason.value,))))
    return encode(0xA1, _time(status.revoked_at), reason)


def _time(moment: datetime) -> bytes:
    return encode(GENERALIZED_TIME, moment.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode())


def _extension(oid: str, value: bytes) -> bytes:
    return encode(SEQUENCE, encode_oid(oid), encode(OCTET_STRING, value))


def error_response(status: ResponseStatus) -> bytes:
    """An OCSPResponse without content; errors are never signed (RFC 6960 section 4.2.1)."""
    return encode(SEQUENCE, encode(ENUMERATED, bytes((status,))))


def subject_public_key_bits(spki_der: bytes) -> bytes:
    """The key's bits alone, of which key hashes are made: no tag, length or count of unused bits."""
    start, end = whole(spki_der, SEQUENCE)
    fields = _Fields(spki_der, start, end)
    fields.take(SEQUENCE)
    bits = fields.take(BIT_STRING)
    fields.done()
    return bits[1:]
