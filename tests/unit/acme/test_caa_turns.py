"""Who waits for whom where names answer slowly: checks of CAA are few at once, and no account has more than half."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ca_server.core.audit import EventFactory
from ca_server.domain.accounts import AccountStatus
from ca_server.domain.audit import AuditEvent
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import dns_identifier
from ca_server.domain.profile_rules import CaaMode
from protocols.acme.caa import checking
from protocols.acme.caa.checking import CaaChecks
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.model import Order, OrderIdentifier, OrderStatus
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import OrderWork
from protocols.acme.validation import ValidationPolicy
from protocols.acme.validation.resolver import CaaAnswer

NOW = datetime.now(UTC)
OPTIONS = AcmeOptions("https://ca.test", ValidationPolicy(), caa_identities=("ca.test",))


class Place:
    """A store that keeps nothing, profiles of one mode, and a nameserver where names of `slow.test` hang."""

    def __init__(self) -> None:
        self.mode = CaaMode.ENFORCE
        self.events: list[AuditEvent] = []
        self.answering = asyncio.Event()
        self.hanging = 0
        self.observed: list[tuple[str, str]] = []
        self.checks = CaaChecks(
            OPTIONS,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self,
            EventFactory(node="n", process="front-1", software="s", configuration="c"),
            lambda mode, outcome: self.observed.append((mode, outcome)),
        )

    def get(self, _name: str) -> Any:
        return SimpleNamespace(caa=self.mode)

    async def by_hash(self, _content_hash: str) -> Any:
        return None

    async def caa_lookups(self, _names: Sequence[str], _since: datetime) -> Mapping[str, CaaLookup]:
        return {}

    async def save_caa(self, _lookups: Sequence[CaaLookup], events: Sequence[AuditEvent]) -> None:
        self.events += events

    async def caa(self, name: str) -> CaaAnswer:
        if name.endswith("slow.test"):
            self.hanging += 1
            await self.answering.wait()
        return CaaAnswer((), authenticated=False)

    def begin(self, account: str, number: int, name: str) -> asyncio.Task[Any]:
        names = (OrderIdentifier(dns_identifier(name), name),)
        later = NOW + timedelta(days=1)
        order = Order(f"{account}-{number}", account, "p", "h", OrderStatus.PROCESSING, names, NOW, later)
        work = OrderWork(order, AccountStatus.VALID, (), is_live=False, eab_kid=None, key_blocked=False)
        return asyncio.create_task(self.checks.check(work))


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("accounts", [1, 2])
async def test_an_account_has_half_of_the_turns(accounts: int) -> None:
    place = Place()
    tasks = [place.begin(f"a{each}", n, f"n{n}.a{each}.slow.test") for each in range(accounts) for n in range(40)]
    await settle()
    assert place.hanging == min(32, 16 * accounts)
    other = place.begin("other", 0, "quick.test")
    await settle()
    assert other.done() is (accounts == 1)
    place.answering.set()
    assert {each.problem for each in await asyncio.gather(*tasks, other)} == {None}
    assert place.checks._turns_of == {}
    assert place.checks._turns._value == 32


async def test_who_gets_no_turn_in_time_waits_or_where_refusals_are_logged_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "_TURN_SECONDS", 0.05)
    place = Place()
    tasks = [place.begin("a", n, f"n{n}.slow.test") for n in range(16)]
    await settle()
    with pytest.raises(CaError) as waits:
        await place.begin("a", 16, "quick.test")
    assert waits.value.kind is ErrorKind.UNAVAILABLE
    assert place.events == []
    place.mode = CaaMode.LOG
    clearance = await place.begin("a", 17, "quick.test")
    assert (clearance.checked, clearance.problem) == ((), None)
    (event,) = place.events
    assert "too many lookups were under way" in event.extra["found"]
    assert place.observed == [("log", "failed")]
    place.answering.set()
    await asyncio.gather(*tasks)
    assert place.checks._turns_of == {}
    assert place.checks._turns._value == 32


async def test_who_is_given_up_while_waiting_leaves_the_turns_as_they_were() -> None:
    place = Place()
    tasks = [place.begin(f"a{each}", n, f"n{n}.a{each}.slow.test") for each in range(3) for n in range(20)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert place.checks._turns_of == {}
    assert place.checks._turns._value == 32
    assert (await place.begin("a", 0, "quick.test")).problem is None


async def test_a_hundred_long_names_make_an_event_that_fits() -> None:
    place = Place()
    long = ".".join(["x" * 60] * 4)
    task = place.begin("a", 0, long)
    assert (await task).problem is None
    names = tuple(OrderIdentifier(dns_identifier(f"n{n:03}.{long}"[:253]), "") for n in range(100))
    later = NOW + timedelta(days=1)
    order = replace(Order("o", "a", "p", "h", OrderStatus.PROCESSING, (), NOW, later), identifiers=names)
    await place.checks.check(OrderWork(order, AccountStatus.VALID, (), is_live=False, eab_kid=None, key_blocked=False))
    assert len(place.events[-1].extra["found"]) == 20_000
