"""The terms of an auto-renewal order, and when its certificates are due and valid (RFC 8739 sections 3.1.1 and 3.5).

Pure: all times are aware, in UTC and whole seconds. Certificates are counted from 0; the nominal date of each is
so many lifetimes after that of the first.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import ceil
from typing import Any, Final

LEAST_PADDING: Final = 0.5
"""The next certificate is there when half of the lifetime of the one before is over, at the latest (section 3.3)."""
SPREAD: Final = 0.2
"""The part of a lifetime over which the renewals of orders that were made together are spread."""
MOST_PADDED: Final = 1 + LEAST_PADDING + SPREAD
"""How many lifetimes a certificate is valid, at most, of an order whose client asks for no padding of its own."""
_HASHED: Final = 8


@dataclass(frozen=True, slots=True)
class Begun:
    """What finalizing an order makes of its terms: the nominal date, and the period, of the first certificate."""

    first: datetime
    not_before: datetime
    not_after: datetime
    ready_at: datetime | None
    """When the second is due; None: there is one certificate."""
    end: datetime


@dataclass(frozen=True, slots=True)
class AutoRenewal:
    """What was agreed on when the order was made.

    `adjust` is by how much certificates begin before their nominal date: what the client asked for, or what makes the
    next one valid when it is published, whichever is more.
    """

    start: datetime | None
    end: datetime
    lifetime: timedelta
    adjust: timedelta
    allow_get: bool = False

    def begun(self, now: datetime, backdate: timedelta) -> Begun:
        """What follows from finalizing the order now; certificates of its profile begin so long before they are made.

        The first does not begin before the date that the client named (section 3.5).
        """
        now = now.replace(microsecond=0)
        first = now if self.start is None else max(self.start, now)
        begin = first if self.start is not None else first - min(self.adjust, backdate)
        return Begun(first, begin, min(first + self.lifetime, self.end), self.due(first, 1), self.end)

    def nominal(self, first: datetime, number: int) -> datetime:
        """The nominal date of a certificate."""
        return first + number * self.lifetime

    def due(self, first: datetime, number: int) -> datetime | None:
        """When a certificate is to be issued, which is when it begins to be valid; None where the order ends before."""
        nominal = self.nominal(first, number)
        return None if nominal >= self.end else nominal - self.adjust

    def latest(self, first: datetime, now: datetime) -> int:
        """The number of the newest certificate that is due: what was missed meanwhile is not made up for."""
        newest = max(0, (now + self.adjust - first) // self.lifetime)
        last = max(0, ceil((self.end - first) / self.lifetime) - 1)
        return min(newest, last)

    def period(self, first: datetime, number: int) -> tuple[datetime, datetime]:
        """NotBefore and notAfter of a certificate after the first."""
        nominal = self.nominal(first, number)
        return nominal - self.adjust, min(nominal + self.lifetime, self.end)

    def shown(self) -> dict[str, Any]:
        """The `auto-renewal` object of the order."""
        shown: dict[str, Any] = {} if self.start is None else {"start-date": _written(self.start)}
        shown |= {
            "end-date": _written(self.end),
            "lifetime": int(self.lifetime.total_seconds()),
            "lifetime-adjust": int(self.adjust.total_seconds()),
        }
        if self.allow_get:
            shown["allow-certificate-get"] = True
        return shown

    def encode(self) -> bytes:
        """As it is stored."""
        numbers = {
            "start": None if self.start is None else int(self.start.timestamp()),
            "end": int(self.end.timestamp()),
            "lifetime": int(self.lifetime.total_seconds()),
            "adjust": int(self.adjust.total_seconds()),
            "get": self.allow_get,
        }
        return json.dumps(numbers, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, stored: bytes) -> "AutoRenewal":
        """Undo `encode`."""
        numbers = json.loads(stored)
        start = numbers["start"]
        return cls(
            None if start is None else datetime.fromtimestamp(start, UTC),
            datetime.fromtimestamp(numbers["end"], UTC),
            timedelta(seconds=numbers["lifetime"]),
            timedelta(seconds=numbers["adjust"]),
            numbers["get"],
        )


def padding(order_id: str, lifetime: timedelta) -> timedelta:
    """How long before its nominal date each certificate of an order is issued: half of the lifetime, and up to 0.7.

    Each order has its own part, so that a fleet that was made in an hour is not renewed in one.
    """
    octets = sha256(order_id.encode()).digest()[:_HASHED]
    place = int.from_bytes(octets, "big") / (1 << 8 * _HASHED)
    return timedelta(seconds=ceil(lifetime.total_seconds() * (LEAST_PADDING + SPREAD * place)))


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
