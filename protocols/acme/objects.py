# ruff: noqa: N815 - members are called as RFC 8555 calls them on the wire
"""Request payloads of ACME as typed, frozen values (RFC 8555 section 7).

Members that are not known are ignored (RFC 8555 section 7.1: servers ignore what they do not recognise); members
that are known have the right type, or `decode_payload` raises PayloadError. Names that identifiers hold are only
text here: which are acceptable is not for a codec.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Raw, Struct

from ca_server.domain.names import InvalidNameError, email_identifier
from protocols.acme.encoding import b64url_decode

MAX_DETAIL = 300
MAX_CONTACT = 320

Contacts = Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=20)]
Timestamp = Annotated[datetime, Meta(tz=True)]
Word = Annotated[str, Meta(min_length=1, max_length=256)]

T = TypeVar("T")


class Base64Url(bytes):
    """Octets that travel as base64url, with or without padding: some clients (Synology's) pad the CSR."""

    __slots__ = ()


class PayloadError(Exception):
    """The payload is not what this resource takes; `detail` names the member."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class NewAccount(Struct, frozen=True):
    """Payload of newAccount (RFC 8555 section 7.3); null is as if a member were not there: some clients send it."""

    contact: Contacts | None = None
    termsOfServiceAgreed: bool | None = None
    onlyReturnExisting: bool | None = None
    rawBinding: Raw = msgspec.field(default=Raw(), name="externalAccountBinding")

    @property
    def externalAccountBinding(self) -> bytes | None:  # noqa: N802 - as the other members
        """The JWS as sent; None where there is none."""
        data = bytes(self.rawBinding)
        return None if data in {b"", b"null"} else data


class AccountUpdate(Struct, frozen=True):
    """Payload of a POST to an account (RFC 8555 sections 7.3.2, 7.3.3, 7.3.6); None: leave as it is."""

    contact: Contacts | None = None
    """Empty: remove all."""
    status: Word | None = None
    """`deactivated`, or another status that a client merely repeats."""
    termsOfServiceAgreed: bool | None = None


class KeyChange(Struct, frozen=True):
    """Payload of the inner JWS of a keyChange (RFC 8555 section 7.3.5)."""

    account: Word
    oldKey: Raw
    """The JWK as sent."""


class OrderIdentifier(Struct, frozen=True):
    """One identifier as sent; `value` may be any text, and so may `ancestorDomain` (RFC 9444 section 4.3)."""

    type: Word
    value: Annotated[str, Meta(max_length=1024)]
    ancestorDomain: Annotated[str, Meta(max_length=1024)] | None = None


class NewOrder(Struct, frozen=True):
    """Payload of newOrder (RFC 8555 section 7.4; `profile`: draft-ietf-acme-profiles). Times are in UTC.

    `replaces` is a CertID (RFC 9773 section 5), and may be any text here.
    """

    identifiers: Annotated[tuple[OrderIdentifier, ...], Meta(min_length=1, max_length=1000)]
    notBefore: Timestamp | None = None
    notAfter: Timestamp | None = None
    profile: Word | None = None
    replaces: Word | None = None

    def __post_init__(self) -> None:
        for name in ("notBefore", "notAfter"):
            time = getattr(self, name)
            if time is not None:
                msgspec.structs.force_setattr(self, name, _in_utc(time))


class AuthorizationIdentifier(Struct, frozen=True):
    """The identifier of newAuthz as sent: perhaps with all names below it (RFC 9444 section 4.2)."""

    type: Word
    value: Annotated[str, Meta(max_length=1024)]
    subdomainAuthAllowed: bool | None = None


class NewAuthorization(Struct, frozen=True):
    """Payload of newAuthz (RFC 8555 section 7.4.1)."""

    identifier: AuthorizationIdentifier


class Finalize(Struct, frozen=True):
    """Payload of finalize (RFC 8555 section 7.4): the CSR in DER."""

    csr: Base64Url


class RevokeCert(Struct, frozen=True):
    """Payload of revokeCert (RFC 8555 section 7.6): the certificate in DER and a CRLReason, None where not said."""

    certificate: Base64Url
    reason: int | None = None


class AuthorizationUpdate(Struct, frozen=True):
    """Payload of a POST to an authorization (RFC 8555 section 7.5.2)."""

    status: Word | None = None


class ChallengeResponse(Struct, frozen=True):
    """Payload of a POST to a challenge: `{}`, or an older client's keyAuthorization, which nothing depends on."""


class DeviceAttestation(Struct, frozen=True):
    """Payload of a POST to a device-attest-01 challenge (draft-ietf-acme-device-attest section 5)."""

    attObj: Base64Url
    """A WebAuthn attestation object in CBOR."""


def decode_payload(kind: type[T], data: bytes) -> T:
    """Decode one payload of the given type. Raises PayloadError for anything that is not such an object."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise PayloadError(_printable(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError("the payload is no JSON object in UTF-8") from error


def _decode(kind: type, value: Any) -> Any:
    if kind is Base64Url and isinstance(value, str):
        octets = b64url_decode(value, padded_ok=True)
        if not octets:
            raise ValueError("Expected octets in base64url, got none")
        return Base64Url(octets)
    raise ValueError("Expected octets in base64url")


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_DETAIL])


class ContactErrorKind(StrEnum):
    """How a contact fails (RFC 8555 section 7.3)."""

    UNSUPPORTED = "unsupported"
    """A scheme other than mailto."""
    INVALID = "invalid"


class ContactError(Exception):
    """A contact that can't be used."""

    def __init__(self, kind: ContactErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def parse_contact(contact: str) -> None:
    """Return if the contact is a mailto URI of one address and nothing else (RFC 8555 section 7.3).

    Raises ContactError: UNSUPPORTED for another scheme, INVALID for header fields, several addresses, or none.
    """
    scheme, colon, address = contact.partition(":")
    if not colon or not scheme:
        raise ContactError(ContactErrorKind.INVALID, "a contact is a URI, such as mailto:admin@example.org")
    if scheme.lower() != "mailto":
        raise ContactError(ContactErrorKind.UNSUPPORTED, "only contacts of the scheme mailto are supported")
    if "?" in address or "#" in address:
        raise ContactError(ContactErrorKind.INVALID, "a mailto contact has no header fields")
    mailbox = unquote(address)
    if "," in mailbox:
        raise ContactError(ContactErrorKind.INVALID, "a mailto contact has one address")
    if len(mailbox) > MAX_CONTACT or not mailbox.isprintable():
        raise ContactError(ContactErrorKind.INVALID, "the address is too long or not printable")
    try:
        email_identifier(mailbox)
    except InvalidNameError as error:
        raise ContactError(ContactErrorKind.INVALID, f"the address is {error}") from error
