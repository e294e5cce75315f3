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
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import RETRYABLE_KINDS, CaError, ErrorKind

_log = structlog.get_logger()

OPERATOR = "operator"
"""How an operator's right to revoke is told."""


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
        record = None
        try:
            record = await self._find(request)
            self._check_right(request, record)
            await self._check_reason(record, request.reason, may_release=may_release)
            now = self._clock().replace(microsecond=0)
            await self._commit(request, record, now)
        except CaError as error:
            if error.kind not in RETRYABLE_KINDS:
                self._observe(request.reason.label, "denied")
                await self._audit.append([self._event(request, EventType.REVOCATION_REFUSED, record, error)])
            raise
        _log.info("revocation", issuer=record.issuer, serial=record.serial, reason=request.reason.label)
        self._observe(request.reason.label, "revoked")
        self._revoked(record)
        return RevokedCertificate(record.issuer, record.serial, now, request.reason)

    async def _commit(self, request: RevocationRequest, record: CertificateRecord, now: datetime) -> None:
        entry = RevokedEntry(record.serial, now, request.reason, request.invalidity_date)
        event = self._event(request, EventType.CERTIFICATE_REVOKED, record)
        if await self._store.revoke(entry, record.issuer, [event]) is not None:
            raise CaError(ErrorKind.ALREADY_REVOKED, "the certificate was revoked before")

    async def _find(self, request: RevocationRequest) -> CertificateRecord:
        record = await self._certificates.certificate(request.issuer, request.serial)
        if record is None or request.presented_der not in {None, record.certificate_der}:
            raise CaError(ErrorKind.NOT_FOUND, "this CA did not issue that certificate")
        return record

    @staticmethod
    def _check_right(request: RevocationRequest, record: CertificateRecord) -> None:
        """What the core can know of a front-end's claim: its own certificates are no requester's to revoke."""
        if request.authenticated_by == OPERATOR:
            return
        if record.requester_protocol == Protocol.INTERNAL:
            raise CaError(ErrorKind.UNAUTHORIZED, "only an operator revokes this one", rule="revocation.internal")
        asked_for_it = (record.requester_protocol, record.requester_id)
        if request.authenticated_by == "account" and asked_for_it != (request.requester_protocol, request.requester_id):
            raise CaError(ErrorKind.UNAUTHORIZED, "another requester's certificate", rule="revocation.right")

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

    def _event(
        self,
        request: RevocationRequest,
        kind: EventType,
        record: CertificateRecord | None,
        error: CaError | None = None,
    ) -> AuditEvent:
        return self._events.make(
            kind,
            outcome=Outcome.SUCCESS if error is None else Outcome.DENIED,
            actor=f"{request.requester_protocol}:{request.requester_id}",
            authenticated_by=request.authenticated_by,
            source=request.source,
            request_id=request.request_id or None,
            issuer=request.issuer,
            serial=request.serial,
            profile=record.profile if record else None,
            names=record.names if record else (),
            extra={"spki_sha256": record.spki_sha256.hex()} if record else {},
            reason=request.reason.label if error is None else error.detail,
            rule=None if error is None else (error.rule or error.kind.value),
        )
