"""How renewal information spreads a fleet: when a million certificates of one day are renewed, hour by hour.

Simulates clients over the server's own windows; no server runs. Usage: python scripts/bench/ari.py [--quick]
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchlib.report import table, write_json

from protocols.acme.certid import CertId
from protocols.acme.renewal_window import pause, suggested_window

DAY = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LONGEST = timedelta(hours=6)
KEY_IDENTIFIER = bytes(range(20))
Draw = Callable[[random.Random], timedelta]
Client = Callable[[random.Random, datetime, datetime], datetime]

ISSUED: dict[str, Draw] = {
    "evenly over the day": lambda rng: timedelta(days=rng.random()),
    "within one hour": lambda rng: timedelta(hours=rng.random()),
    "at one moment": lambda _rng: timedelta(),
}


def at_two_thirds(_rng: random.Random, issued: datetime, not_after: datetime) -> datetime:
    return issued + (not_after - issued) * 2 / 3


def in_the_window(rng: random.Random, issued: datetime, not_after: datetime) -> datetime:
    window = suggested_window(CertId(KEY_IDENTIFIER, rng.getrandbits(159) | 1), issued, not_after)
    return window.start + (window.end - window.start) * rng.random()


def when_it_looks(rng: random.Random, issued: datetime, not_after: datetime) -> datetime:
    """The first look at or after the moment picked, from issuance on as often as Retry-After says."""
    certid = CertId(KEY_IDENTIFIER, rng.getrandbits(159) | 1)
    window = suggested_window(certid, issued, not_after)
    moment = window.start + (window.end - window.start) * rng.random()
    between = pause(certid, not_after - issued, LONGEST)
    return issued + between * -((issued - moment) // between)


def at_midnight_and_noon(rng: random.Random, issued: datetime, not_after: datetime) -> datetime:
    """By a timer that every machine has at the same two times of the day."""
    half = timedelta(hours=12)
    return DAY + half * -((DAY - in_the_window(rng, issued, not_after)) // half)


CLIENTS: dict[str, Client] = {
    "no renewal information: at 2/3 of the lifetime": at_two_thirds,
    "at the moment picked": in_the_window,
    "looks as Retry-After says": when_it_looks,
    "looks at 0:00 and 12:00": at_midnight_and_noon,
}


@dataclass(frozen=True)
class Row:
    lifetime_days: int
    issued: str
    client: str
    hours: int
    busiest: int
    mean: float

    @property
    def ratio(self) -> float:
        return self.busiest / self.mean


def simulate(count: int, days: int, issued: str, client: str, seed: int) -> Row:
    rng = random.Random(seed)
    lifetime, draw, renew = timedelta(days=days), ISSUED[issued], CLIENTS[client]
    by_hour: Counter[int] = Counter()
    for _ in range(count):
        moment = DAY + draw(rng)
        by_hour[(renew(rng, moment, moment + lifetime) - DAY) // HOUR] += 1
    hours = max(by_hour) - min(by_hour) + 1
    return Row(days, issued, client, hours, max(by_hour.values()), count / hours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, nargs="+", default=[90])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="10,000 certificates")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    count = 10_000 if options.quick else options.certificates
    rows = [
        simulate(count, days, issued, client, options.seed)
        for days in options.days
        for client in CLIENTS
        for issued in ISSUED
    ]
    shown = [
        (
            f"{row.lifetime_days} d",
            row.client,
            row.issued,
            f"{row.hours:,}",
            f"{row.busiest:,}",
            f"{row.busiest / count:.2%}",
            f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    print(table(("lifetime", "client", "issued", "hours", "busiest hour", "of the fleet", "to the mean"), shown))
    write_json(options.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
