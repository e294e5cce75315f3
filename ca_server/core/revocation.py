"""Revocation: one commit, seen at once by OCSP, and by the CRL as soon as it is signed again."""

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.ports import AuditStore, IssuanceStore, RevocationStore
from ca_server.core.profiles import ProfileBook
from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.certificates import (
    CertificateRecord,
    RevocationReason,
    RevocationRequest,
    RevokedCertificate,
    RevokedEntry,
)
from ca_server.domain.errors import CaError, ErrorKind

_log = structlog.get_logger()


class Revocation:
    """Revokes certificates that are stored."""

    def __init__(
        self,
        *,
        certificates: IssuanceStore,
        store: RevocationStore,
        audit: AuditStore,
        profiles: ProfileBook,
        events: EventFactory,
        revoked: Callable[[CertificateRecord], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        observe: Callable[[str, str], None] = lambda _reason, _outcome: None,
    ) -> None:
        self._certificates = certificates
        self._store = store
        self._audit = audit
        self._profiles = profiles
        self._events = events
        self._revoked = revoked
        self._clock = clock
        self._observe = observe

    async def revoke(self, request: RevocationRequest, *, may_release: bool = False) -> RevokedCertificate:
        """Revoke (CorePort.revoke): committed when this returns; `revoked` is told, to sign the CRL again.

        A certificate revoked before is ALREADY_REVOKED, but for a change to keyCompromise or out of a hold. Where
        `may_release`, the reason removeFromCRL ends a hold: the next full list leaves the certificate out.
        """
        try:
            record = await self._find(request)
            await self._check_reason(record, request.reason, may_release=may_release)
        except CaError as error:
            self._observe(request.reason.label, "denied")
            await self._audit.append([self._event(request, EventType.REVOCATION_REFUSED, error)])
            raise
        now = self._clock().replace(microsecond=0)
        entry = RevokedEntry(record.serial, now, request.reason, request.invalidity_date)
        standing = await self._store.revoke(entry, record.issuer, [self._event(request, EventType.CERTIFICATE_REVOKED)])
        if standing is not None:
            raise CaError(ErrorKind.ALREADY_REVOKED, "the certificate was revoked before")
        _log.info("revocation", issuer=record.issuer, serial=record.serial, reason=request.reason.label)
        self._observe(request.reason.label, "revoked")
        self._revoked(record)
        return RevokedCertificate(record.issuer, record.serial, now, request.reason)

    async def _find(self, request: RevocationRequest) -> CertificateRecord:
        record = await self._certificates.certificate(request.issuer, request.serial)
        if record is None or request.presented_der not in {None, record.certificate_der}:
            raise CaError(ErrorKind.NOT_FOUND, "this CA did not issue that certificate")
        return record

    async def _check_reason(self, record: CertificateRecord, reason: RevocationReason, *, may_release: bool) -> None:
        if reason is RevocationReason.REMOVE_FROM_CRL:
            if not may_release:
                raise CaError(ErrorKind.BAD_REVOCATION_REASON, "operators alone release a certificate from hold")
            if record.revocation_reason is not RevocationReason.CERTIFICATE_HOLD:
                raise CaError(ErrorKind.BAD_REVOCATION_REASON, "the certificate is not on hold")
        if reason is RevocationReason.CERTIFICATE_HOLD:
            profile = await self._profiles.by_hash(record.profile_hash) if record.profile_hash else None
            if profile is None or not profile.allow_hold:
                raise CaError(
                    ErrorKind.BAD_REVOCATION_REASON,
                    "the certificate's profile allows no certificateHold",
                    rule="profile.allow_hold",
                )

    def _event(self, request: RevocationRequest, kind: EventType, error: CaError | None = None) -> AuditEvent:
        return self._events.make(
            kind,
            outcome=Outcome.SUCCESS if error is None else Outcome.DENIED,
            actor=f"{request.requester_protocol}:{request.requester_id}",
            authenticated_by=request.authenticated_by,
            source=request.source,
            request_id=request.request_id or None,
            issuer=request.issuer,
            serial=request.serial,
            reason=request.reason.label if error is None else error.detail,
            rule=None if error is None else (error.rule or error.kind.value),
        )
