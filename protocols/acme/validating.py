"""Validation in the background: a bounded pool works on challenges under a lease, with several attempts each."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from ca_server.core.audit import EventFactory
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.errors import CaError
from protocols.acme.jwk import parse_jwk
from protocols.acme.model import Authorization, Challenge, ChallengeStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, Lessee, NonceUse
from protocols.acme.problems import ErrorType, Problem
from protocols.acme.validation import ValidationProblem, ValidationTarget, Validator, key_authorization

_log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=90)
_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts: DNS records and web servers of clients may be a moment late."""
_CLAIM_LIMIT = 100

ObserveValidation = Callable[[str, str], None]


class Validating:
    """Works on challenges that clients said are ready. `_tasks` has the one task of each in this process."""

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
        self._store = store
        self._validators = validators
        self._events = events
        self._holder = holder
        self._observe = observe
        self._slots = asyncio.Semaphore(options.validation_concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _lessee(self) -> Lessee:
        return Lessee(self._holder, datetime.now(UTC), LEASE)

    async def begin(self, challenge_id: str, nonce: NonceUse | None) -> bool:
        """Take a pending challenge to processing, committed, and start work; false where it is not pending."""
        if not await self._store.begin_challenge(challenge_id, self._lessee(), nonce):
            return False
        if self._options.unsafe_skip_validation and (found := await self._store.challenge(challenge_id)):
            await self._finish(*found, None, skipped="true")
        else:
            self._start(challenge_id)
        return True

    async def resume(self, node: str | None = None) -> int:
        """Take over challenges whose lease ran out; with `node`, at a start, what its earlier processes held."""
        claimed = await self._store.claim_challenges(self._lessee(), _CLAIM_LIMIT, node)
        for challenge_id in claimed:
            self._start(challenge_id)
        return len(claimed)

    async def stop(self) -> None:
        """Stop: what is under way is left to its lease, and taken up after a restart or by another front."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, challenge_id: str) -> None:
        if challenge_id in self._tasks:
            return
        task = asyncio.create_task(self._work(challenge_id), name=f"acme challenge {challenge_id}")
        self._tasks[challenge_id] = task
        task.add_done_callback(lambda _done: self._tasks.pop(challenge_id, None))

    async def _work(self, challenge_id: str) -> None:
        try:
            async with self._slots:
                await self._validate(challenge_id)
        except CaError as error:
            _log.warning("validation left to its lease", challenge=challenge_id, error=error.detail)
        except Exception:  # noqa: BLE001 - logged with its traceback; the loop goes on
            _log.exception("validation left to its lease", challenge=challenge_id)

    async def _validate(self, challenge_id: str) -> None:
        found = await self._store.challenge(challenge_id)
        if found is None or found[0].status is not ChallengeStatus.PROCESSING:
            return
        challenge, authorization = found
        account = await self._store.account(authorization.account_id)
        if account is None:
            return
        authorized = key_authorization(challenge.token, parse_jwk(account.jwk).thumbprint)
        target = ValidationTarget(authorization.identifier, challenge.token, authorized)
        validator = self._validators.get(challenge.type)
        if validator is None:
            switched_off = ValidationProblem("serverInternal", f"{challenge.type} was switched off", retryable=False)
            await self._finish(challenge, authorization, switched_off)
            return
        problem: ValidationProblem | None = None
        for attempt in range(challenge.attempts, self._options.validation_attempts):
            problem = await validator.validate(target)
            if problem is None or not problem.retryable:
                break
            _log.info("validation attempt failed", challenge=challenge_id, attempt=attempt + 1, saw=problem.detail)
            if attempt + 1 == self._options.validation_attempts:
                break
            if not await self._store.record_attempt(challenge_id, self._lessee(), _document(problem)):
                return
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        else:
            problem = ValidationProblem("serverInternal", "validation was interrupted too often", retryable=False)
        await self._finish(challenge, authorization, problem)

    async def _finish(
        self, challenge: Challenge, authorization: Authorization, problem: ValidationProblem | None, **extra: str
    ) -> None:
        now = datetime.now(UTC)
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
            challenge.id,
            self._holder,
            None if problem is None else _document(problem),
            now,
            now + self._options.authorization_lifetime,
            [event],
        )
        self._observe(challenge.type, "valid" if problem is None else problem.type)


def _document(problem: ValidationProblem) -> bytes:
    return msgspec.json.encode(Problem(ErrorType(problem.type), problem.detail).json())
