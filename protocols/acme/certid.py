"""CertIDs: how ACME Renewal Information names a certificate (RFC 9773 section 4.1), as text and as a value."""

from dataclasses import dataclass

from cryptography import x509

from protocols.acme.encoding import EncodingError, b64url_decode, b64url_encode

MAX_KEY_IDENTIFIER = 64
"""Octets; a hash of the issuer's key."""
MAX_SERIAL = 20
"""Octets (RFC 5280 section 4.1.2.2)."""
MAX_TEXT = 128
"""Characters of the longest CertID that can be valid, and some more."""


class CertIdError(ValueError):
    """The text is no CertID; `detail` is fit for the client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class CertId:
    """A certificate by the keyIdentifier of its Authority Key Identifier and its serial number, which is positive."""

    key_identifier: bytes
    serial: int

    def __str__(self) -> str:
        # As DER has an INTEGER: one more octet, a zero, where the first would have its high bit set.
        octets = self.serial.to_bytes(self.serial.bit_length() // 8 + 1, "big")
        return f"{b64url_encode(self.key_identifier)}.{b64url_encode(octets)}"


def parse_certid(text: str) -> CertId:
    """Read a CertID in its one spelling: base64url without padding, the serial's octets as in DER.

    Raises CertIdError for anything else, so that two texts never name one certificate.
    """
    if len(text) > MAX_TEXT:
        raise CertIdError("a CertID is not so long")
    first, dot, second = text.partition(".")
    if not dot:
        raise CertIdError("a CertID has two parts with a full stop between them")
    try:
        key_identifier, octets = b64url_decode(first), b64url_decode(second)
    except EncodingError as error:
        raise CertIdError("both parts of a CertID are base64url without padding") from error
    if not 1 <= len(key_identifier) <= MAX_KEY_IDENTIFIER:
        raise CertIdError(f"the key identifier of a CertID has 1 to {MAX_KEY_IDENTIFIER} octets")
    if not 1 <= len(octets) <= MAX_SERIAL:
        raise CertIdError(f"the serial number of a CertID has 1 to {MAX_SERIAL} octets")
    certid = CertId(key_identifier, int.from_bytes(octets, "big", signed=True))
    if certid.serial <= 0:
        raise CertIdError("the serial number of a CertID is positive: begin it with a zero octet, as DER does")
    if str(certid) != text:
        raise CertIdError("the serial number of a CertID has no octets that DER leaves out")
    return certid


def certid_of(certificate: x509.Certificate) -> CertId | None:
    """The CertID of a certificate; None where it names its issuer's key by no key identifier."""
    try:
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return None
    if authority.key_identifier is None:
        return None
    return CertId(authority.key_identifier, certificate.serial_number)
