"""`scripts/soak`: kills a server under load for as long as it is told to, and prints its counts."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from databases import PostgresServer
from interoplib.dns import NameServer
from interoplib.enrollment import Surroundings
from ports import free_ports

from crashlib.books import Books
from crashlib.siege import Siege
from crashlib.trap import CORE_STEPS, FRONT_STEPS

_CYCLES_OF_A_SIEGE = 40


def _besiege(siege: Siege, ends_at: float) -> Books:
    """Cycles in random order, the books at the end."""
    chance = random.Random(siege.seed)
    siege.open_shop()
    for _ in range(_CYCLES_OF_A_SIEGE):
        if time.monotonic() >= ends_at:
            break
        match chance.randrange(10):
            case 0:
                siege.kill_all()
            case 1:
                siege.stop_and_start()
            case 2 | 3:
                siege.kill_at_random(chance.choice(("core", "front")))
            case _:
                siege.kill_at(chance.choice(CORE_STEPS + FRONT_STEPS))
    return siege.close_the_books()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _database(*, postgresql: bool) -> Iterator[str]:
    """URL of an empty database for one round; empty for SQLite in the home."""
    if not postgresql:
        yield ""
        return
    server = PostgresServer()
    try:
        server.start()
        yield server.url()
    finally:
        server.close()


@dataclass
class _Counts:
    """What all rounds came to."""

    rounds: int = 0
    kills: int = 0
    certificates: int = 0
    differences: int = 0

    def add(self, siege: Siege, books: Books) -> None:
        self.kills += siege.cycles.total()
        self.certificates += books.certificates
        self.differences += len(books.differences)
        _say(f"round {self.rounds}: {siege.cycles.total()} cycles; {books}")
        for difference in books.differences:
            _say(f"  DIFFERENCE {difference}")


def _round(options: argparse.Namespace, folder: Path, surroundings: Surroundings, counts: _Counts, seed: int) -> None:
    """A server under siege for as long as the time allows; one that stands still or won't start is a difference."""
    counts.rounds += 1
    _say(f"round {counts.rounds}, seed {seed}")
    with _database(postgresql=options.postgresql) as database:
        siege = Siege(options.command, folder, surroundings, clients=options.clients, seed=seed, database=database)
        try:
            with siege:
                counts.add(siege, _besiege(siege, options.ends_at))
        except (AssertionError, pytest.fail.Exception) as error:
            counts.kills += siege.cycles.total()
            counts.differences += 1
            _say(f"  DIFFERENCE after {siege.cycles.total()} cycles: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--clients", type=int, default=4, help="ACME clients at once (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="to repeat the choices of an earlier run")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL server started for it")
    parser.add_argument("--command", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.ends_at = time.monotonic() + options.minutes * 60
    seed = options.seed or random.SystemRandom().randrange(1 << 31)
    counts = _Counts()
    with tempfile.TemporaryDirectory(prefix="ca-soak-", dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        dns_port, http_01_port = free_ports(2)
        (top / "dns").mkdir()
        names = NameServer(top / "dns", dns_port)
        try:
            while time.monotonic() < options.ends_at:
                folder = top / str(counts.rounds)
                folder.mkdir(mode=0o755)
                _round(options, folder, Surroundings(names, http_01_port), counts, seed + counts.rounds)
        finally:
            names.close()
    _say(
        f"{counts.rounds} rounds, {counts.kills} kill cycles, {counts.certificates} certificates issued,"
        f" {counts.differences} differences"
    )
    return 1 if counts.differences else 0


if __name__ == "__main__":
    sys.exit(main())
