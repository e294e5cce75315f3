"""`scripts/soak`: kills a server under load for as long as it is told to, and prints its counts."""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from databases import PostgresServer
from interoplib.dns import NameServer
from interoplib.enrollment import Surroundings
from interoplib.tools import free_ports

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--clients", type=int, default=4, help="ACME clients at once (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="to repeat the choices of an earlier run")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL server started for it")
    parser.add_argument("--command", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    ends_at = time.monotonic() + options.minutes * 60
    seed = options.seed or random.SystemRandom().randrange(1 << 31)
    kills = certificates = differences = rounds = 0
    with tempfile.TemporaryDirectory(prefix="ca-soak-", dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        dns_port, http_01_port = free_ports(2)
        (top / "dns").mkdir()
        names = NameServer(top / "dns", dns_port)
        postgresql = PostgresServer() if options.postgresql else None
        try:
            while time.monotonic() < ends_at:
                folder = top / str(rounds)
                folder.mkdir(mode=0o755)
                if postgresql is not None:
                    postgresql.close()
                    postgresql = PostgresServer()
                    postgresql.start()
                database = postgresql.url() if postgresql is not None else ""
                with Siege(
                    options.command,
                    folder,
                    Surroundings(names, http_01_port),
                    clients=options.clients,
                    seed=seed + rounds,
                    database=database,
                ) as siege:
                    books = _besiege(siege, ends_at)
                rounds += 1
                kills += siege.cycles.total()
                certificates += books.certificates
                differences += len(books.differences)
                _say(f"round {rounds}, seed {siege.seed}: {siege.cycles.total()} cycles; {books}")
                for difference in books.differences:
                    _say(f"  DIFFERENCE {difference}")
        finally:
            names.close()
            if postgresql is not None:
                postgresql.close()
    _say(f"{rounds} rounds, {kills} kill cycles, {certificates} certificates issued, {differences} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
