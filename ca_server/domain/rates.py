"""Limits of rates by the generic cell rate algorithm (ITU-T I.371): one time for each key, and pure functions over it.

A key's *arrival* is the theoretical arrival time of its next event: how far it lies ahead of now is how much of the
burst is used up. A key without one, or with one in the past, has all of it. Times are microseconds since 1970.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ca_server.domain.profile_rules import parse_duration

RATE_PATTERN: Final = r"^([1-9][0-9]{0,5} per [1-9][0-9]{0,6}[smhdw]( burst [1-9][0-9]{0,5})?)?$"
_RATE: Final = re.compile(r"(?P<count>[1-9][0-9]{0,5}) per (?P<time>[1-9][0-9]{0,6}[smhdw])( burst (?P<burst>[0-9]+))?")
_LONGEST: Final = timedelta(days=366)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Rate:
    """One event in `interval` microseconds, and so many at once as `burst`."""

    interval: int
    burst: int
    text: str
    """As it was configured."""

    @classmethod
    def of(cls, count: int, period: int, burst: int, text: str) -> "Rate":
        """So many events in a time, in microseconds; never more, so the interval is rounded up. ValueError."""
        if min(count, period, burst) < 1:
            raise ValueError("count, time and burst are 1 or more")
        rate = cls(-(-period // count), burst, text)
        if max(period, burst * rate.interval) > _LONGEST / _MICROSECOND:
            raise ValueError("the time, and what a burst takes to be over, are 366 days at most")
        return rate

    @property
    def slack(self) -> int:
        """How far ahead of now an arrival may lie for one more event to be admitted."""
        return (self.burst - 1) * self.interval


def parse_rate(text: str) -> Rate | None:
    """Read `300 per 3h` or `300 per 3h burst 50`; without a burst it is the count. None for nothing. ValueError."""
    if not text:
        return None
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError("write COUNT per TIME, such as 300 per 3h")
    count = int(match["count"])
    return Rate.of(count, parse_duration(match["time"]) // _MICROSECOND, int(match["burst"] or count), text)


def admit(arrival: int | None, now: int, rate: Rate) -> int | None:
    """The arrival after one more event; None, and nothing changes, where the rate does not allow it now."""
    begin = now if arrival is None else max(arrival, now)
    return begin + rate.interval if begin - now <= rate.slack else None


@dataclass(frozen=True, slots=True)
class Draw:
    """What one limit has to say of a request. `takes` false: the key must have room, and nothing is taken from it."""

    rule: str
    what: str
    """What is counted, for people: the subject of `too many ...`."""
    key: str
    rate: Rate
    takes: bool = True
