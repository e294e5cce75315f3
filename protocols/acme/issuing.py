"""Issuing in the background: finalized orders are worked on under a lease until they have a certificate or an error."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum

import msgspec
import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.ports import CorePort
from ca_server.domain.accounts import AccountStatus
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.bindings import QUOTA_RULES
from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.enrollment import CaaChecked, EnrollmentRequest, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.errors import RETRYABLE_KINDS, CaError, ErrorKind
from ca_server.domain.rates import Draw
from protocols.acme.caa.checking import CaaChecks
from protocols.acme.model import AuthorizationStatus, ChallengeStatus, Order, OrderStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, Lessee, NonceUse, OrderWork, Work
from protocols.acme.problems import MAX_RETRY_AFTER, Problem, internal_problem, problem_of

_log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=60)
_FIRST_PAUSE = 0.5
_LAST_PAUSE = 15.0
_APPROVAL_PAUSE = 60.0
"""A held request is asked for again at leisure: people are slow, and each time is an event of the audit log."""
_RETRYABLE = RETRYABLE_KINDS | {ErrorKind.CONFLICT}
"""A conflict is between processes of ours, such as two cores at work on one order after a lease ran out."""
_INTERNAL_ATTEMPTS = 5
"""How often one process lets an order meet a failure that is nobody's outage: it will hardly go away."""
_FINAL = QUOTA_RULES | {"lint"}
"""Rules that the next attempt would meet too. Where a quota has no room the client is told, to make another order."""
_UNCHECKED = "names.caa"
"""The core's rule where it enforces CAA and this front did not look: the profile was changed a moment ago."""
_CLAIM_LIMIT = 100


def enrollment_request(
    order: Order,
    tenant: str,
    csr_der: bytes,
    evidence: tuple[ValidatedIdentifier, ...],
    caa: tuple[CaaChecked, ...] = (),
    eab_kid: str = "",
) -> EnrollmentRequest:
    """The pipeline's request of an order: its id is the transaction key, so that every retry is the same request."""
    return EnrollmentRequest(
        requester=Requester(Protocol.ACME, order.account_id, "jws", tenant),
        profile=order.profile,
        csr_der=csr_der,
        identifiers=tuple(item.identifier for item in order.identifiers),
        transaction_key=order.id,
        profile_hash=order.profile_hash,
        not_before=order.not_before,
        not_after=order.not_after,
        evidence=evidence,
        caa=caa,
        request_id=order.request_id,
        source=order.source,
        eab_kid=eab_kid,
    )


class _Outcome(Enum):
    """How an attempt ended."""

    SETTLED = "settled"
    AGAIN = "again"
    FAILED = "failed"
    """By a mistake of ours, it seems: again, but not for ever."""
    HELD = "held"


def retry_after(order: Order, now: datetime) -> int:
    """Seconds after which a client should look at a processing order again: when the next attempt is made."""
    if order.lease_until is None:
        return 1
    due = (order.lease_until - LEASE - now).total_seconds()
    return int(min(max(due, 1), MAX_RETRY_AFTER))


class Issuing:
    """Works on finalized orders. `_tasks` has the one task of each order in this process."""

    def __init__(
        self,
        options: AcmeOptions,
        store: AcmeStore,
        core: CorePort,
        caa: CaaChecks,
        events: EventFactory,
        holder: str,
    ) -> None:
        self._options = options
        self._store = store
        self._core = core
        self._caa = caa
        self._events = events
        self._holder = holder
        self._tasks: dict[str, asyncio.Task[IssuedCertificate | None]] = {}
        self._draining = asyncio.Event()

    def _lessee(self, pause: float = 0.0) -> Lessee:
        return Lessee(self._holder, datetime.now(UTC), LEASE + timedelta(seconds=pause))

    async def begin(
        self, order: Order, csr_der: bytes, nonce: NonceUse | None, draws: Sequence[Draw] = ()
    ) -> Order | None:
        """Take a ready order to processing, committed with its CSR, and start work; None where it is not ready.

        RATE_LIMITED, and the order stays ready, where one of its draws has no room.
        """
        lessee = self._lessee()
        if not await self._store.begin_finalize(order.account_id, order.id, csr_der, lessee, nonce, draws):
            return None
        self._start(Work(order.id, order.account_id))
        return replace(order, status=OrderStatus.PROCESSING, csr_der=csr_der, lease_until=lessee.until)

    async def settled(self, order: Order) -> Order:
        """The order once it has a certificate or an error, or as it stands when the patience runs out."""
        task = self._tasks.get(order.id)
        if task is None or self._options.finalize_wait <= 0:
            return order
        await asyncio.wait([task], timeout=self._options.finalize_wait)
        if task.done() and not task.cancelled() and (certificate := task.result()) is not None:
            return replace(order, certificate=certificate)
        return await self._store.order(order.id) or order

    async def resume(self, *, restarted: bool = False) -> int:
        """Take over orders whose lease ran out; `restarted`, at a start, at once what this process had before."""
        claimed = await self._store.claim_orders(self._lessee(), _CLAIM_LIMIT, restarted=restarted)
        for work in claimed:
            self._start(work)
        return len(claimed)

    async def drain(self, seconds: float) -> None:
        """Wait for the attempts under way; an order between two attempts, or not done in time, is left to its lease."""
        self._draining.set()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, work: Work) -> None:
        if work.id in self._tasks:
            return
        task = asyncio.create_task(self._work(work), name=f"acme order {work.id}")
        self._tasks[work.id] = task
        task.add_done_callback(lambda _done: self._tasks.pop(work.id, None))

    async def _work(self, work: Work) -> IssuedCertificate | None:
        """Attempt until the order is settled; returns its certificate where it was issued just now."""
        pause = _FIRST_PAUSE
        patience = _INTERNAL_ATTEMPTS
        while True:
            outcome = _Outcome.AGAIN
            try:
                outcome, certificate = await self._attempt(work, last=patience <= 1)
                if outcome is _Outcome.SETTLED:
                    return certificate
            except CaError as error:
                _log.warning("order waits", order=work.id, error=error.detail)
            except Exception:  # noqa: BLE001 - logged with its traceback; the loop goes on
                _log.exception("order waits", order=work.id)
                outcome = _Outcome.FAILED
            if outcome is _Outcome.FAILED:
                patience -= 1
            wait = _APPROVAL_PAUSE if outcome is _Outcome.HELD else pause
            # The lease is over the pause too: nobody takes the order over meanwhile.
            if not await self._still_ours(self._store.prolong_order(work.account_id, work.id, self._lessee(wait))):
                return None
            if await self._drains_within(wait):
                return None
            pause = min(pause * 2, _LAST_PAUSE)

    async def _drains_within(self, seconds: float) -> bool:
        """Pause between attempts; true, at once, where this process is to end."""
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return False
        return True

    async def _still_ours(self, prolonging: Awaitable[bool]) -> bool:
        try:
            return await prolonging
        except CaError:
            return True  # the database is away: find out with the next attempt

    async def _attempt(self, work: Work, *, last: bool) -> tuple[_Outcome, IssuedCertificate | None]:
        """Ask the core once, where the order may still be issued; `last`: a failure of ours is final."""
        found = await self._store.order_work(work.id)
        if found is None or found.order.status is not OrderStatus.PROCESSING or found.order.certificate is not None:
            return _Outcome.SETTLED, None if found is None else found.order.certificate
        order = found.order
        objection = _objection(found, datetime.now(UTC))
        if objection is not None:
            return await self._object(found, problem_of(objection))
        clearance = await self._caa.check(found)
        if clearance.problem is not None:
            return await self._object(found, clearance.problem)
        try:
            request = enrollment_request(
                order,
                self._options.tenant,
                order.csr_der or b"",
                evidence_of(found),
                clearance.checked,
                found.eab_kid or "",
            )
            return _Outcome.SETTLED, await self._core.issue(request)
        except CaError as error:
            if error.kind is ErrorKind.PENDING_APPROVAL:
                return _Outcome.HELD, None
            outcome = _outcome_of(error, last=last)
            if outcome is not _Outcome.SETTLED:
                _log.warning("order not issued yet", order=order.id, error=error.detail)
                return outcome, None
            await self._fail(order, problem_of(error), error.rule or error.kind.value)
        except Exception:
            if not last:
                raise
            _log.exception("order failed", order=order.id)
            await self._fail(order, internal_problem(), ErrorKind.INTERNAL.value)
        return _Outcome.SETTLED, None

    async def _object(self, found: OrderWork, problem: Problem) -> tuple[_Outcome, None]:
        """Fail an order without asking the core."""
        if found.is_live:
            # What an earlier call became is not known: it may have a certificate in a moment.
            return _Outcome.AGAIN, None
        await self._fail(found.order, problem, problem.rule or problem.type.value)
        return _Outcome.SETTLED, None

    async def _fail(self, order: Order, problem: Problem, rule: str) -> None:
        event = self._events.make(
            EventType.ISSUANCE_REFUSED,
            outcome=Outcome.DENIED,
            actor=f"acme:{order.account_id}",
            authenticated_by="jws",
            request_id=order.request_id or None,
            object=f"acme-order:{order.id}",
            profile=order.profile,
            reason=problem.detail,
            rule=rule,
        )
        await self._store.fail_order(order.account_id, order.id, msgspec.json.encode(problem.json()), [event])


def _outcome_of(error: CaError, *, last: bool) -> _Outcome:
    """Whether to ask the core again after it refused or failed."""
    if error.rule == _UNCHECKED and not last:
        return _Outcome.FAILED
    if error.kind not in _RETRYABLE or error.rule in _FINAL or (last and error.kind is ErrorKind.INTERNAL):
        return _Outcome.SETTLED
    return _Outcome.FAILED if error.kind is ErrorKind.INTERNAL else _Outcome.AGAIN


def _objection(found: OrderWork, now: datetime) -> CaError | None:
    """Why an order may not be issued (any more), whatever the core would say: what it was accepted on has changed."""
    if found.account_status is not AccountStatus.VALID:
        return CaError(ErrorKind.UNAUTHORIZED, f"the account is {found.account_status.value}", rule="acme.account")
    if found.key_blocked:
        return CaError(ErrorKind.UNAUTHORIZED, "the account's key is on the blocklist", rule="acme.account")
    for authorization in found.authorizations:
        status = authorization.status_at(now)
        if status is not AuthorizationStatus.VALID:
            return CaError(
                ErrorKind.UNAUTHORIZED,
                f"the authorization for {authorization.identifier.value} is {status.value}",
                rule="acme.authorization",
            )
    if now >= found.order.expires_at:
        return CaError(ErrorKind.UNAUTHORIZED, "the order expired before it was issued", rule="acme.expired")
    return None


def evidence_of(found: OrderWork) -> tuple[ValidatedIdentifier, ...]:
    """How control of each name was shown (recorded with the certificate)."""
    return tuple(
        ValidatedIdentifier(
            authorization.identifier,
            challenge.type,
            challenge.validated_at,
            challenge.attested_key,
            subdomains=authorization.subdomains,
        )
        for authorization in found.authorizations
        for challenge in authorization.challenges
        if challenge.status is ChallengeStatus.VALID and challenge.validated_at is not None
    )
