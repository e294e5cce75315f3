"""The enrollment pipeline: the one way from a request to a certificate, for every front-end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from secrets import token_bytes

import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.bindings import decide_binding
from ca_server.core.csr import ParsedCsr, parse_csr
from ca_server.core.der import assemble
from ca_server.core.issuers import ActiveIssuer, IssuerRegistry
from ca_server.core.keycheck import check_key
from ca_server.core.lint import LintedTbs, Linter, LintError
from ca_server.core.policy import decide, refusal, unattested_key, unchecked_caa, unproven_identifier
from ca_server.core.ports import NO_CLAIM, AuditStore, EabClaim, IssuanceStore
from ca_server.core.profiles import ProfileBook
from ca_server.core.signing import sign_verified
from ca_server.core.tbs import TbsPlan, build_tbs, leaf_plan, new_serial
from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.bindings import QUOTA_RULES, EabKey
from ca_server.domain.certificates import CertificateRecord, IssuedCertificate, IssuerKind, serial_text
from ca_server.domain.enrollment import (
    Deny,
    EnrollmentKey,
    EnrollmentOutcome,
    EnrollmentRequest,
    Fence,
    Hold,
    IssuanceIntent,
    Protocol,
)
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_id
from ca_server.domain.profile_rules import CaaMode
from ca_server.domain.profiles import Profile

_log = structlog.get_logger()

REFUSALS = frozenset(
    {
        ErrorKind.BAD_CSR,
        ErrorKind.BAD_PUBLIC_KEY,
        ErrorKind.REJECTED_IDENTIFIER,
        ErrorKind.UNSUPPORTED_IDENTIFIER,
        ErrorKind.POLICY_DENIED,
        ErrorKind.UNAUTHORIZED,
    }
)

_HELD_REMEMBERED = 10_000

ObserveStage = Callable[[str, float], None]
"""Called with a stage's name and its seconds."""

BoundKey = Callable[[str], Awaitable[EabKey | None]]
"""Finds the external account key that an account is said to be bound by."""

ObserveOutcome = Callable[[str, str, str], None]
"""Called with protocol, profile and outcome of each request."""


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that policy let pass, with all that signing it needs."""

    request: EnrollmentRequest
    csr: ParsedCsr
    profile: Profile
    issuer: ActiveIssuer
    needs_caa: bool
    """Whether the profile, as it was pinned or as it now stands, signs no DNS name without a check of CAA."""
    eab_key: EabKey | None

    @property
    def claim(self) -> EabClaim:
        """What the reservation is to hold against what is known of the account."""
        key = self.eab_key
        if key is None:
            return NO_CLAIM
        return EabClaim(key.kid, tuple(map(str, self.request.identifiers)))


async def _no_key(_kid: str) -> EabKey | None:
    return None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What would be signed for a request, and by which issuer."""

    issuer: str
    profile_hash: str
    subject: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    tbs_der: bytes
    """The TBSCertificate as it was linted."""


class Issuance:
    """Owns the pipeline. `_running` has the one task that works on an enrollment in this process.

    `_held` remembers which enrollments are on record as held: asking again is no news. `evidence_lifetime` is how old
    the validation of a name may be that a front-end claims, `caa_lifetime` how old its check of CAA records.
    """

    def __init__(
        self,
        *,
        store: IssuanceStore,
        audit: AuditStore,
        issuers: IssuerRegistry,
        profiles: ProfileBook,
        linter: Linter,
        events: EventFactory,
        fence: Callable[[], Fence],
        bound_key: BoundKey = _no_key,
        evidence_lifetime: timedelta = timedelta(days=37),
        caa_lifetime: timedelta = timedelta(hours=9),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        random: Callable[[int], bytes] = token_bytes,
        observe_stage: ObserveStage = lambda _stage, _seconds: None,
        observe_outcome: ObserveOutcome = lambda _protocol, _profile, _outcome: None,
    ) -> None:
        self._store = store
        self._audit = audit
        self._issuers = issuers
        self._profiles = profiles
        self._linter = linter
        self._events = events
        self._fence = fence
        self._bound_key = bound_key
        self._evidence_lifetime = evidence_lifetime
        self._caa_lifetime = caa_lifetime
        self._clock = clock
        self._random = random
        self._observe_stage = observe_stage
        self._observe_outcome = observe_outcome
        self._running: dict[EnrollmentKey, asyncio.Task[IssuedCertificate]] = {}
        self._held: dict[EnrollmentKey, None] = {}

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        """Issue, or find what was issued for the same enrollment (CorePort.issue).

        Requests for an enrollment that is being worked on wait for that work; a caller that goes away stops nothing.
        """
        task = self._running.get(request.key)
        if task is None:
            task = asyncio.create_task(self._observed(request), name=f"issue {request.transaction_key}")
            self._running[request.key] = task
            task.add_done_callback(lambda _done: self._running.pop(request.key, None))
            return await asyncio.shield(task)
        await asyncio.wait([task])
        state = await self._store.enrollment(request.key)
        found = _issued_for_same_csr(state.csr_sha256, state.certificate, request)
        if found is not None:
            return found
        return task.result()

    async def drain(self, seconds: float) -> None:
        """Wait for the work under way, at most so long; what is not done is settled at the next start."""
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)

    async def settle(self, intents: Sequence[IssuanceIntent], reason: str) -> int:
        """Abandon intents whose process died before they were stored, on record. Returns how many."""
        settled = 0
        for intent in intents:
            if await self._abandon(intent, reason):
                settled += 1
        return settled

    async def _observed(self, request: EnrollmentRequest) -> IssuedCertificate:
        outcome = "failed"
        try:
            certificate = await self._issue(request)
        except CaError as error:
            if _is_refusal(error):
                outcome = "denied"
            elif error.kind is ErrorKind.PENDING_APPROVAL:
                outcome = "held"
            raise
        else:
            outcome = "issued"
            return certificate
        finally:
            self._observe_outcome(request.requester.protocol.value, request.profile, outcome)

    async def _issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        now = self._clock()
        serial = new_serial(self._random(20))
        try:
            # 1. and 2. Decide; build the TBSCertificate, lint it.
            admitted, plan, linted = await self._prepare(request, serial, now)
        except CaError as error:
            # A retry finds what stands, whatever policy says by now.
            if (found := await self._standing(request)) is not None:
                return found
            await self._record_refusal(request, error)
            raise
        tbs = linted.take()
        started = time.perf_counter()
        # 3. Commit serial, TBS hash and event.
        intent = self._intent(admitted, serial, tbs, now)
        if (found := await self._reserve(admitted, intent)) is not None:
            return found
        started = self._stage("reserve", started)
        # 4. Sign in the token what was linted; trust the signature only when it verifies.
        try:
            signature = await sign_verified(admitted.issuer.key, tbs)
        except CaError as error:
            await self._abandon_quietly(intent, f"signing failed: {error.detail}")
            raise
        der = assemble(tbs, admitted.issuer.key.algorithm, signature)
        started = self._stage("sign", started)
        # 5. Commit certificate and event; only then answer.
        record = self._record(admitted, intent, plan, der, now)
        stored = self._event(EventType.ISSUANCE_STORED, admitted, intent, certificate_sha256=sha256(der).hexdigest())
        await self._store.complete(intent.id, intent.fence, record, [stored])
        self._stage("store", started)
        return IssuedCertificate(
            serial=record.serial,
            issuer=record.issuer,
            issuer_key_id=record.issuer_key_id,
            certificate_der=der,
            chain=_handed_out_chain(admitted.issuer),
            profile=record.profile,
            profile_hash=record.profile_hash,
            not_before=record.not_before,
            not_after=record.not_after,
        )

    async def rehearse(self, request: EnrollmentRequest) -> Rehearsal:
        """What `issue` would sign, by the same steps up to the signature: nothing is reserved, signed or recorded.

        Raises as `issue` where it would refuse or hold.
        """
        admitted, plan, linted = await self._prepare(request, new_serial(self._random(20)), self._clock())
        return Rehearsal(
            issuer=admitted.issuer.name,
            profile_hash=admitted.profile.hash,
            subject=plan.subject.rfc4514_string(),
            names=tuple(str(name) for name in plan.names),
            not_before=plan.not_before,
            not_after=plan.not_after,
            tbs_der=linted.take(),
        )

    async def _prepare(
        self, request: EnrollmentRequest, serial: int, now: datetime
    ) -> tuple[_Admitted, TbsPlan, LintedTbs]:
        # 1. Decide; the serial number is part of the plan of what will be signed.
        started = time.perf_counter()
        admitted = await self._decide(request, now)
        plan = self._plan(admitted, serial, now)
        self._assert_caa(admitted, plan, now)
        started = self._stage("decide", started)
        # 2. Build the TBSCertificate, lint it.
        unlinted = build_tbs(plan)
        started = self._stage("build", started)
        linted = await self._linter.lint(unlinted, plan, admitted.profile)
        self._stage("lint", started)
        return admitted, plan, linted

    def _stage(self, name: str, started: float) -> float:
        now = time.perf_counter()
        self._observe_stage(name, now - started)
        return now

    async def _standing(self, request: EnrollmentRequest) -> IssuedCertificate | None:
        """What was issued for the request, if it was; an attempt at it that ended midway is settled.

        Asked when something is in the way: most requests are new, and then the reservation says so.
        """
        state = await self._store.enrollment(request.key)
        if (found := _issued_for_same_csr(state.csr_sha256, state.certificate, request)) is not None:
            return found
        if state.outcome is EnrollmentOutcome.LIVE and state.intent is not None:
            await self._take_over(state.intent)
        return None

    async def _reserve(self, admitted: _Admitted, intent: IssuanceIntent) -> IssuedCertificate | None:
        """Reserve, or find the certificate that stands."""

        async def reserve() -> None:
            await self._store.reserve(
                intent,
                sha256(admitted.request.csr_der).digest(),
                [self._event(EventType.ISSUANCE_RESERVED, admitted, intent)],
                spki_sha256=admitted.csr.spki_sha256,
                claim=admitted.claim,
            )

        try:
            try:
                await reserve()
            except CaError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
                if (found := await self._standing(admitted.request)) is not None:
                    return found
                await reserve()
        except CaError as error:
            await self._record_refusal(admitted.request, error)
            raise
        return None

    async def _take_over(self, intent: IssuanceIntent) -> None:
        """Settle an intent that this very process left behind; leave another process's to its own settlement."""
        fence = self._fence()
        if intent.fence.node != fence.node:
            raise CaError(ErrorKind.UNAVAILABLE, "another node is working on this request", retry_after=5)
        await self._abandon(intent, "an earlier attempt was interrupted")

    async def _decide(self, request: EnrollmentRequest, now: datetime) -> _Admitted:
        """Decide under the profile that the request began with and, where that was replaced, under today's too."""
        pinned = await self._profiles.pinned(request.profile, request.profile_hash)
        current = self._profiles.current(request.profile)
        csr = parse_csr(request.csr_der)
        decisions = []
        for profile in (pinned,) if pinned.hash == current.hash else (pinned, current):
            check_key(csr.public_key, profile)
            decisions.append(decide(profile, request, csr, now=now))
            unproven = unproven_identifier(profile, request, now - self._evidence_lifetime)
            if unproven is not None:
                decisions.append(unproven)
        issuer = self._issuer_of(pinned, request)
        unattested = unattested_key(request, csr)
        if unattested is not None:
            decisions.append(unattested)
        eab_key = await self._decide_binding(request)
        for decision in decisions:
            if isinstance(decision, Deny):
                raise refusal([decision])
        for decision in decisions:
            if isinstance(decision, Hold):
                raise CaError(
                    ErrorKind.PENDING_APPROVAL, "the request waits for approval", rule=decision.rule, retry_after=60
                )
        needs_caa = CaaMode.ENFORCE in {pinned.caa, current.caa}
        return _Admitted(request, csr, pinned, issuer, needs_caa, eab_key)

    def _assert_caa(self, admitted: _Admitted, plan: TbsPlan, now: datetime) -> None:
        """The names that were checked are those of the TBSCertificate: the linter holds it to `plan.names`."""
        if admitted.needs_caa:
            unchecked = unchecked_caa(admitted.request, plan.names, now - self._caa_lifetime)
            if unchecked is not None:
                raise refusal([unchecked])

    async def _decide_binding(self, request: EnrollmentRequest) -> EabKey | None:
        """Decide under what is bound to the account's external account key now; None where it is said to have none."""
        if not request.eab_kid:
            return None
        key = await self._bound_key(request.eab_kid)
        if key is None:
            raise CaError(ErrorKind.UNAUTHORIZED, "the account's external account key is not known", rule="eab.binding")
        denials = decide_binding(key, request.profile, request.identifiers)
        if denials:
            raise refusal(denials)
        return key

    def _issuer_of(self, profile: Profile, request: EnrollmentRequest) -> ActiveIssuer:
        """The issuer of a profile, or of the server's own request. A root signs CA certificates and its CRL alone."""
        internal = request.requester.protocol is Protocol.INTERNAL
        issuer = self._issuers.get(request.issuer if internal and request.issuer else profile.issuer)
        if issuer.issuer.kind is not IssuerKind.ISSUING:
            raise CaError(ErrorKind.POLICY_DENIED, "a root issues to nobody but CAs", rule="profile.issuer")
        return issuer

    def _plan(self, admitted: _Admitted, serial: int, now: datetime) -> TbsPlan:
        return leaf_plan(
            admitted.profile,
            admitted.csr,
            admitted.request,
            admitted.issuer.issuer.key,
            serial,
            now,
            admitted.issuer.urls,
        )

    def _intent(self, admitted: _Admitted, serial: int, tbs: bytes, now: datetime) -> IssuanceIntent:
        return IssuanceIntent(
            id=new_id(),
            enrollment=admitted.request.key,
            issuer=admitted.issuer.name,
            issuer_key_id=admitted.issuer.issuer.key.id,
            serial=serial_text(serial),
            tbs_sha256=sha256(tbs).digest(),
            profile=admitted.profile.name,
            profile_hash=admitted.profile.hash,
            fence=self._fence(),
            reserved_at=now,
            tenant=admitted.request.requester.tenant,
        )

    def _record(
        self, admitted: _Admitted, intent: IssuanceIntent, plan: TbsPlan, der: bytes, now: datetime
    ) -> CertificateRecord:
        request = admitted.request
        return CertificateRecord(
            serial=intent.serial,
            issuer=intent.issuer,
            issuer_key_id=intent.issuer_key_id,
            certificate_der=der,
            profile=intent.profile,
            profile_hash=intent.profile_hash,
            subject=plan.subject.rfc4514_string(),
            names=tuple(str(name) for name in plan.names),
            spki_sha256=admitted.csr.spki_sha256,
            not_before=plan.not_before,
            not_after=plan.not_after,
            issued_at=now,
            requester_protocol=request.requester.protocol.value,
            requester_id=request.requester.id,
            transaction_key=request.transaction_key,
            tenant=intent.tenant,
            owner=None if admitted.eab_key is None else admitted.eab_key.owner,
        )

    def _event(self, kind: EventType, admitted: _Admitted, intent: IssuanceIntent, **extra: str) -> AuditEvent:
        request = admitted.request
        extra["intent"] = intent.id
        extra["tbs_sha256"] = intent.tbs_sha256.hex()
        if request.evidence:
            extra["validated_by"] = ",".join(sorted({item.method for item in request.evidence}))
        if request.caa:
            extra["caa_checked"] = f"{len(request.caa)} names"
            extra["caa_checked_at"] = min(item.checked_at for item in request.caa).isoformat(timespec="seconds")
            extra["caa_authenticated"] = f"{sum(item.authenticated for item in request.caa)} names"
        if admitted.eab_key is not None:
            extra["eab"] = admitted.eab_key.kid
            if admitted.eab_key.owner:
                extra["owner"] = admitted.eab_key.owner
        return self._events.make(
            kind,
            actor=f"{request.requester.protocol.value}:{request.requester.id}",
            authenticated_by=request.requester.authenticated_by,
            source=request.source,
            request_id=request.request_id or None,
            object=f"enrollment:{request.transaction_key}",
            issuer=intent.issuer,
            serial=intent.serial,
            profile=intent.profile,
            names=tuple(str(name) for name in request.identifiers),
            key=admitted.issuer.key.label,
            tenant=intent.tenant,
            extra=extra,
        )

    async def _record_refusal(self, request: EnrollmentRequest, error: CaError) -> None:
        held = error.kind is ErrorKind.PENDING_APPROVAL
        if not _is_refusal(error) and not held and not isinstance(error, LintError):
            return
        if held and request.key in self._held:
            return
        await self._audit.append(
            [
                self._events.make(
                    EventType.ISSUANCE_HELD if held else EventType.ISSUANCE_REFUSED,
                    outcome=Outcome.SUCCESS if held else Outcome.DENIED,
                    actor=f"{request.requester.protocol.value}:{request.requester.id}",
                    authenticated_by=request.requester.authenticated_by,
                    source=request.source,
                    request_id=request.request_id or None,
                    object=f"enrollment:{request.transaction_key}",
                    profile=request.profile,
                    names=tuple(str(name) for name in request.identifiers),
                    reason=error.detail,
                    rule="lint" if isinstance(error, LintError) else error.rule or error.kind.value,
                    tenant=request.requester.tenant,
                )
            ]
        )
        if held:
            while len(self._held) >= _HELD_REMEMBERED:
                self._held.pop(next(iter(self._held)))
            self._held[request.key] = None

    async def _abandon(self, intent: IssuanceIntent, reason: str) -> bool:
        event = self._events.make(
            EventType.ISSUANCE_ABANDONED,
            outcome=Outcome.FAILURE,
            issuer=intent.issuer,
            serial=intent.serial,
            profile=intent.profile,
            object=f"enrollment:{intent.enrollment.transaction_key}",
            reason=reason,
            tenant=intent.tenant,
            extra={"intent": intent.id},
        )
        return await self._store.abandon(intent.id, reason, [event])

    async def _abandon_quietly(self, intent: IssuanceIntent, reason: str) -> None:
        """Settle after a failure; where even that fails, the next attempt or the next start settles it."""
        try:
            await self._abandon(intent, reason)
        except CaError as error:
            _log.warning("intent left for later settlement", intent=intent.id, error=error.detail)


def _issued_for_same_csr(
    csr_sha256: bytes | None, certificate: IssuedCertificate | None, request: EnrollmentRequest
) -> IssuedCertificate | None:
    if csr_sha256 is not None and csr_sha256 != sha256(request.csr_der).digest():
        raise CaError(ErrorKind.CONFLICT, "this enrollment began with another CSR")
    return certificate


def _handed_out_chain(issuer: ActiveIssuer) -> tuple[bytes, ...]:
    """The issuer's certificate and those above it, without the root, which a client must know already."""
    key = issuer.issuer.key
    return (key.certificate_der, *key.chain)[:-1]


def _is_refusal(error: CaError) -> bool:
    """Whether policy or a quota refused, and nothing failed."""
    return error.kind in REFUSALS or error.rule in QUOTA_RULES
