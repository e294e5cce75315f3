"""Further CA certificates of a key that an issuer has: signed by another CA, or a root's own that was renewed.

The CSR that another CA is given for that, and what it made of it.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.audit import EventFactory
from ca_server.core.cross_csr import certification_request_info
from ca_server.core.der import assemble
from ca_server.core.ports import AuditStore, CrossCertificate, ImportCrossCertificate, IssuerStore, KeyStore
from ca_server.core.signing import sign_verified
from ca_server.core.staging import says_staging
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import CaCertificate, Issuer, IssuerKey
from ca_server.domain.errors import CaError, ErrorKind

MAX_ABOVE: Final = 8
_BROKEN: Final = (hashes.MD5, hashes.SHA1)


class CrossCertificates:
    """Asks for CA certificates by others, and takes them in, checked and on record."""

    def __init__(
        self,
        store: IssuerStore,
        keys: KeyStore,
        audit: AuditStore,
        events: EventFactory,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keys = keys
        self._audit = audit
        self._events = events
        self._clock = clock

    async def sign_csr(self, issuer: str, actor: str) -> bytes:
        """A CSR (RFC 2986) in DER for an issuer's newest key, asking for what its certificate has. NOT_FOUND.

        That the token signs it is on record before it does.
        """
        key, *_ = await self._keys_of(issuer)
        info = certification_request_info(_parse(key.certificate_der))
        event = self._events.make(
            EventType.ISSUER_CSR_SIGNED,
            actor=actor,
            issuer=issuer,
            key=key.label,
            object=f"issuer:{issuer}",
            extra={"csr_info_sha256": sha256(info).hexdigest()},
        )
        await self._audit.append([event])
        signer = await self._keys.find(key.label)
        return assemble(info, key.algorithm, await sign_verified(signer, info))

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
        issuers = await self._store.issuers()
        height = _height(issuers, request.issuer)
        for place, each in enumerate(path):
            _check_ca(each, below=height + place, now=now)
            if says_staging(_der(each)) is not says_staging(key.certificate_der):
                name = each.subject.rfc4514_string()
                raise _wrong(f"{name!r} is a CA for tests (STAGING) and the issuer is not, or the other way round")
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
        chain = tuple(map(_der, above))
        await self._store.add_ca_certificate(CaCertificate(key.id, der, chain, now), [event])
        return CrossCertificate(key.issuer, key.generation, fingerprint, signer, certificate.not_valid_after_utc)

    async def _keys_of(self, issuer: str) -> tuple[IssuerKey, ...]:
        keys = await self._store.issuer_keys(issuer)
        if not keys:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {issuer!r}")
        return keys

    async def _key_of(self, issuer: str, certificate: x509.Certificate) -> IssuerKey:
        keys = await self._keys_of(issuer)
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


def _height(issuers: Sequence[Issuer], name: str) -> int:
    """How many CAs of ours stand below the named one, at most, on a path."""
    return max((1 + _height(issuers, each.name) for each in issuers if each.parent == name), default=0)


def _wrong(detail: str) -> CaError:
    return CaError(ErrorKind.MALFORMED, f"the certificate can't be imported: {detail}")


def _parse(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key())
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _wrong(f"not an X.509 certificate ({error})") from None
    return certificate


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _check_is_for(certificate: x509.Certificate, standing: x509.Certificate) -> None:
    """Certificates that the key signed lead to this one as to the one that stands: by name and key identifier."""
    if certificate.subject.public_bytes() != standing.subject.public_bytes():
        raise _wrong(f"its subject is not {standing.subject.rfc4514_string()!r}")
    own, theirs = _key_identifier(certificate), _key_identifier(standing)
    if own is not None and own != theirs:
        raise _wrong("its subject key identifier is another than that in the certificates that were issued")
    usage = _key_usage(certificate)
    if usage is not None and not usage.crl_sign:
        raise _wrong("by its keyUsage it may not sign CRLs, which the issuer's key does")


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
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
