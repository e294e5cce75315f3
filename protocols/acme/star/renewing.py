"""Renewing in the background: auto-renewal orders that are due get their next certificate (RFC 8739 section 3.3).

An order is worked on under a lease in the database, which a process that dies leaves behind; whoever takes it up then
asks the core for the same certificate again, by its number. What was missed in an outage is not made up for: the newest
certificate that is due is asked for, and no other.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import msgspec
import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.keycheck import BLOCKED_KEY
from ca_server.core.policy import MAX_DELAY
from ca_server.core.ports import CorePort
from ca_server.domain.accounts import AccountStatus
from ca_server.domain.audit import EventType
from ca_server.domain.enrollment import EnrollmentRequest
from ca_server.domain.errors import CaError, ErrorKind
from protocols.acme.caa.checking import CaaChecks
from protocols.acme.issuing import enrollment_request, evidence_of
from protocols.acme.model import AuthorizationStatus, OrderStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import Lessee, OrderWork, Work
from protocols.acme.problems import ErrorType, Problem, internal_problem, problem_of
from protocols.acme.star.ports import FrontStore, RenewalWork
from protocols.acme.star.terms import AutoRenewal

_log = structlog.get_logger(__name__)

LEASE: Final = timedelta(seconds=120)
AT_ONCE: Final = 10
"""Renewals of one front that are asked for at the same time: its clients' own orders come first."""
CLAIMED: Final = 100
"""Orders that one front has taken, at most: a fleet that is due in one moment is shared out, and waits its turn."""
_FIRST_PAUSE: Final = timedelta(minutes=1)
_LAST_PAUSE: Final = timedelta(hours=1)
_AWAY: Final = timedelta(seconds=15)
_SHARE: Final = 10
"""No pause is longer than this part of a lifetime."""
_OVER: Final = frozenset({AuthorizationStatus.DEACTIVATED, AuthorizationStatus.REVOKED})
"""Of authorizations whose account gave them up, or lost them; one that merely expired stands in no renewal's way."""

ObserveRenewal = Callable[[str], None]
"""Called with the outcome of each attempt: renewed, refused, failed, canceled."""


class _AwayError(Exception):
    """Nothing was decided: core, token, database or DNS are away."""


class Renewing:
    """Renews orders. `_tasks` has the one task of each order that this process has taken."""

    def __init__(
        self,
        options: AcmeOptions,
        store: FrontStore,
        core: CorePort,
        caa: CaaChecks,
        events: EventFactory,
        observe: ObserveRenewal,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._options = options
        self._store = store
        self._core = core
        self._caa = caa
        self._events = events
        self._holder = events.process
        self._observe = observe
        self._clock = clock
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def resume(self) -> int:
        """Take orders that are due, as many as this process has room for, and begin with them; returns how many."""
        room = CLAIMED - len(self._tasks)
        if room <= 0:
            return 0
        claimed = await self._store.claim_renewals(Lessee(self._holder, self._clock(), LEASE), room)
        for work in claimed:
            if work.id not in self._tasks:
                task = asyncio.create_task(self._work(work), name=f"acme renewal {work.id}")
                self._tasks[work.id] = task
                task.add_done_callback(partial(self._done, work.id))
        return len(claimed)

    def _done(self, order_id: str, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(order_id, None)

    async def drain(self, seconds: float) -> None:
        """Wait for the attempts under way; what is not done in time is left to its lease."""
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, work: Work) -> None:
        """Renew one order, and say when it is to be looked at next; where even that fails, its lease runs out."""
        async with self._turns:
            try:
                await self._renew(work)
            except CaError as error:
                _log.warning("order not renewed yet", order=work.id, error=error.detail)
            except Exception:  # noqa: BLE001 - logged with its traceback; the order is taken up again after its lease
                _log.exception("order not renewed yet", order=work.id)

    async def _renew(self, work: Work) -> None:
        found = await self._store.renewal_work(work.id)
        terms = None if found is None else found.found.order.auto_renewal
        if found is None or terms is None or found.found.order.status in {OrderStatus.CANCELED, OrderStatus.INVALID}:
            await self._store.finish_renewal(work, self._holder, None)
            return
        now = self._clock()
        if found.newest is None:
            # The first is being issued, or held, or asked for again: that is not done here.
            await self._store.postpone_renewal(work, self._holder, now + _at_most(terms, _FIRST_PAUSE), None)
            return
        first = found.state.first
        objection = _objection(found)
        if objection is not None:
            await self._cancel(work, objection)
            return
        if found.newest.held:
            held = Problem(ErrorType.UNAUTHORIZED, "the newest certificate of the order is on hold")
            await self._postpone(work, found, terms, held)
            return
        number = terms.latest(first, now)
        if number > found.newest.number and now < terms.end:
            try:
                problem = await self._attempt(found, terms, number, now)
            except _AwayError:
                self._observe("failed")
                await self._store.postpone_renewal(work, self._holder, self._clock() + _at_most(terms, _AWAY), None)
                return
            if problem is not None and problem.rule == BLOCKED_KEY:
                await self._cancel(work, "its key is on the blocklist")
                return
            if problem is not None:
                await self._postpone(work, found, terms, problem)
                return
            self._observe("renewed")
        number = max(number, found.newest.number)
        await self._store.finish_renewal(work, self._holder, terms.due(first, number + 1))

    async def _attempt(self, found: RenewalWork, terms: AutoRenewal, number: int, now: datetime) -> Problem | None:
        """Ask the core for a certificate; the problem where it is refused, or fails for a mistake of ours."""
        try:
            clearance = await self._caa.check(found.found)
            if clearance.problem is not None:
                return clearance.problem
            request = self._request(found.found, terms, found.state.first, number, now)
            await self._core.issue(replace(request, caa=clearance.checked))
        except CaError as error:
            if error.kind in {ErrorKind.UNAVAILABLE, ErrorKind.CONFLICT}:
                _log.warning("order not renewed yet", order=found.found.order.id, error=error.detail)
                raise _AwayError from error
            return problem_of(error)
        except Exception:  # noqa: BLE001 - logged with its traceback; asked again after a pause
            _log.exception("order not renewed yet", order=found.found.order.id)
            return internal_problem()
        return None

    def _request(
        self, found: OrderWork, terms: AutoRenewal, first: datetime, number: int, now: datetime
    ) -> EnrollmentRequest:
        """What is asked of the core: the order's own request, for another period, by the profile as it now stands."""
        not_before, not_after = terms.period(first, number)
        # After an outage policy would not let it begin as long ago as it was due.
        not_before = max(not_before, now.replace(microsecond=0) - MAX_DELAY)
        order = replace(found.order, not_before=not_before, not_after=not_after)
        request = enrollment_request(
            order,
            self._options.tenant,
            order.csr_der or b"",
            evidence_of(found),
            eab_kid=found.eab_kid or "",
        )
        return replace(request, epoch=number, profile_hash="")

    async def _postpone(self, work: Work, found: RenewalWork, terms: AutoRenewal, problem: Problem) -> None:
        """Put the order off, longer each time. A refusal is on record by who refused."""
        self._observe("failed" if problem.type is ErrorType.SERVER_INTERNAL else "refused")
        pause = min(_FIRST_PAUSE * 2 ** min(found.state.failures, 10), _LAST_PAUSE)
        error = msgspec.json.encode(problem.json())
        ready_at = self._clock() + _at_most(terms, pause)
        _log.warning("order not renewed", order=work.id, problem=problem.detail, again=ready_at.isoformat())
        await self._store.postpone_renewal(work, self._holder, ready_at, error)

    async def _cancel(self, work: Work, why: str) -> None:
        """End an order for good: what it was accepted on is gone."""
        event = self._events.make(
            EventType.ORDER_CANCELED, actor=f"acme:{work.account_id}", object=f"acme-order:{work.id}", reason=why
        )
        await self._store.cancel_order(work.account_id, work.id, [event], None)
        self._observe("canceled")


def _at_most(terms: AutoRenewal, pause: timedelta) -> timedelta:
    return min(pause, max(terms.lifetime / _SHARE, timedelta(seconds=5)))


def _objection(found: RenewalWork) -> str | None:
    """Why an order gets no certificate any more, whatever policy would say."""
    if found.found.account_status is not AccountStatus.VALID:
        return f"the account is {found.found.account_status.value}"
    if found.found.key_blocked:
        return "the account's key is on the blocklist"
    if found.newest is not None and found.newest.revoked and not found.newest.held:
        return "its newest certificate was revoked"
    for authorization in found.found.authorizations:
        if authorization.status in _OVER:
            return f"the authorization for {authorization.identifier.value} is {authorization.status.value}"
    return None
