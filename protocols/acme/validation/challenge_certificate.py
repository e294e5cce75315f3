"""The certificate of tls-alpn-01 (RFC 8737 section 3), read as what a hostile peer sent: bytes in, nothing or why not.

Names and extensions are compared as the octets that they must be; nothing of the certificate is decoded that does not
matter here.
"""

from hashlib import sha256
from ipaddress import ip_address
from itertools import islice
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_server.core import der
from ca_server.core.csr import MAX_RSA_BITS
from ca_server.core.der import DerError, PublicKey
from ca_server.core.keycheck import MAX_EXPONENT_BITS
from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.model import shown

ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31"
"""id-pe-acmeIdentifier (RFC 8737 section 6.1); those of its drafts are others."""
_SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
_MAX_EXTENSIONS = 32
_EXTENSIONS = 0xA3
_DNS_NAME = 0x82
_IP_ADDRESS = 0x87
_SHOWN_NAME = 64
_TRUE = b"\xff"


class CertificateError(ValueError):
    """The certificate shows no control of the name; the message says why, with what a peer chose made printable."""


def _refuse(detail: str) -> NoReturn:
    raise CertificateError(detail)


def check_certificate(certificate_der: bytes, identifier: Identifier, key_authorization: str) -> None:
    """Return if the certificate answers the challenge for the identifier, a DNS name or an address.

    It has exactly one subjectAltName, which is the name, a critical acmeIdentifier with the SHA-256 digest of the key
    authorization, and a signature by its own key. Raises CertificateError, and nothing else, for any other octets.
    """
    extensions = _extensions(certificate_der)
    _check_name(extensions, identifier)
    _check_digest(extensions, key_authorization)
    _check_self_signed(certificate_der)


def _extensions(data: bytes) -> dict[str, tuple[bool, bytes]]:
    """The extensions by OID: whether each is critical, and its value."""
    try:
        start, end = der.whole(data, der.SEQUENCE)
        tbs, _algorithm, signature = islice(der.children(data, start, end), 4)
        if signature[0] != der.BIT_STRING or data[signature[2]] != 0:
            _refuse("the certificate's signature is no whole number of octets")
        fields = list(islice(der.children(data, tbs[2], tbs[3]), 11))
        if fields[-1][0] != _EXTENSIONS:
            _refuse("the certificate has no extensions")
        start, end = der.whole(data[fields[-1][2] : fields[-1][3]], der.SEQUENCE)
        found: dict[str, tuple[bool, bytes]] = {}
        offset = fields[-1][2]
        for _tag, _offset, begin, stop in der.children(data, offset + start, offset + end):
            oid, critical, value = _extension(data, begin, stop)
            if oid in found or len(found) == _MAX_EXTENSIONS:
                _refuse(f"the certificate has an extension twice, or more than {_MAX_EXTENSIONS}")
            found[oid] = critical, value
    except CertificateError:
        raise
    except (ValueError, IndexError) as error:
        raise CertificateError("the certificate is not an X.509 certificate in DER") from error
    return found


def _extension(data: bytes, start: int, end: int) -> tuple[str, bool, bytes]:
    """One Extension (RFC 5280 section 4.1), its contents at these bounds."""
    items = list(islice(der.children(data, start, end), 4))
    tags = [item[0] for item in items]
    if tags not in ([der.OID, der.OCTET_STRING], [der.OID, der.BOOLEAN, der.OCTET_STRING]):
        raise DerError("not an Extension")
    critical = tags[1] == der.BOOLEAN and data[items[1][2] : items[1][3]] == _TRUE
    return der.decode_oid(data[items[0][2] : items[0][3]]), critical, data[items[-1][2] : items[-1][3]]


def _check_name(extensions: dict[str, tuple[bool, bytes]], identifier: Identifier) -> None:
    """RFC 8737 section 3 and RFC 8738 section 6: the name and no other entry; an address as its octets."""
    if _SUBJECT_ALTERNATIVE_NAME not in extensions:
        raise CertificateError("the certificate has no subjectAltName")
    value = extensions[_SUBJECT_ALTERNATIVE_NAME][1]
    try:
        names = list(islice(der.children(value, *der.whole(value, der.SEQUENCE)), 2))
    except DerError as error:
        raise CertificateError("the certificate's subjectAltName is not valid") from error
    if len(names) != 1:
        raise CertificateError("the certificate's subjectAltName has not exactly one entry")
    tag, _, start, end = names[0]
    octets = value[start:end]
    if identifier.type is IdentifierType.IP:
        matches = tag == _IP_ADDRESS and octets == ip_address(identifier.value).packed
    else:
        matches = tag == _DNS_NAME and octets.lower() == identifier.value.encode("ascii")
    if not matches:
        seen = shown(octets.decode("latin-1"), _SHOWN_NAME) if tag == _DNS_NAME else octets[:16].hex()
        kind = {_DNS_NAME: "dNSName", _IP_ADDRESS: "iPAddress"}.get(tag, f"name of kind {tag & 0x1F}")
        raise CertificateError(f"the certificate is for the {kind} {seen!r}, not for {identifier.value}")


def _check_digest(extensions: dict[str, tuple[bool, bytes]], key_authorization: str) -> None:
    if ACME_IDENTIFIER not in extensions:
        raise CertificateError(f"the certificate has no acmeIdentifier extension ({ACME_IDENTIFIER})")
    critical, value = extensions[ACME_IDENTIFIER]
    if not critical:
        raise CertificateError("the certificate's acmeIdentifier extension is not critical")
    expected = sha256(key_authorization.encode("ascii")).digest()
    if value != der.encode(der.OCTET_STRING, expected):
        raise CertificateError(
            f"the certificate's acmeIdentifier is {shown(value.hex(), 2 * _SHOWN_NAME)}, "
            f"expected 0420{expected.hex()}, the digest of the key authorization"
        )


def _check_self_signed(data: bytes) -> None:
    try:
        certificate = x509.load_der_x509_certificate(data)
        key = certificate.public_key()
        if not isinstance(key, PublicKey):
            _refuse("the certificate's key is not EC, RSA or Ed25519")
        if isinstance(key, rsa.RSAPublicKey) and (
            key.key_size > MAX_RSA_BITS or key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS
        ):
            _refuse(f"the certificate's RSA key has more than {MAX_RSA_BITS} bits, or a huge exponent")
        certificate.verify_directly_issued_by(certificate)
    except CertificateError:
        raise
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise CertificateError("the certificate is not signed by its own key") from error
