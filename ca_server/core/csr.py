"""Certification requests (PKCS#10, RFC 2986): hostile bytes in, a checked value out.

A ParsedCsr has a valid self-signature (proof of possession) by a key that is worth looking at further; whether key
and names are allowed is for `keycheck` and `policy` to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Final, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core import der
from ca_server.core.der import DerError, PublicKey
from ca_server.core.device_names import decode_device_name
from ca_server.core.keycheck import MAX_EXPONENT_BITS
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import (
    Identifier,
    IdentifierType,
    InvalidNameError,
    dns_identifier,
    email_identifier,
    ip_identifier,
    uri_identifier,
)
from ca_server.domain.profile_schema import MAX_NAMES

MAX_CSR: Final = 64 * 1024
MAX_RSA_BITS: Final = 8192
MAX_SUBJECT_ATTRIBUTES: Final = 32
COMMON_NAME: Final = "2.5.4.3"
_MISTAKEN_VERSION: Final = b"\x02"

_EXTENSION_REQUEST: Final = "1.2.840.113549.1.9.14"
_MICROSOFT_EXTENSION_REQUEST: Final = "1.3.6.1.4.1.311.2.1.14"
_SUBJECT_ALTERNATIVE_NAME: Final = "2.5.29.17"
_SIGNATURES: Final = {
    "1.2.840.10045.4.3.2": ec.EllipticCurvePublicKey,
    "1.2.840.10045.4.3.3": ec.EllipticCurvePublicKey,
    "1.2.840.10045.4.3.4": ec.EllipticCurvePublicKey,
    "1.2.840.113549.1.1.11": rsa.RSAPublicKey,
    "1.2.840.113549.1.1.12": rsa.RSAPublicKey,
    "1.2.840.113549.1.1.13": rsa.RSAPublicKey,
    "1.3.101.112": ed25519.Ed25519PublicKey,
}
"""Signature algorithms that prove possession: ECDSA and RSA PKCS#1 v1.5 with SHA-2, and Ed25519."""
_BROKEN: Final = {
    "1.2.840.113549.1.1.2": "MD2",
    "1.2.840.113549.1.1.4": "MD5",
    "1.2.840.113549.1.1.5": "SHA-1",
    "1.2.840.10045.4.1": "SHA-1",
    "1.2.840.10040.4.3": "SHA-1",
}
_TEXT_CODECS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}


@dataclass(frozen=True, slots=True)
class ParsedCsr:
    """A request whose signature verified."""

    der: bytes
    public_key: PublicKey
    key_algorithm: KeyAlgorithm | None
    """None for a size or curve that no profile can allow."""
    spki_der: bytes
    spki_sha256: bytes
    subject: tuple[tuple[str, str], ...]
    """Attributes (OID, text) in the order of the request; at most one common name."""
    alternative_names: tuple[Identifier, ...]
    """The subjectAltName, canonical, without duplicates, in the order of the request."""
    common_name_identifier: Identifier | None
    """The common name where it is a DNS name or an address."""
    requested_extensions: tuple[str, ...]
    """OIDs of the extensions asked for; none is copied but the names."""

    @property
    def common_name(self) -> str | None:
        """The subject's common name."""
        return next((text for oid, text in self.subject if oid == COMMON_NAME), None)

    @property
    def identifiers(self) -> tuple[Identifier, ...]:
        """Every name that the request is for: subjectAltName, and the common name where it is one."""
        extra = self.common_name_identifier
        if extra is None or extra in self.alternative_names:
            return self.alternative_names
        return (extra, *self.alternative_names)


def parse_csr(csr_der: bytes, *, max_size: int = MAX_CSR) -> ParsedCsr:
    """Parse and verify a DER CertificationRequest.

    BAD_CSR for anything but one well-formed version 1 request (or one that says it is version 3) with a valid signature
    by an algorithm that is not broken, attributes and extensions at most once, and names of the kinds that certificates
    here carry; BAD_PUBLIC_KEY for a key that can't be read, of another type, or beyond 8192 bits.
    """
    if len(csr_der) > max_size:
        _refuse(f"the CSR is larger than {max_size} octets", "csr.size")
    outline = _outline(csr_der)
    try:
        request = x509.load_der_x509_csr(outline.readable)
        algorithm = request.signature_algorithm_oid.dotted_string
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise CaError(ErrorKind.BAD_CSR, "the CSR is not a DER PKCS#10 request", rule="csr.der") from error
    public_key = _public_key(request)
    _check_signature(request, public_key, algorithm, outline.info)
    subject = tuple(_subject(outline.subject))
    alternative_names, requested = _extensions(request)
    spki_der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return ParsedCsr(
        der=csr_der,
        public_key=public_key,
        key_algorithm=der.key_algorithm(public_key),
        spki_der=spki_der,
        spki_sha256=sha256(spki_der).digest(),
        subject=subject,
        alternative_names=alternative_names,
        common_name_identifier=_common_name_identifier(subject),
        requested_extensions=requested,
    )


def _refuse(detail: str, rule: str) -> NoReturn:
    raise CaError(ErrorKind.BAD_CSR, detail, rule=rule)


@dataclass(frozen=True, slots=True)
class _Outline:
    """The parts of a request: what was signed, its subject's contents, and all of it as a parser takes it."""

    info: bytes
    subject: bytes
    readable: bytes


def _outline(csr_der: bytes) -> _Outline:
    """Check the outline of the request.

    Version is 0, as RFC 2986 section 4.1 says, or the 2 that a widely used client writes (it thinks of certificates).
    """
    try:
        start, end = der.whole(csr_der, der.SEQUENCE)
        info, _algorithm, _signature = islice(der.children(csr_der, start, end), 4)
        parts = list(islice(der.children(csr_der, info[2], info[3]), 5))
        if [part[0] for part in parts] != [der.INTEGER, der.SEQUENCE, der.SEQUENCE, 0xA0]:
            raise DerError("not a CertificationRequestInfo")
    except ValueError as error:
        raise CaError(ErrorKind.BAD_CSR, "the CSR is not a DER PKCS#10 request", rule="csr.der") from error
    version, subject = parts[0], parts[1]
    readable = csr_der
    if csr_der[version[2] : version[3]] == _MISTAKEN_VERSION:
        readable = csr_der[: version[2]] + b"\0" + csr_der[version[3] :]
    return _Outline(csr_der[info[1] : info[3]], csr_der[subject[2] : subject[3]], readable)


def _public_key(request: x509.CertificateSigningRequest) -> PublicKey:
    try:
        public_key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CaError(
            ErrorKind.BAD_PUBLIC_KEY, "the CSR's public key is not valid, or of an unknown type", rule="keys.invalid"
        ) from error
    if not isinstance(public_key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey)):
        raise CaError(ErrorKind.BAD_PUBLIC_KEY, "keys are EC, RSA or Ed25519", rule="keys.type")
    if isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size > MAX_RSA_BITS:
        raise CaError(ErrorKind.BAD_PUBLIC_KEY, f"RSA keys have at most {MAX_RSA_BITS} bits", rule="keys.size")
    if isinstance(public_key, rsa.RSAPublicKey) and public_key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        # Refused before the signature: to verify one with an exponent as long as the modulus costs ten milliseconds.
        raise CaError(ErrorKind.BAD_PUBLIC_KEY, "the RSA exponent is below 2^256", rule="keys.exponent")
    return public_key


def _check_signature(
    request: x509.CertificateSigningRequest, public_key: PublicKey, algorithm: str, signed: bytes
) -> None:
    if algorithm in _BROKEN:
        _refuse(f"the CSR is signed with {_BROKEN[algorithm]}, which proves nothing", "csr.signature_algorithm")
    if not isinstance(public_key, _SIGNATURES.get(algorithm, ())):
        _refuse("the CSR's signature algorithm is not accepted for its key", "csr.signature_algorithm")
    try:
        _verify(public_key, request, signed)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        _refuse("the CSR's signature does not verify", "csr.signature")


def _verify(public_key: PublicKey, request: x509.CertificateSigningRequest, signed: bytes) -> None:
    """InvalidSignature, or what else the library has against a signature."""
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return public_key.verify(request.signature, signed)
    digest = request.signature_hash_algorithm
    if digest is None:
        raise InvalidSignature
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.verify(request.signature, signed, padding.PKCS1v15(), digest)
    return public_key.verify(request.signature, signed, ec.ECDSA(digest))


def _subject(subject_der: bytes) -> Iterator[tuple[str, str]]:
    """Read the subject's attributes by hand: what is not text, or too much, is refused rather than warned of."""
    common_names = 0
    try:
        sets = der.children(subject_der, 0, len(subject_der))
        all_attributes = (item for rdn in sets for item in der.children(subject_der, rdn[2], rdn[3]))
        attributes = list(islice(all_attributes, MAX_SUBJECT_ATTRIBUTES + 1))
        if len(attributes) > MAX_SUBJECT_ATTRIBUTES:
            _refuse(f"the CSR's subject has more than {MAX_SUBJECT_ATTRIBUTES} attributes", "csr.subject")
        for _tag, _offset, start, end in attributes:
            kind, value = islice(der.children(subject_der, start, end), 3)
            codec = _TEXT_CODECS.get(value[0])
            if codec is None:
                raise DerError("not a DirectoryString")
            oid = der.decode_oid(subject_der[kind[2] : kind[3]])
            common_names += oid == COMMON_NAME
            yield oid, subject_der[value[2] : value[3]].decode(codec)
    except ValueError as error:
        raise CaError(ErrorKind.BAD_CSR, "the CSR's subject is not a name", rule="csr.subject") from error
    if common_names > 1:
        _refuse("the CSR has more than one common name", "csr.common_name")


def _extensions(request: x509.CertificateSigningRequest) -> tuple[tuple[Identifier, ...], tuple[str, ...]]:
    try:
        kinds = [attribute.oid.dotted_string for attribute in request.attributes]
        if len(kinds) != len(set(kinds)) or {_EXTENSION_REQUEST, _MICROSOFT_EXTENSION_REQUEST} <= set(kinds):
            _refuse("the CSR has an attribute twice", "csr.attributes")
        extensions = request.extensions
    except (ValueError, TypeError) as error:
        raise CaError(
            ErrorKind.BAD_CSR, "an attribute or extension of the CSR is not valid", rule="csr.extensions"
        ) from error
    except x509.DuplicateExtension as error:
        raise CaError(ErrorKind.BAD_CSR, "the CSR asks for an extension twice", rule="csr.extensions") from error
    except x509.UnsupportedGeneralNameType as error:
        raise CaError(ErrorKind.BAD_CSR, "the CSR has a name of an unknown kind", rule="csr.names") from error
    names: tuple[Identifier, ...] = ()
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = _names(extension.value)
    return names, tuple(extension.oid.dotted_string for extension in extensions)


def _names(value: x509.SubjectAlternativeName) -> tuple[Identifier, ...]:
    found: dict[Identifier, None] = {}
    general_names = list(value)
    if len(general_names) > MAX_NAMES:
        _refuse(f"the CSR has more than {MAX_NAMES} names", "csr.names")
    for name in general_names:
        try:
            found[_identifier(name)] = None
        except InvalidNameError as error:
            raise CaError(ErrorKind.BAD_CSR, f"a name in the CSR is not valid: {error}", rule="csr.names") from error
    return tuple(found)


def _identifier(name: x509.GeneralName) -> Identifier:
    match name:
        case x509.DNSName():
            return dns_identifier(name.value)
        case x509.IPAddress(value=IPv4Address() | IPv6Address() as address):
            return Identifier(IdentifierType.IP, str(address))
        case x509.RFC822Name():
            return email_identifier(name.value)
        case x509.UniformResourceIdentifier():
            return uri_identifier(name.value)
        case x509.OtherName(type_id=type_id, value=value):
            return decode_device_name(type_id.dotted_string, value)
        case _:
            raise InvalidNameError("only DNS names, addresses, mailboxes, URIs and the names of devices")


def _common_name_identifier(subject: tuple[tuple[str, str], ...]) -> Identifier | None:
    for oid, text in subject:
        if oid == COMMON_NAME:
            for make in (ip_identifier, dns_identifier):
                try:
                    return make(text)
                except InvalidNameError:
                    continue
    return None
