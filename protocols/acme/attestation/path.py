"""The certificates of an attestation, from its own to a root of the format (RFC 5280 section 6, as far as it matters).

A path is taken in the order in which x5c has it (WebAuthn section 6.5.2), so that nobody can make this look for one.
Revocation is not looked up: those who issue attestation certificates publish none, or none that is reachable here.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID

from ca_server.core.csr import MAX_RSA_BITS
from ca_server.core.der import PublicKey
from ca_server.core.keycheck import MAX_EXPONENT_BITS
from protocols.acme.attestation.model import AttestationError, refuse

T = TypeVar("T", bound=x509.ExtensionType)

MAX_CERTIFICATES: Final = 6
MAX_EXTENSIONS: Final = 40
MIN_RSA_BITS: Final = 2048

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_OF_CA: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.CERTIFICATE_POLICIES})
_OF_LEAF: Final = _OF_CA | {ExtensionOID.EXTENDED_KEY_USAGE, ExtensionOID.SUBJECT_ALTERNATIVE_NAME}


def certificates_of(x5c: object) -> tuple[x509.Certificate, ...]:
    """The certificates of an x5c member, the attestation's own first. Raises AttestationError, and ValueError."""
    if not isinstance(x5c, list) or not x5c:
        refuse("the attestation has no x5c")
    if len(x5c) > MAX_CERTIFICATES:
        refuse(f"x5c has more than {MAX_CERTIFICATES} certificates")
    found = []
    for der in x5c:
        if not isinstance(der, bytes):
            refuse("x5c is no list of certificates")
        found.append(x509.load_der_x509_certificate(der))
    return tuple(found)


def check_path(
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime,
    *,
    understood: Iterable[str] = (),
) -> None:
    """Return if the certificates lead from an end entity's to one of the roots, each of them good now.

    `understood` are the OIDs of further extensions that the caller looks at, which may so be critical in the first.
    Raises AttestationError, or what cryptography raises for a certificate that it can't read.
    """
    path = list(certificates)
    for place, certificate in enumerate(path[1:], 1):
        if certificate in roots:
            del path[place:]
            break
    path.append(_root_of(path[-1], roots))
    for place, certificate in enumerate(path):
        _check_time(certificate, now)
        _check_extensions(certificate, {oid.dotted_string for oid in _OF_CA} if place else _leaf_oids(understood))
        _check_constraints(certificate, place)
    for certificate, issuer in pairwise(path):
        _check_signature(certificate, issuer)


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """The key of a certificate, where verifying by it takes no more than it should. Raises AttestationError."""
    key = certificate.public_key()
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey)):
        refuse("a key in x5c is not EC, RSA or Ed25519")
    if isinstance(key, rsa.RSAPublicKey) and (
        not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS or key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS
    ):
        refuse(f"an RSA key in x5c has not {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, or a huge exponent")
    return key


def _leaf_oids(understood: Iterable[str]) -> set[str]:
    return {oid.dotted_string for oid in _OF_LEAF}.union(understood)


def _root_of(last: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """The root that issued the last certificate: among those of its issuer's name, whose key it was signed by."""
    named = [root for root in roots if root.subject == last.issuer]
    for root in named:
        try:
            last.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return root
    raise AttestationError("the certificates of the attestation do not lead to a root that is trusted for its format")


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        refuse("a certificate of the attestation, or its root, has expired or is not valid yet")


def _check_extensions(certificate: x509.Certificate, known: set[str]) -> None:
    """RFC 5280 section 4.2: a critical extension that is not processed ends it; so do name constraints here."""
    extensions = list(certificate.extensions)
    if len(extensions) > MAX_EXTENSIONS:
        refuse(f"a certificate of the attestation has more than {MAX_EXTENSIONS} extensions")
    for extension in extensions:
        oid = extension.oid.dotted_string
        if (extension.critical and oid not in known) or extension.oid == ExtensionOID.NAME_CONSTRAINTS:
            refuse(f"a certificate of the attestation has the critical extension {oid}, which is not known here")


def _check_constraints(certificate: x509.Certificate, place: int) -> None:
    """BasicConstraints and keyUsage (RFC 5280 sections 4.2.1.9 and 4.2.1.3); place 0 is the end entity."""
    constraints = _extension(certificate, x509.BasicConstraints)
    is_ca = constraints is not None and constraints.ca
    if place == 0:
        if is_ca:
            refuse("the attestation's own certificate is that of a CA")
        return
    if constraints is None or not is_ca:
        refuse("a certificate of the attestation was issued by one that is no CA")
    if constraints.path_length is not None and constraints.path_length < place - 1:
        refuse("the certificates of the attestation are a longer path than one of them allows")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        refuse("a certificate of the attestation was issued by a key that may sign none")


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    digest = certificate.signature_hash_algorithm
    if digest is not None and not isinstance(digest, _HASHES):
        refuse(f"a certificate of the attestation is signed with {digest.name}, which is broken")
    public_key_of(issuer)
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        refuse("a certificate of the attestation is not signed by the one behind it", error)
