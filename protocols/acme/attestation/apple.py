"""Format `apple`: Managed Device Attestation of iPhones, iPads, Macs, Apple TVs, watches and Vision Pros.

Apple's servers issue a certificate for the key that the Secure Enclave made, before the client's account matters: they
bind the challenge's token alone, whose SHA-256 digest is the certificate's freshness code (so do the devices, and so
does draft-ietf-acme-device-attest section 5 let formats of this kind).
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.domain.names import Identifier, InvalidNameError, permanent_identifier
from protocols.acme.attestation.model import Attested, Question, Statement, printable, refuse
from protocols.acme.attestation.path import certificates_of, check_path, public_key_of

SERIAL_NUMBER: Final = "1.2.840.113635.100.8.9.1"
UDID: Final = "1.2.840.113635.100.8.9.2"
OS_VERSION: Final = "1.2.840.113635.100.8.10.1"
SEPOS_VERSION: Final = "1.2.840.113635.100.8.10.2"
FRESHNESS_CODE: Final = "1.2.840.113635.100.8.11.1"

_DETAILS: Final = {
    SERIAL_NUMBER: "serial_number",
    UDID: "udid",
    OS_VERSION: "os_version",
    SEPOS_VERSION: "sepos_version",
}


def verify(statement: Statement, question: Question, roots: Sequence[x509.Certificate]) -> Attested:
    """Verify. Raises AttestationError, or what cryptography raises for a certificate that it can't read."""
    certificates = certificates_of(statement.members.get("x5c"))
    check_path(certificates, roots, question.now, understood=(*_DETAILS, FRESHNESS_CODE))
    own = certificates[0]
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in own.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    if FRESHNESS_CODE not in values:
        refuse(f"the attestation has no freshness code ({FRESHNESS_CODE})")
    if values[FRESHNESS_CODE] != sha256(question.token.encode("ascii")).digest():
        refuse("the attestation's freshness code is not the digest of this challenge's token")
    identifiers = {
        identifier for oid in (SERIAL_NUMBER, UDID) if (identifier := _identifier(values.get(oid))) is not None
    }
    if not identifiers:
        refuse("the attestation has neither serial number nor UDID, as for devices enrolled by their users")
    spki = public_key_of(own).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Attested(
        format=statement.format,
        identifiers=frozenset(identifiers),
        spki_sha256=sha256(spki).digest(),
        certificate_sha256=sha256(own.public_bytes(Encoding.DER)).digest(),
        details={name: printable(values[oid].decode("latin-1")) for oid, name in _DETAILS.items() if oid in values},
    )


def _identifier(value: bytes | None) -> Identifier | None:
    """The identifier that an extension holds as bare text; None where there is none that an order could name."""
    if value is None:
        return None
    try:
        return None if b"/" in value else permanent_identifier(value.decode())
    except (InvalidNameError, UnicodeDecodeError):
        return None
