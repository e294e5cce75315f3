"""RFC 8739: the arithmetic of section 3.5, and how much renewing does at once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.audit import EventFactory
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import Work
from protocols.acme.star.offering import StarOptions
from protocols.acme.star.renewing import AT_ONCE, CLAIMED, Renewing
from protocols.acme.star.terms import AutoRenewal, padding
from protocols.acme.validation import ValidationPolicy

DAY = timedelta(days=1)
START = datetime(2016, 1, 10, tzinfo=UTC)
EXAMPLE = AutoRenewal(START, START + 10 * DAY, 4 * DAY, 3 * DAY)
"""The one of section 3.5."""


def test_the_example_of_the_rfc():
    begun = EXAMPLE.begun(START - DAY, timedelta(hours=1))
    periods = [(begun.not_before, begun.not_after), *(EXAMPLE.period(begun.first, number) for number in (1, 2))]
    assert periods == [
        (START, START + 4 * DAY),
        (START + DAY, START + 8 * DAY),
        (START + 5 * DAY, START + 10 * DAY),
    ]
    dues = [EXAMPLE.due(begun.first, number) for number in (1, 2, 3)]
    assert dues == [START + DAY, START + 5 * DAY, None], "each is there when it begins to be valid"
    assert begun.ready_at == dues[0]


@pytest.mark.parametrize(
    ("after", "number"),
    [
        (timedelta(0), 0),
        (DAY - timedelta(seconds=1), 0),
        (DAY, 1),
        (5 * DAY - timedelta(seconds=1), 1),
        (5 * DAY, 2),
        (9 * DAY, 2),
        (99 * DAY, 2),
        (-DAY, 0),
    ],
    ids=str,
)
def test_the_newest_that_is_due(after, number):
    assert EXAMPLE.latest(START, START + after) == number


def test_an_order_that_is_no_longer_than_one_certificate():
    short = replace(EXAMPLE, end=START + 2 * DAY)
    begun = short.begun(START, timedelta(0))
    assert (begun.not_after, begun.ready_at, short.latest(START, START + DAY)) == (START + 2 * DAY, None, 0)


def test_the_first_does_not_begin_before_the_date_that_was_named():
    late = START + timedelta(hours=5)
    assert EXAMPLE.begun(late, timedelta(hours=1)).not_before == late
    assert replace(EXAMPLE, start=None).begun(late, timedelta(hours=1)).not_before == late - timedelta(hours=1)


def test_a_fleet_that_was_made_at_once_is_renewed_over_a_fifth_of_the_lifetime():
    lifetime = timedelta(seconds=100_000)
    places = [padding(f"order-{number}", lifetime) / lifetime for number in range(2000)]
    assert 0.5 <= min(places) < 0.505
    assert 0.695 < max(places) <= 0.70001
    by_part = [sum(0.5 + part / 50 <= place < 0.52 + part / 50 for place in places) for part in range(10)]
    assert min(by_part) > 150, "evenly"


@pytest.mark.parametrize("terms", [EXAMPLE, replace(EXAMPLE, start=None, allow_get=True)], ids=str)
def test_terms_come_back_as_stored(terms):
    assert AutoRenewal.decode(terms.encode()) == terms


class FleetStore:
    """Ten thousand orders are due at once; each look at one takes a moment."""

    def __init__(self):
        self.waiting = [Work(f"order-{number}", "account") for number in range(10_000)]
        self.asked, self.at_once, self.most = [], 0, 0
        self.go_on = asyncio.Event()

    async def claim_renewals(self, _lessee, limit):
        self.asked.append(limit)
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return tuple(taken)

    async def renewal_work(self, _order_id):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.go_on.wait()
        self.at_once -= 1

    async def finish_renewal(self, _work, _holder, _ready_at):
        return True


def renewing(store, profiles):
    options = AcmeOptions("https://ca.test", ValidationPolicy(), star=StarOptions(frozenset(profiles)))
    events = EventFactory(node="n", process="front-1", software="s", configuration="c")
    return Renewing(options, store, None, None, events, lambda _outcome: None)


async def test_a_round_is_bounded():
    store = FleetStore()
    renewer = renewing(store, {"default"})
    assert await renewer.resume() == CLAIMED
    assert await renewer.resume() == 0, "what was taken is done first"
    assert store.asked == [CLAIMED]
    for _ in range(10):
        await asyncio.sleep(0)
    store.go_on.set()
    await asyncio.gather(*renewer._tasks.values())
    assert store.most == AT_ONCE
    assert await renewer.resume() == CLAIMED
    await renewer.drain(5)
    assert renewer._tasks == {}


async def test_a_drain_leaves_what_takes_too_long_to_its_lease():
    store = FleetStore()
    renewer = renewing(store, {"default"})
    await renewer.resume()
    await renewer.drain(0.01)
    assert renewer._tasks == {}
