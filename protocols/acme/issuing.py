"""Issuing in the background: finalized orders are worked on under a lease until they have a certificate or an error."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from enum import Enum

import msgspec
import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.ports import CorePort
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.errors import RETRYABLE_KINDS, CaError, ErrorKind
from protocols.acme.model import ChallengeStatus, Order, OrderStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, Lessee, NonceUse
from protocols.acme.problems import MAX_RETRY_AFTER, problem_of

_log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=60)
_FIRST_PAUSE = 0.5
_LAST_PAUSE = 15.0
_APPROVAL_PAUSE = 60.0
"""A held request is asked for again at leisure: people are slow, and each time is an event of the audit log."""
_RETRYABLE = RETRYABLE_KINDS | {ErrorKind.CONFLICT}
"""A conflict is between processes of ours, such as two cores at work on one order after a lease ran out."""
_CLAIM_LIMIT = 100


def enrollment_request(
    order: Order, tenant: str, csr_der: bytes, evidence: tuple[ValidatedIdentifier, ...]
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
        request_id=order.request_id,
        source=order.source,
    )


class _Outcome(Enum):
    """How an attempt ended."""

    SETTLED = "settled"
    AGAIN = "again"
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
        self, options: AcmeOptions, store: AcmeStore, core: CorePort, events: EventFactory, holder: str
    ) -> None:
        self._options = options
        self._store = store
        self._core = core
        self._events = events
        self._holder = holder
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = asyncio.Event()

    def _lessee(self, pause: float = 0.0) -> Lessee:
        return Lessee(self._holder, datetime.now(UTC), LEASE + timedelta(seconds=pause))

    async def begin(self, order_id: str, csr_der: bytes, nonce: NonceUse | None) -> bool:
        """Take a ready order to processing, committed with its CSR, and start work; false where it is not ready."""
        if not await self._store.begin_finalize(order_id, csr_der, self._lessee(), nonce):
            return False
        self._start(order_id)
        return True

    async def settled(self, order: Order) -> Order:
        """The order once it has a certificate or an error, or as it stands when the patience runs out."""
        task = self._tasks.get(order.id)
        if task is None or self._options.finalize_wait <= 0:
            return order
        await asyncio.wait([task], timeout=self._options.finalize_wait)
        return await self._store.order(order.id) or order

    async def resume(self, node: str | None = None) -> int:
        """Take over orders whose lease ran out; with `node`, at a start, at once what its earlier processes held."""
        claimed = await self._store.claim_orders(self._lessee(), _CLAIM_LIMIT, node)
        for order_id in claimed:
            self._start(order_id)
        return len(claimed)

    async def drain(self, seconds: float) -> None:
        """Wait for the attempts under way; an order between two attempts, or not done in time, is left to its lease."""
        self._draining.set()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, order_id: str) -> None:
        if order_id in self._tasks:
            return
        task = asyncio.create_task(self._work(order_id), name=f"acme order {order_id}")
        self._tasks[order_id] = task
        task.add_done_callback(lambda _done: self._tasks.pop(order_id, None))

    async def _work(self, order_id: str) -> None:
        pause = _FIRST_PAUSE
        while True:
            outcome = _Outcome.AGAIN
            try:
                outcome = await self._attempt(order_id)
            except CaError as error:
                _log.warning("order waits", order=order_id, error=error.detail)
            except Exception:  # noqa: BLE001 - logged with its traceback; the loop goes on
                _log.exception("order waits", order=order_id)
            if outcome is _Outcome.SETTLED:
                return
            wait = _APPROVAL_PAUSE if outcome is _Outcome.HELD else pause
            # The lease is over the pause too: nobody takes the order over meanwhile.
            if not await self._still_ours(self._store.prolong_order(order_id, self._lessee(wait))):
                return
            if await self._drains_within(wait):
                return
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

    async def _attempt(self, order_id: str) -> _Outcome:
        """Ask the core once."""
        order = await self._store.order(order_id)
        if order is None or order.status is not OrderStatus.PROCESSING or order.certificate is not None:
            return _Outcome.SETTLED
        request = enrollment_request(order, self._options.tenant, order.csr_der or b"", await self._evidence(order))
        try:
            await self._core.issue(request)
        except CaError as error:
            if datetime.now(UTC) < order.expires_at:
                if error.kind is ErrorKind.PENDING_APPROVAL:
                    return _Outcome.HELD
                if error.kind in _RETRYABLE:
                    _log.warning("order not issued yet", order=order_id, error=error.detail)
                    return _Outcome.AGAIN
            await self._fail(order, error)
        return _Outcome.SETTLED

    async def _evidence(self, order: Order) -> tuple[ValidatedIdentifier, ...]:
        """How control of each name was shown (recorded with the certificate)."""
        return tuple(
            ValidatedIdentifier(authorization.identifier, challenge.type, challenge.validated_at)
            for authorization in await self._store.authorizations_of_order(order.id)
            for challenge in authorization.challenges
            if challenge.status is ChallengeStatus.VALID and challenge.validated_at is not None
        )

    async def _fail(self, order: Order, error: CaError) -> None:
        problem = msgspec.json.encode(problem_of(error).json())
        event = self._events.make(
            EventType.ISSUANCE_REFUSED,
            outcome=Outcome.DENIED,
            actor=f"acme:{order.account_id}",
            authenticated_by="jws",
            request_id=order.request_id or None,
            object=f"acme-order:{order.id}",
            profile=order.profile,
            reason=error.detail,
            rule=error.rule or error.kind.value,
        )
        await self._store.fail_order(order.id, problem, [event])
