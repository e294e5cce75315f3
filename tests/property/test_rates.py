"""The generic cell rate algorithm: never more than a burst and what the rate gives, in any window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca_server.domain.rates import Rate, admit, parse_rate

SECOND = 1_000_000
CONFIGURED = st.builds(
    lambda count, seconds, burst: (Rate.of(count, seconds * SECOND, burst, "test"), count, seconds * SECOND),
    st.integers(1, 50),
    st.integers(1, 100),
    st.integers(1, 60),
)
RATES = CONFIGURED.map(lambda configured: configured[0])
# Small steps, so that events come in crowds, and some pauses that a burst is over in.
STEPS = st.lists(st.one_of(st.integers(0, 2 * SECOND), st.integers(0, 200 * SECOND)), max_size=80)


def admitted(rate: Rate, steps: list[int]) -> list[int]:
    """When events were admitted, of all that were tried."""
    now, arrival, times = 1_000 * SECOND, None, []
    for step in steps:
        now += step
        after = admit(arrival, now, rate)
        if after is not None:
            arrival = after
            times.append(now)
    return times


@given(CONFIGURED, STEPS)
def test_no_window_has_more_than_burst_and_rate(configured: tuple[Rate, int, int], steps: list[int]) -> None:
    rate, count, period = configured
    times = admitted(rate, steps)
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            window = times[last] - begin
            assert last - first + 1 <= rate.burst + window * count / period


@given(RATES, st.integers(0, 70))
def test_a_burst_is_had_at_once_and_no_more(rate: Rate, tries: int) -> None:
    assert len(admitted(rate, [0] * tries)) == min(tries, rate.burst)


@given(RATES, STEPS)
def test_who_waits_as_long_as_told_is_admitted_and_no_sooner(rate: Rate, steps: list[int]) -> None:
    now, arrival = 0, None
    for step in steps:
        now += step
        after = admit(arrival, now, rate)
        if after is None:
            assert arrival is not None
            assert admit(arrival, arrival - rate.slack - 1, rate) is None
            assert admit(arrival, arrival - rate.slack, rate) == arrival - rate.slack + rate.burst * rate.interval
        else:
            arrival = after


@given(RATES)
def test_after_a_pause_all_of_a_burst_is_there_again(rate: Rate) -> None:
    pause = rate.burst * rate.interval
    assert len(admitted(rate, [0] * rate.burst + [pause] + [0] * rate.burst)) == 2 * rate.burst


@pytest.mark.parametrize(
    ("text", "count", "seconds", "burst"),
    [
        ("300 per 3h", 300, 3 * 3600, 300),
        ("1 per 10s", 1, 10, 1),
        ("10 per 1d burst 50", 10, 86_400, 50),
        ("5 per 2w burst 1", 5, 14 * 86_400, 1),
    ],
)
def test_rates_are_read(text: str, count: int, seconds: int, burst: int) -> None:
    assert parse_rate(text) == Rate.of(count, seconds * SECOND, burst, text)


def test_the_interval_is_rounded_up() -> None:
    """Else a rate that does not come out even would give more than it says."""
    assert Rate.of(3, 10, 1, "test").interval == 4


def test_nothing_is_no_rate() -> None:
    assert parse_rate("") is None


@pytest.mark.parametrize(
    "text",
    [
        "0 per 1h",
        "5 per 0h",
        "5 per 1h burst 0",
        "5",
        "per 1h",
        "5 per h",
        "5 per 1y",
        "-1 per 1h",
        "5 per 1h ",
        "1 per 53w",
        "5 per 400d",
        "1 per 1d burst 367",
        "5 per 1h burst",
        "1.5 per 1h",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|are"):
        parse_rate(text)
