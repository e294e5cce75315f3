"""OCSP responder (RFC 6960): answers from the database as it stands, signed by a delegated responder per issuer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1, sha256, sha384, sha512
from typing import Literal

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from ca_server.core.audit import EventFactory
from ca_server.core.capture import capture
from ca_server.core.crl import reason_flag
from ca_server.core.der import assemble_ocsp_response, children, read
from ca_server.core.issuers import ActiveIssuer, IssuerRegistry
from ca_server.core.ports import AuditStore, IssuanceStore, OcspAnswer, OcspQuery, SigningKey
from ca_server.core.signing import sign_verified
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import RevocationReason, SerialStatus, StatusValue, serial_text
from ca_server.domain.errors import CaError

_log = structlog.get_logger()

MAX_REQUEST = 16_384
NONCE_LENGTHS = range(1, 129)
_DIGESTS = {"sha1": sha1, "sha256": sha256, "sha384": sha384, "sha512": sha512}
_EXTENDED_REVOKE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1.9"), b"\x05\x00")
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)

UnknownSerial = Literal["unknown", "revoked", "unauthorized"]


@dataclass(frozen=True, slots=True)
class Responder:
    """A delegated responder: its key in the token and its certificate, issued directly by the issuer."""

    key: SigningKey
    certificate: x509.Certificate


def error_response(status: ocsp.OCSPResponseStatus) -> bytes:
    """An OCSPResponse without content (RFC 6960 section 4.2.1); errors are never signed."""
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)


def _error(status: ocsp.OCSPResponseStatus) -> OcspAnswer:
    return OcspAnswer(error_response(status), cacheable=False)


def try_later() -> OcspAnswer:
    """Tell the client to come again."""
    return _error(ocsp.OCSPResponseStatus.TRY_LATER)


@dataclass(frozen=True, slots=True)
class _IssuerHashes:
    name: bytes
    key: bytes


def issuer_hashes(certificate: x509.Certificate, digest: str) -> _IssuerHashes:
    """IssuerNameHash and issuerKeyHash of a CA certificate (RFC 6960 section 4.1.1)."""
    algorithm = _DIGESTS[digest]
    key_bits = _subject_public_key_bits(certificate)
    return _IssuerHashes(algorithm(certificate.subject.public_bytes()).digest(), algorithm(key_bits).digest())


def _subject_public_key_bits(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    _, start, _ = read(spki)
    parts = list(children(spki, start, len(spki)))
    _, _, content, end = parts[1]
    return spki[content + 1 : end]


class OcspResponder:
    """Answers one request at a time; `_counts` since the last `take_counts` are owned by the event loop."""

    def __init__(
        self,
        *,
        store: IssuanceStore,
        issuers: IssuerRegistry,
        responder: Callable[[str], Responder | None],
        lifetime: timedelta,
        unknown_serial: UnknownSerial,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        observe: Callable[[str, str], None] = lambda _issuer, _outcome: None,
    ) -> None:
        self._observe = observe
        self._store = store
        self._issuers = issuers
        self._responder = responder
        self._lifetime = lifetime
        self._unknown_serial = unknown_serial
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()
        self._by_hash: dict[tuple[str, bytes, bytes], ActiveIssuer] = {}

    def index(self) -> None:
        """Compute the hashes by which requests name the issuers; again after the issuers changed."""
        self._by_hash = {}
        for issuer in self._issuers.all():
            for digest in _DIGESTS:
                found = issuer_hashes(issuer.certificate, digest)
                self._by_hash[digest, found.name, found.key] = issuer

    async def respond(self, query: OcspQuery) -> OcspAnswer:
        """Answer a DER OCSPRequest; every outcome is an OCSPResponse (CorePort.respond_ocsp)."""
        if len(query.request_der) > MAX_REQUEST:
            return self._counted("", "malformed", _error(ocsp.OCSPResponseStatus.MALFORMED_REQUEST))
        try:
            request = ocsp.load_der_ocsp_request(query.request_der)
            digest = request.hash_algorithm.name
            serial = request.serial_number
            asked = (digest, request.issuer_name_hash, request.issuer_key_hash)
            nonce = _nonce(request)
        except (ValueError, TypeError, NotImplementedError, x509.DuplicateExtension, OverflowError):
            return self._counted("", "malformed", _error(ocsp.OCSPResponseStatus.MALFORMED_REQUEST))
        issuer = self._by_hash.get(asked)
        if issuer is None or serial <= 0:
            return self._counted("", "unauthorized", _error(ocsp.OCSPResponseStatus.UNAUTHORIZED))
        responder = self._responder(issuer.name)
        if responder is None:
            return self._counted(issuer.name, "unauthorized", _error(ocsp.OCSPResponseStatus.UNAUTHORIZED))
        try:
            status = await self._store.serial_status(issuer.name, serial_text(serial))
            if status.value is StatusValue.UNKNOWN:
                _log.warning(
                    "ocsp: unknown serial", issuer=issuer.name, serial=serial_text(serial), source=query.source
                )
                if self._unknown_serial == "unauthorized":
                    return self._counted(issuer.name, "unknown", _error(ocsp.OCSPResponseStatus.UNAUTHORIZED))
            answer = await self._sign(responder, asked, request.hash_algorithm, serial, status, nonce)
        except CaError as error:
            _log.warning("ocsp: try later", issuer=issuer.name, error=error.detail)
            return self._counted(issuer.name, "try-later", _error(ocsp.OCSPResponseStatus.TRY_LATER))
        return self._counted(issuer.name, status.value.value, answer)

    async def _sign(
        self,
        responder: Responder,
        asked: tuple[str, bytes, bytes],
        algorithm: hashes.HashAlgorithm,
        serial: int,
        status: SerialStatus,
        nonce: x509.OCSPNonce | None,
    ) -> OcspAnswer:
        now = self._clock().replace(microsecond=0)
        next_update = min(now + self._lifetime, responder.certificate.not_valid_after_utc)
        shown, revoked_at, reason, extended = self._shown(status)
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response_by_hash(
                asked[1],
                asked[2],
                serial,
                algorithm,
                shown,
                now,
                next_update,
                revoked_at.replace(microsecond=0) if revoked_at else None,
                reason_flag(reason),
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
            .certificates([responder.certificate])
        )
        if nonce is not None:
            builder = builder.add_extension(nonce, critical=False)
        if extended:
            builder = builder.add_extension(_EXTENDED_REVOKE, critical=False)
        tbs, _ = capture(responder.certificate.public_key(), builder.sign)  # type: ignore[arg-type]
        signature = await sign_verified(responder.key, tbs)
        der = assemble_ocsp_response(
            tbs, responder.key.algorithm, signature, [responder.certificate.public_bytes(Encoding.DER)]
        )
        settled = status.value in {StatusValue.GOOD, StatusValue.REVOKED}
        return OcspAnswer(der, cacheable=nonce is None and settled, this_update=now, next_update=next_update)

    def _shown(
        self, status: SerialStatus
    ) -> tuple[ocsp.OCSPCertStatus, datetime | None, RevocationReason | None, bool]:
        """The CertStatus for what the store knows.

        A serial that was drawn and given up is shown as RFC 6960 section 2.2 has it for certificates that were
        never issued: revoked, on hold, at the epoch, with extended-revoke. One that is being issued is unknown.
        """
        if status.value is StatusValue.GOOD:
            return ocsp.OCSPCertStatus.GOOD, None, None, False
        if status.value is StatusValue.REVOKED:
            return ocsp.OCSPCertStatus.REVOKED, status.revoked_at, status.reason, False
        never_issued = status.value is StatusValue.ABANDONED or (
            status.value is StatusValue.UNKNOWN and self._unknown_serial == "revoked"
        )
        if never_issued:
            return ocsp.OCSPCertStatus.REVOKED, _NEVER, RevocationReason.CERTIFICATE_HOLD, True
        return ocsp.OCSPCertStatus.UNKNOWN, None, None, False

    def _counted(self, issuer: str, outcome: str, answer: OcspAnswer) -> OcspAnswer:
        self._counts[issuer, outcome] += 1
        self._observe(issuer, outcome)
        return answer

    async def record_counts(self, audit: AuditStore, events: EventFactory) -> None:
        """Put the answers since the last call on record, summed by issuer (audit log: aggregated per minute)."""
        counts, self._counts = self._counts, Counter()
        by_issuer: dict[str, dict[str, str]] = {}
        for (issuer, outcome), count in counts.items():
            by_issuer.setdefault(issuer, {})[outcome] = str(count)
        if by_issuer:
            await audit.append(
                [
                    events.make(EventType.OCSP_ANSWERED, issuer=issuer or None, extra=extra)
                    for issuer, extra in sorted(by_issuer.items())
                ]
            )


def _nonce(request: ocsp.OCSPRequest) -> x509.OCSPNonce | None:
    """The nonce to echo; ValueError unless it has 1 to 128 octets (RFC 9654 section 2.1)."""
    try:
        nonce = request.extensions.get_extension_for_class(x509.OCSPNonce).value
    except x509.ExtensionNotFound:
        return None
    if len(nonce.nonce) not in NONCE_LENGTHS:
        raise ValueError("nonce of a length that is not allowed")
    return nonce
