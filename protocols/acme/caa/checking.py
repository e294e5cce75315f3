"""CAA of an order's names before the core is asked (RFC 8659 section 3): off, logged or enforced by its profile.

What was looked up is kept in the database, and serves every front and every order until it is too old; what is kept
never refuses: a client whose record was corrected need not wait. Who asks for names that answer slowly waits by
himself: checks are few at once, and no account has more than half of them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ca_server.core.audit import EventFactory
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.enrollment import CaaChecked
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profile_rules import CaaMode
from protocols.acme.caa.climbing import CaaSource, Climb
from protocols.acme.caa.evaluation import Applicant, CaaLookup, Verdict, evaluate
from protocols.acme.model import Authorization, ChallengeStatus, Order
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, OrderWork, ProfileSource
from protocols.acme.problems import ErrorType, Problem, Subproblem
from protocols.acme.urls import Urls
from protocols.acme.validation.model import MAX_DETAIL, shown
from protocols.acme.validation.resolver import DnsFailure

CHECKS_AT_ONCE = 32
CHECK_SECONDS = 15.0
"""For all lookups of one check."""
_TURN_SECONDS = 10.0
"""With the lookups, and the core's answer, within the lease of an order."""
_MAX_FOUND = 20_000
"""Characters of what was found, in an event."""
_REMEMBERED = 10_000

ObserveCaa = Callable[[str, str], None]
"""Called with the mode and the outcome of each check."""


@dataclass(frozen=True, slots=True)
class Clearance:
    """The names that CAA lets this CA certify, and the problem of an order that it may not issue."""

    checked: tuple[CaaChecked, ...] = ()
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Finding:
    name: Identifier
    verdict: Verdict
    lookup: CaaLookup | None
    """None where there was no answer."""


class CaaChecks:
    """Checks orders. All fields are owned by the event loop.

    `_turns` are those of all checks, `_turns_of` those of accounts that have checks under way or waiting, with their
    number. `_logged` has orders that were let pass only because refusals are logged: asked again (a held request is,
    each minute), they are no news.
    """

    def __init__(
        self,
        options: AcmeOptions,
        store: AcmeStore,
        profiles: ProfileSource,
        source: CaaSource,
        events: EventFactory,
        observe: ObserveCaa,
    ) -> None:
        self._identities = tuple(identity.lower() for identity in options.caa_identities)
        self._max_age = options.caa_max_age
        self._urls = Urls(options.external_url, options.default_profile)
        self._store = store
        self._profiles = profiles
        self._source = source
        self._events = events
        self._observe = observe
        self._turns = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._turns_of: dict[str, tuple[asyncio.Semaphore, int]] = {}
        self._logged: dict[str, tuple[datetime, Clearance]] = {}

    async def check(self, found: OrderWork) -> Clearance:
        """Look up, or find, what CAA says of an order's DNS names, and put it on record.

        UNAVAILABLE where refusals are enforced and too many checks are under way. Without CAA in the order's profile
        nothing is done.
        """
        order = found.order
        mode = await self._mode(order)
        names = tuple(item.identifier for item in order.identifiers if item.identifier.type is IdentifierType.DNS)
        if mode is CaaMode.OFF or not names:
            return Clearance()
        now = datetime.now(UTC)
        logged = self._logged.get(order.id)
        if mode is CaaMode.LOG and logged is not None and now < logged[0]:
            return logged[1]
        applicants = {name: self._applicant(order, name, found.authorizations) for name in names}
        known = await self._store.caa_lookups(_bases(names), now - self._max_age)
        findings = {name: _finding(name, known.get(name.base.value), applicants[name]) for name in names}
        anew = [name for name, finding in findings.items() if not finding.verdict.allowed]
        if anew:
            lookups = await self._look_up(order.account_id, _bases(anew), mode)
            for name in anew:
                findings[name] = _finding(name, lookups[name.base.value], applicants[name])
            await self._record(order, mode, [findings[name] for name in anew])
        return self._clearance(order, mode, list(findings.values()), now)

    async def _mode(self, order: Order) -> CaaMode:
        """The stricter of what the order's profile said when it was made, and of what it says now."""
        pinned = await self._profiles.by_hash(order.profile_hash)
        current = self._profiles.get(order.profile)
        return (pinned.caa if pinned else CaaMode.OFF).stricter(current.caa if current else CaaMode.OFF)

    def _applicant(self, order: Order, name: Identifier, authorizations: Sequence[Authorization]) -> Applicant:
        return Applicant(self._identities, self._urls.account(order.account_id), shown_by(name, authorizations))

    # --- Looking up -----------------------------------------------------------------------------------------------

    async def _look_up(self, account_id: str, bases: Sequence[str], mode: CaaMode) -> dict[str, CaaLookup | DnsFailure]:
        try:
            async with self._turn(account_id):
                return await look_up(self._source, bases)
        except TimeoutError:
            if mode is CaaMode.ENFORCE:
                detail = "too many CAA records are being looked up; the order waits for its turn"
                raise CaError(ErrorKind.UNAVAILABLE, detail) from None
            failure = DnsFailure("too many lookups were under way", retryable=True)
            return dict.fromkeys(bases, failure)

    @asynccontextmanager
    async def _turn(self, account_id: str) -> AsyncIterator[None]:
        """Hold one of the turns. TimeoutError where there is none in time."""
        own, users = self._turns_of.get(account_id, (asyncio.Semaphore(CHECKS_AT_ONCE // 2), 0))
        self._turns_of[account_id] = (own, users + 1)
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await own.acquire()
                try:
                    await self._turns.acquire()
                except BaseException:
                    own.release()
                    raise
            try:
                yield
            finally:
                self._turns.release()
                own.release()
        finally:
            users = self._turns_of[account_id][1] - 1
            if users:
                self._turns_of[account_id] = (own, users)
            else:
                del self._turns_of[account_id]

    # --- Outcome --------------------------------------------------------------------------------------------------

    async def _record(self, order: Order, mode: CaaMode, findings: Sequence[_Finding]) -> None:
        """Commit what was looked up with its event."""
        refused = [finding for finding in findings if not finding.verdict.allowed]
        found = "; ".join(_told(finding) for finding in findings)
        event = self._events.make(
            EventType.CAA_CHECKED,
            outcome=Outcome.DENIED if refused else Outcome.SUCCESS,
            actor=f"acme:{order.account_id}",
            request_id=order.request_id or None,
            object=f"acme-order:{order.id}",
            profile=order.profile,
            names=tuple(str(finding.name) for finding in findings),
            reason=shown(refused[0].verdict.reason, MAX_DETAIL) if refused else None,
            rule="acme.caa" if refused else None,
            extra={"mode": mode.value, "found": shown(found, _MAX_FOUND)},
        )
        lookups = {finding.lookup.name: finding.lookup for finding in findings if finding.lookup is not None}
        await self._store.save_caa(list(lookups.values()), [event])

    def _clearance(self, order: Order, mode: CaaMode, findings: Sequence[_Finding], now: datetime) -> Clearance:
        checked = tuple(
            CaaChecked(finding.name, finding.lookup.checked_at, finding.lookup.authenticated)
            for finding in findings
            if finding.verdict.allowed and finding.lookup is not None
        )
        refused = [finding for finding in findings if not finding.verdict.allowed]
        failed = all(finding.lookup is None for finding in refused)
        self._observe(mode.value, ("failed" if failed else "refused") if refused else "allowed")
        if mode is CaaMode.ENFORCE:
            return Clearance(checked, _problem(refused) if refused else None)
        clearance = Clearance(checked)
        if refused:
            while len(self._logged) >= _REMEMBERED:
                self._logged.pop(next(iter(self._logged)))
            self._logged[order.id] = (now + max(self._max_age, timedelta(hours=1)), clearance)
        return clearance


async def look_up(source: CaaSource, bases: Sequence[str]) -> dict[str, CaaLookup | DnsFailure]:
    """What is found for names without wildcard label, within the time of one check. Never raises for what peers do."""
    climb = Climb(source, len(bases))
    found: dict[str, CaaLookup | DnsFailure] = dict.fromkeys(
        bases, DnsFailure(f"no answer within {CHECK_SECONDS:g} s", retryable=True)
    )

    async def each(base: str) -> None:
        try:
            found[base] = await climb.relevant(base)
        except DnsFailure as failure:
            found[base] = failure

    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await asyncio.gather(*map(each, bases))
    except TimeoutError:
        pass
    finally:
        await climb.close()
    return found


def shown_by(name: Identifier, authorizations: Iterable[Authorization]) -> str:
    """The challenge by which control of a DNS name was shown: at the name, or at the nearest domain that covers it."""
    covering = [each for each in authorizations if each.covers(name)]
    nearest = max(covering, key=lambda each: len(each.identifier.value), default=None)
    challenges = () if nearest is None else nearest.challenges
    return next((each.type for each in challenges if each.status is ChallengeStatus.VALID), "")


def _bases(names: Iterable[Identifier]) -> list[str]:
    return sorted({name.base.value for name in names})


def _finding(name: Identifier, lookup: CaaLookup | DnsFailure | None, applicant: Applicant) -> _Finding:
    if isinstance(lookup, CaaLookup):
        return _Finding(name, evaluate(lookup, wildcard=name.is_wildcard, applicant=applicant), lookup)
    detail = "not looked up yet" if lookup is None else lookup.detail
    reason = f"CAA of {name.base.value} is not known (RFC 8659 section 3): {detail}"
    return _Finding(name, Verdict(allowed=False, reason=reason), None)


def _told(finding: _Finding) -> str:
    authenticated = finding.lookup is not None and finding.lookup.authenticated
    return f"{finding.name.value}: {finding.verdict.reason}{', authenticated' if authenticated else ''}"


def _problem(refused: Sequence[_Finding]) -> Problem:
    """The problem of the order, a subproblem for each name (RFC 8555 section 6.7.1)."""
    subproblems = tuple(
        Subproblem(
            ErrorType.DNS if finding.lookup is None else ErrorType.CAA,
            shown(finding.verdict.reason, MAX_DETAIL),
            finding.name,
            rule="acme.caa",
        )
        for finding in refused
    )
    detail = subproblems[0].detail
    if len(refused) > 1:
        detail = f"CAA keeps this CA from {len(refused)} of the names; the first: {detail}"
    return Problem(ErrorType.CAA, shown(detail, MAX_DETAIL), subproblems=subproblems, rule="acme.caa")
