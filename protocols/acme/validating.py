"""Validation in the background: a bounded pool works on challenges under a lease, with several attempts each.

Accounts take turns, and none has more than half of the pool, so that one with a thousand names that do not answer does
not make the others wait. Between two attempts a challenge holds nothing but its lease. An attempt is counted in the
database before it is made: one that takes the process with it is not made for ever.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
import structlog

from ca_server.core.audit import EventFactory
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.errors import CaError
from ca_server.domain.rates import Draw
from protocols.acme.model import DNS_PERSIST, Attempt, Authorization, Challenge, ChallengeStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, ChallengeWork, Lessee, NonceUse, Work
from protocols.acme.problems import ErrorType, Problem
from protocols.acme.urls import Urls
from protocols.acme.validation import (
    Evidence,
    Sightings,
    ValidationProblem,
    ValidationTarget,
    Validator,
    key_authorization,
)
from protocols.acme.validation.model import MAX_DETAIL, shown

_log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=90)
_PROLONGED = timedelta(seconds=60)
"""What waits for its turn has its lease prolonged when less than this is left."""
_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts: DNS records and web servers of clients may be a moment late."""
_LONGEST_ATTEMPT = 60.0
"""Seconds, whatever a validator's own limit; shorter than the lease."""
_CLAIM_LIMIT = 100
_PROLONG_LIMIT = 500
_GIVEN_UP = Problem(ErrorType.UNAUTHORIZED, "the authorization was settled, or expired, before this was validated")
_INTERRUPTED = ValidationProblem("serverInternal", "validation was interrupted too often", retryable=False)
_FAILED = ValidationProblem("serverInternal", "the server failed to validate; its log tells why", retryable=True)

VALID = "valid"
"""The outcome of a validation without a problem, in metrics and attempts."""

ObserveValidation = Callable[[str, str], None]


@dataclass(slots=True)
class _Job:
    """A challenge that this process has the lease of; `found` where it is known without a look into the database."""

    work: Work
    lease_until: datetime
    found: ChallengeWork | None = None
    timer: asyncio.TimerHandle | None = None
    """Set between two attempts, and before the first of a client that is tried."""
    delay: float = 0.0
    """Seconds before the first attempt."""
    done: asyncio.Event | None = None
    """Set when this process is done with it, where somebody waits for that."""


class Validating:
    """Works on challenges that clients said are ready. All fields are owned by the event loop.

    `_jobs` has all challenges of this process, `_queues` those that wait for their turn, by account in the order of
    turns, `_running` the number under way by account.
    """

    def __init__(
        self,
        options: AcmeOptions,
        store: AcmeStore,
        validators: dict[str, Validator],
        events: EventFactory,
        holder: str,
        observe: ObserveValidation,
    ) -> None:
        self._options = options
        self._urls = Urls(options.external_url, options.default_profile)
        self._store = store
        self._validators = validators
        self._events = events
        self._holder = holder
        self._observe = observe
        self._slots = options.validation_concurrency
        self._share = max(1, options.validation_concurrency // 2)
        self._jobs: dict[str, _Job] = {}
        self._queues: dict[str, deque[_Job]] = {}
        self._running: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def _lessee(self, pause: float = 0.0) -> Lessee:
        return Lessee(self._holder, datetime.now(UTC), LEASE + timedelta(seconds=pause))

    async def begin(
        self,
        challenge: Challenge,
        authorization: Authorization,
        thumbprint: str,
        nonce: NonceUse | None,
        response: bytes | None = None,
        *,
        is_tried: bool = False,
    ) -> Challenge | None:
        """Take a pending challenge to processing, committed, and start work; None where it is not pending.

        RATE_LIMITED where the account has too many in processing, or too many for this name failed.
        """
        account_id, lessee = authorization.account_id, self._lessee()
        if not await self._store.begin_challenge(
            account_id,
            challenge.id,
            lessee,
            self._options.max_validations,
            nonce,
            self._options.limits.validation(authorization, failed=False),
            response,
        ):
            return None
        begun = replace(challenge, status=ChallengeStatus.PROCESSING, attempts=1, response=response)
        found = ChallengeWork(begun, authorization, thumbprint)
        if self._options.unsafe_skip_validation and response is None:
            await self._finish(found, None, None, skipped="true")
            done = await self._store.challenge(challenge.id)
            return begun if done is None else done[0]
        chaos = self._options.chaos
        delay = chaos.delay() if chaos is not None and is_tried else 0.0
        # What dns-persist-01 needs beyond this is in the database alone.
        known = None if challenge.type == DNS_PERSIST else found
        self._add(_Job(Work(challenge.id, account_id), lessee.until, known, delay=delay))
        return begun

    async def settled(self, challenge_id: str, patience: float) -> None:
        """Return when this process is done with a challenge, or when the patience, in seconds, runs out."""
        job = self._jobs.get(challenge_id)
        if job is None:
            return
        job.done = job.done or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await job.done.wait()

    async def resume(self, *, restarted: bool = False) -> int:
        """Take over challenges whose lease ran out; `restarted`, at a start, what this process had before."""
        await self._prolong()
        room = min(_CLAIM_LIMIT, 2 * self._slots - len(self._jobs))
        if room <= 0:
            return 0
        lessee = self._lessee()
        claimed = await self._store.claim_challenges(
            lessee, room, msgspec.json.encode(_GIVEN_UP.json()), restarted=restarted
        )
        for work in claimed:
            self._add(_Job(work, lessee.until))
        return len(claimed)

    async def _prolong(self) -> None:
        """Keep the leases of what waits here."""
        soon = datetime.now(UTC) + _PROLONGED
        short = [job for job in self._jobs.values() if job.lease_until < soon][:_PROLONG_LIMIT]
        if not short:
            return
        lessee = self._lessee()
        kept = await self._store.keep_challenges(lessee, [job.work for job in short])
        for job in short:
            if job.work.id in kept:
                job.lease_until = max(job.lease_until, lessee.until)
            else:
                self._drop(job)

    async def stop(self) -> None:
        """Stop: what is under way is left to its lease, and taken up after a restart or by another front."""
        self._stopped = True
        for job in self._jobs.values():
            if job.timer is not None:
                job.timer.cancel()
        self._queues.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- Turns ----------------------------------------------------------------------------------------------------

    def _add(self, job: _Job) -> None:
        if job.work.id in self._jobs:
            return
        self._jobs[job.work.id] = job
        if job.delay:
            job.timer = asyncio.get_running_loop().call_later(job.delay, self._enqueue, job)
        else:
            self._enqueue(job)

    def _enqueue(self, job: _Job) -> None:
        job.timer = None
        if self._stopped:
            return
        self._queues.setdefault(job.work.account_id, deque()).append(job)
        self._dispatch()

    def _drop(self, job: _Job) -> None:
        """Forget a challenge; whoever has its lease works on it."""
        if job.timer is not None:
            job.timer.cancel()
        self._jobs.pop(job.work.id, None)
        if job.done is not None:
            job.done.set()

    def _dispatch(self) -> None:
        """Start attempts while there are slots, one account after the other."""
        while len(self._tasks) < self._slots:
            account_id = next((each for each in self._queues if self._running.get(each, 0) < self._share), None)
            if account_id is None:
                return
            queue = self._queues.pop(account_id)
            job = queue.popleft()
            if queue:
                self._queues[account_id] = queue  # behind the others
            if self._jobs.get(job.work.id) is not job:
                continue  # its lease was lost meanwhile
            self._running[account_id] = self._running.get(account_id, 0) + 1
            task = asyncio.create_task(self._attempt(job), name=f"acme challenge {job.work.id}")
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, account_id))

    def _ended(self, account_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._running[account_id] -= 1
        if not self._running[account_id]:
            del self._running[account_id]
        if not self._stopped:
            self._dispatch()

    # --- Attempts -------------------------------------------------------------------------------------------------

    async def _attempt(self, job: _Job) -> None:
        """One attempt, in a slot; then another later, or the end."""
        try:
            pause = await self._validate(job)
        except Exception as error:  # noqa: BLE001 - logged with its traceback where it is none of the database
            detail = error.detail if isinstance(error, CaError) else "failed"
            _log.warning(
                "validation left to its lease",
                challenge=job.work.id,
                error=detail,
                exc_info=None if isinstance(error, CaError) else error,
            )
            pause = None
        if pause is None:
            self._drop(job)
        elif not self._stopped:
            job.timer = asyncio.get_running_loop().call_later(pause, self._enqueue, job)

    async def _validate(self, job: _Job) -> float | None:
        """Try once and record it; returns the seconds until the next attempt, None where there is none."""
        found = job.found or await self._store.challenge_work(job.work.id)
        if found is None:
            return None
        job.found = found
        limit = self._options.validation_attempts
        started_at, sightings = datetime.now(UTC), Sightings()
        seen = _INTERRUPTED if job.work.attempt > limit else await self._try(found, sightings)
        problem = seen if isinstance(seen, ValidationProblem) else None
        attempt = Attempt(
            number=job.work.attempt,
            started_at=started_at,
            duration=datetime.now(UTC) - started_at,
            front=self._holder,
            seen=sightings.lines,
            outcome=VALID if problem is None else problem.type,
            detail="" if problem is None else shown(problem.detail, MAX_DETAIL),
        )
        if problem is None or not problem.retryable or job.work.attempt >= limit:
            await self._finish(found, problem, attempt, seen if isinstance(seen, Evidence) else None)
            return None
        _log.info("validation attempt failed", challenge=job.work.id, attempt=job.work.attempt, saw=problem.detail)
        pause = _PAUSES[min(job.work.attempt, len(_PAUSES)) - 1]
        lessee = self._lessee(pause)
        document = _document(problem)
        if not await self._store.record_attempt(job.work.account_id, job.work.id, lessee, document, attempt):
            return None
        job.work = replace(job.work, attempt=job.work.attempt + 1)
        job.lease_until = lessee.until
        return pause

    async def _try(self, found: ChallengeWork, sightings: Sightings) -> ValidationProblem | Evidence | None:
        """Validate once; what a validator raises is a failed attempt."""
        challenge, authorization = found.challenge, found.authorization
        validator = self._validators.get(challenge.type)
        if validator is None:
            return ValidationProblem("serverInternal", f"{challenge.type} was switched off", retryable=False)
        target = ValidationTarget(
            authorization.identifier,
            challenge.token,
            key_authorization(challenge.token, found.thumbprint),
            self._urls.account(authorization.account_id),
            sightings=sightings,
            account_hash_prefix=self._urls.account_hash_prefix(),
            thumbprints=(found.thumbprint, *found.former_thumbprints),
            covers_more=authorization.wildcard or authorization.subdomains,
            response=challenge.response or b"",
        )
        try:
            async with asyncio.timeout(_LONGEST_ATTEMPT):
                return await validator.validate(target)
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("a validator failed", challenge=challenge.id, type=challenge.type)
            return _FAILED

    async def _finish(
        self,
        found: ChallengeWork,
        problem: ValidationProblem | None,
        attempt: Attempt | None,
        evidence: Evidence | None = None,
        **extra: str,
    ) -> None:
        now = datetime.now(UTC)
        challenge, authorization = found.challenge, found.authorization
        if problem is None and now >= authorization.expires_at:
            problem = ValidationProblem(
                "unauthorized", "the authorization expired before it was validated", retryable=False
            )
        valid_until = now + self._options.authorization_lifetime
        if evidence is not None:
            valid_until = min(valid_until, evidence.until or valid_until)
        if problem is None:
            extra |= _evidence(attempt, evidence)
        event = self._events.make(
            EventType.CHALLENGE_VALIDATED if problem is None else EventType.CHALLENGE_FAILED,
            outcome=Outcome.SUCCESS if problem is None else Outcome.FAILURE,
            actor=f"acme:{authorization.account_id}",
            object=f"acme-authorization:{authorization.id}",
            names=(str(authorization.identifier),),
            reason=None if problem is None else problem.detail,
            extra={"challenge": challenge.type, **extra},
        )
        await self._store.finish_challenge(
            found,
            self._holder,
            None if problem is None else _document(problem),
            now,
            valid_until,
            [event],
            self._failure(authorization, problem),
            msgspec.json.encode(extra) if problem is None else None,
            attempt,
        )
        self._observe(challenge.type, VALID if problem is None else problem.type)

    def _failure(self, authorization: Authorization, problem: ValidationProblem | None) -> tuple[Draw, ...]:
        """What a validation takes from limits on failures: nothing where the failure is this server's own."""
        if problem is None or problem.type == ErrorType.SERVER_INTERNAL:
            return ()
        return self._options.limits.validation(authorization, failed=True)


def _evidence(attempt: Attempt | None, evidence: Evidence | None) -> dict[str, str]:
    """What is kept of a validation: what its validator says of it, or what it saw on the way."""
    details = {} if evidence is None else dict(evidence.details)
    if attempt is not None and attempt.seen:
        details.setdefault("seen", shown("; ".join(attempt.seen), MAX_DETAIL))
    return details


def _document(problem: ValidationProblem) -> bytes:
    return msgspec.json.encode(Problem(ErrorType(problem.type), problem.detail).json())
