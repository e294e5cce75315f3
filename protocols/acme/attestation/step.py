"""Format `step`: that of the step command line, for keys in the PIV slots of YubiKeys.

The token issues a certificate for the key, which then signs the key authorization: that shows that it is this account's
and this challenge's. It is WebAuthn's `packed` without authData.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core import der
from ca_server.core.der import PublicKey
from ca_server.domain.names import Identifier, InvalidNameError, permanent_identifier
from protocols.acme.attestation.cbor import decode_octets
from protocols.acme.attestation.model import AttestationError, Attested, Question, Statement, printable, refuse
from protocols.acme.attestation.path import certificates_of, check_path, public_key_of

FIRMWARE: Final = "1.3.6.1.4.1.41482.3.3"
SERIAL_NUMBER: Final = "1.3.6.1.4.1.41482.3.7"
POLICY: Final = "1.3.6.1.4.1.41482.3.8"
MANAGED_DEVICE: Final = "1.3.6.1.4.1.37476.9000.64.4"
"""The extension of smallstep's own agents: SEQUENCE { deviceID }."""

_UNDERSTOOD: Final = (FIRMWARE, SERIAL_NUMBER, POLICY, MANAGED_DEVICE)
_TEXT_TAGS: Final = (0x0C, 0x13)
_MAX_SERIAL: Final = 16
"""Octets of a serial number; YubiKeys' have four."""


def verify(statement: Statement, question: Question, roots: Sequence[x509.Certificate]) -> Attested:
    """Verify. Raises AttestationError, or what cryptography raises for a certificate that it can't read."""
    certificates = certificates_of(statement.members.get("x5c"))
    signature = statement.members.get("sig")
    if not isinstance(signature, bytes):
        refuse("the attestation has no sig")
    check_path(certificates, roots, question.now, understood=_UNDERSTOOD)
    own = certificates[0]
    key = public_key_of(own)
    # The command line puts the signature into CBOR once more.
    _check_signature(key, decode_octets(signature), question.key_authorization.encode("ascii"))
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in own.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    name = _identifier(values)
    details = {"serial_number": printable(name.value)}
    if FIRMWARE in values:
        details["firmware"] = ".".join(str(octet) for octet in values[FIRMWARE][:4])
    if POLICY in values:
        details["pin_and_touch_policy"] = values[POLICY][:4].hex()
    return Attested(
        format=statement.format,
        identifiers=frozenset({name}),
        spki_sha256=sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest(),
        certificate_sha256=sha256(own.public_bytes(Encoding.DER)).digest(),
        details=details,
    )


def _check_signature(key: PublicKey, signature: bytes, data: bytes) -> None:
    """By the key's type, as the command line signs, whatever `alg` says: it says no more."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data)
    except InvalidSignature as error:
        raise AttestationError("the attestation's sig is not the attested key's over the key authorization") from error


def _identifier(values: dict[str, bytes]) -> Identifier:
    """The device: a YubiKey's serial number, or what an agent of smallstep says."""
    try:
        if SERIAL_NUMBER in values:
            value = values[SERIAL_NUMBER]
            start, end = der.whole(value, der.INTEGER)
            number = int.from_bytes(value[start:end], "big", signed=True)
            if not 0 < end - start <= _MAX_SERIAL or number < 0:
                refuse("the attestation's serial number is none")
            return permanent_identifier(str(number))
        if MANAGED_DEVICE in values:
            value = values[MANAGED_DEVICE]
            ((tag, _, start, end),) = der.children(value, *der.whole(value, der.SEQUENCE))
            if tag not in _TEXT_TAGS or b"/" in value[start:end]:
                refuse("the attestation's device is no text, or has a slash")
            return permanent_identifier(value[start:end].decode())
    except (InvalidNameError, ValueError) as error:
        if isinstance(error, AttestationError):
            raise
        raise AttestationError("the attestation's serial number can't be read") from error
    raise AttestationError(f"the attestation's certificate has no serial number ({SERIAL_NUMBER})")
