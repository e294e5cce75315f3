"""OCSP responder (RFC 6960): answers from the database as it stands, signed by a delegated responder per issuer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1, sha256, sha384, sha512
from typing import Literal

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.audit import EventFactory
from ca_server.core.der import DerError, assemble_ocsp_response
from ca_server.core.issuers import ActiveIssuer, IssuerRegistry
from ca_server.core.ocsp_codec import (
    CertId,
    CertStatus,
    OcspRequest,
    ResponseStatus,
    SingleResponse,
    build_response_data,
    error_response,
    parse_request,
    subject_public_key_bits,
)
from ca_server.core.ports import AuditStore, IssuanceStore, OcspAnswer, OcspQuery, SigningKey
from ca_server.core.signing import sign_verified
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import RevocationReason, SerialStatus, StatusValue, serial_text
from ca_server.domain.errors import CaError

_log = structlog.get_logger()

_DIGESTS = {"sha1": sha1, "sha256": sha256, "sha384": sha384, "sha512": sha512}
_NEVER_ISSUED = CertStatus(
    good=False, revoked_at=datetime(1970, 1, 1, tzinfo=UTC), reason=RevocationReason.CERTIFICATE_HOLD
)
_SETTLED = frozenset({StatusValue.GOOD, StatusValue.REVOKED})

UnknownSerial = Literal["unknown", "revoked", "unauthorized"]


@dataclass(frozen=True, slots=True)
class Responder:
    """A delegated responder: its key in the token and its certificate, issued directly by the issuer."""

    key: SigningKey
    certificate: x509.Certificate


def _error(status: ResponseStatus) -> OcspAnswer:
    return OcspAnswer(error_response(status), cacheable=False)


def try_later() -> OcspAnswer:
    """Tell the client to come again."""
    return _error(ResponseStatus.TRY_LATER)


def _public_key_bits(certificate: x509.Certificate) -> bytes:
    return subject_public_key_bits(
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


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
            name, key = issuer.certificate.subject.public_bytes(), _public_key_bits(issuer.certificate)
            for digest, algorithm in _DIGESTS.items():
                self._by_hash[digest, algorithm(name).digest(), algorithm(key).digest()] = issuer

    async def respond(self, query: OcspQuery) -> OcspAnswer:
        """Answer a DER OCSPRequest; every outcome is an OCSPResponse (CorePort.respond_ocsp).

        All CertIDs of a request are of one issuer, or nobody could sign the answer to all of them.
        """
        # 1. Read the request.
        try:
            request = parse_request(query.request_der)
        except DerError:
            return self._refused("", "malformed", ResponseStatus.MALFORMED_REQUEST)
        # 2. Find who can speak for the issuer.
        issuer = self._issuer(request.cert_ids)
        if issuer is None:
            return self._refused("", "unauthorized", ResponseStatus.UNAUTHORIZED)
        responder = self._responder(issuer.name)
        if responder is None:
            return self._refused(issuer.name, "unauthorized", ResponseStatus.UNAUTHORIZED)
        try:
            # 3. Ask the database, for each.
            known = [await self._status(issuer, cert_id, query.source) for cert_id in request.cert_ids]
            if self._unknown_serial == "unauthorized" and any(item.value is StatusValue.UNKNOWN for item in known):
                return self._refused(issuer.name, "unknown", ResponseStatus.UNAUTHORIZED)
            # 4. Sign.
            answer = await self._sign(responder, request, known)
        except CaError as error:
            _log.warning("ocsp: try later", issuer=issuer.name, error=error.detail)
            return self._refused(issuer.name, "try-later", ResponseStatus.TRY_LATER)
        for item in known:
            self._count(issuer.name, item.value.value)
        return answer

    def _issuer(self, cert_ids: Sequence[CertId]) -> ActiveIssuer | None:
        """The one issuer that all CertIDs name; None where there is none, or more than one."""
        found = [
            self._by_hash.get((cert_id.digest or "", cert_id.issuer_name_hash, cert_id.issuer_key_hash))
            for cert_id in cert_ids
        ]
        return found[0] if all(issuer is found[0] for issuer in found) else None

    async def _status(self, issuer: ActiveIssuer, cert_id: CertId, source: str | None) -> SerialStatus:
        """What the database knows; an unknown serial under our name may be a forged certificate's, so it is logged."""
        serial = serial_text(cert_id.serial)
        status = await self._store.serial_status(issuer.name, serial)
        if status.value is StatusValue.UNKNOWN:
            _log.warning("ocsp: unknown serial", issuer=issuer.name, serial=serial[:64], source=source)
        return status

    async def _sign(self, responder: Responder, request: OcspRequest, known: Sequence[SerialStatus]) -> OcspAnswer:
        now = self._clock().replace(microsecond=0)
        next_update = min(now + self._lifetime, responder.certificate.not_valid_after_utc).replace(microsecond=0)
        shown = [self._shown(status) for status in known]
        tbs = build_response_data(
            sha1(_public_key_bits(responder.certificate)).digest(),  # noqa: S324 - what KeyHash is (section 4.2.1)
            now,
            next_update,
            [SingleResponse(cert_id, status) for cert_id, status in zip(request.cert_ids, shown, strict=True)],
            nonce=request.nonce,
            extended_revoke=_NEVER_ISSUED in shown,
        )
        signature = await sign_verified(responder.key, tbs)
        der = assemble_ocsp_response(
            tbs, responder.key.algorithm, signature, [responder.certificate.public_bytes(Encoding.DER)]
        )
        cacheable = request.nonce is None and len(known) == 1 and known[0].value in _SETTLED
        return OcspAnswer(der, cacheable, this_update=now, next_update=next_update)

    def _shown(self, status: SerialStatus) -> CertStatus:
        """The CertStatus for what the store knows.

        A serial that was drawn and given up is shown as RFC 6960 section 2.2 has it for certificates that were
        never issued: revoked, on hold, at the epoch, with extended-revoke. One that is being issued is unknown.
        """
        if status.value is StatusValue.GOOD:
            return CertStatus(good=True)
        if status.value is StatusValue.REVOKED:
            return CertStatus(good=False, revoked_at=status.revoked_at, reason=status.reason)
        never_issued = status.value is StatusValue.ABANDONED or (
            status.value is StatusValue.UNKNOWN and self._unknown_serial == "revoked"
        )
        return _NEVER_ISSUED if never_issued else CertStatus(good=False)

    def _refused(self, issuer: str, outcome: str, status: ResponseStatus) -> OcspAnswer:
        self._count(issuer, outcome)
        return _error(status)

    def _count(self, issuer: str, outcome: str) -> None:
        self._counts[issuer, outcome] += 1
        self._observe(issuer, outcome)

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
