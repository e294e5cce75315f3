"""Further CA certificates of a key that an issuer has: signed by another CA, or a root's own that was renewed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.audit import EventFactory
from ca_server.core.ports import CrossCertificate, ImportCrossCertificate, IssuerStore
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import CaCertificate, IssuerKey
from ca_server.domain.errors import CaError, ErrorKind

MAX_ABOVE: Final = 8
_BROKEN: Final = (hashes.MD5, hashes.SHA1)


class CrossCertificates:
    """Takes in CA certificates that others signed, checked and on record."""

    def __init__(
        self, store: IssuerStore, events: EventFactory, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock

    async def take_in(self, request: ImportCrossCertificate, actor: str) -> CrossCertificate:
        """Add a certificate to the key of the issuer that it is for. MALFORMED says what is wrong; NOT_FOUND; CONFLICT.

        It has key, subject and key identifier of a CA certificate that the issuer has, and may sign certificates. What
        is above it is given up to a root, or it is signed by one of our own issuers, or by itself.
        """
        now = self._clock()
        certificate = _parse(request.certificate_der)
        key = await self._key_of(request.issuer, certificate)
        _check_is_for(certificate, _parse(key.certificate_der))
        above = await self._above(certificate, request.chain)
        path = [certificate, *above]
        for place, each in enumerate(path):
            _check_ca(each, below=place, now=now)
        for lower, upper in zip(path, [*path[1:], path[-1]], strict=True):
            _check_signed(lower, upper)
        der = request.certificate_der
        fingerprint = sha256(der).hexdigest()
        signer = certificate.issuer.rfc4514_string()
        event = self._events.make(
            EventType.ISSUER_CERTIFICATE_IMPORTED,
            actor=actor,
            issuer=key.issuer,
            key=key.label,
            object=f"issuer:{key.issuer}",
            extra={
                "certificate_sha256": fingerprint,
                "signed_by": signer[:500],
                "not_after": certificate.not_valid_after_utc.isoformat(),
                "generation": str(key.generation),
            },
        )
        chain = tuple(each.public_bytes(Encoding.DER) for each in above)
        await self._store.add_ca_certificate(CaCertificate(key.id, der, chain, now), [event])
        return CrossCertificate(key.issuer, key.generation, fingerprint, signer, certificate.not_valid_after_utc)

    async def _key_of(self, issuer: str, certificate: x509.Certificate) -> IssuerKey:
        keys = await self._store.issuer_keys(issuer)
        if not keys:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {issuer!r}")
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for key in keys:
            if key.spki_der == spki:
                return key
        raise _wrong(f"its public key is none that issuer {issuer!r} has")

    async def _above(self, certificate: x509.Certificate, given: Sequence[bytes]) -> list[x509.Certificate]:
        """The certificates above, nearest first, root last; empty where it signed itself."""
        if len(given) > MAX_ABOVE:
            raise _wrong(f"more than {MAX_ABOVE} certificates are above it")
        if given:
            return [_parse(der) for der in given]
        if certificate.issuer == certificate.subject:
            return []
        for issuer in await self._store.issuers():
            parent = _parse(issuer.key.certificate_der)
            if parent.subject == certificate.issuer and _is_signed(certificate, parent):
                return [parent, *map(_parse, issuer.key.chain)]
        raise _wrong("none of our issuers signed it; give the certificates above it, up to the root, in the same file")


def _wrong(detail: str) -> CaError:
    return CaError(ErrorKind.MALFORMED, f"the certificate can't be imported: {detail}")


def _parse(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key())
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _wrong(f"not an X.509 certificate ({error})") from None
    return certificate


def _check_is_for(certificate: x509.Certificate, standing: x509.Certificate) -> None:
    """Certificates that the key signed lead to this one as to the one that stands: by name and key identifier."""
    if certificate.subject.public_bytes() != standing.subject.public_bytes():
        raise _wrong(f"its subject is not {standing.subject.rfc4514_string()!r}")
    own, theirs = _key_identifier(certificate), _key_identifier(standing)
    if own is not None and own != theirs:
        raise _wrong("its subject key identifier is another than that in the certificates that were issued")


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _check_ca(certificate: x509.Certificate, *, below: int, now: datetime) -> None:
    """A CA that may have so many CAs below it on this path (RFC 5280 section 4.2.1.9), and is valid."""
    name = certificate.subject.rfc4514_string()
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        may_sign = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as error:
        raise _wrong(f"{name!r} has no {error.oid._name}") from None  # noqa: SLF001 - there is no other way to the name
    if not constraints.ca or not may_sign:
        raise _wrong(f"{name!r} is no CA that may sign certificates")
    if constraints.path_length is not None and constraints.path_length < below:
        raise _wrong(f"{name!r} allows {constraints.path_length} CAs below it, and {below} are")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise _wrong(
            f"{name!r} is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            f" to {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        )


def _check_signed(lower: x509.Certificate, upper: x509.Certificate) -> None:
    if isinstance(lower.signature_hash_algorithm, _BROKEN):
        raise _wrong(f"{lower.subject.rfc4514_string()!r} is signed with a broken hash")
    if not _is_signed(lower, upper):
        what = "itself, as a root is" if lower is upper else f"{upper.subject.rfc4514_string()!r}"
        raise _wrong(f"{lower.subject.rfc4514_string()!r} is not signed by {what}")


def _is_signed(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
