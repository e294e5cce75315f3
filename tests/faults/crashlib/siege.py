"""A server under load that is killed again and again, step by step and at random, until the books are closed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from interoplib.dns import NameServer
from interoplib.enrollment import Surroundings
from interoplib.server import Server
from interoplib.web import ChallengeServer

from crashlib.books import DATABASE_URL, Books, reconcile, serials_known
from crashlib.customers import Account, CarefulClient, Customer, Ledger
from crashlib.trap import Trap

FRONTS = 2
_RECOVERY = 60.0
_SPRING = 30.0
_KILLS_OF_A_LIFE = 3
"""After so many deaths of a child its supervisor is started anew: its pauses double with each."""


class Siege:
    """Owns server, trap and clients. Used as a context manager, it leaves nothing behind that runs."""

    def __init__(
        self,
        command: Path,
        folder: Path,
        surroundings: Surroundings,
        *,
        database: str = "",
        settings: Sequence[str] = (),
        clients: int = 4,
        seed: int = 0,
        own_folder: Path | None = None,
    ) -> None:
        """`own_folder` keeps what is the tests' own, where the server's `folder` is not to be trusted with it."""
        self.seed = seed or random.SystemRandom().randrange(1 << 31)
        self.cycles: Counter[str] = Counter()
        self.ledger = Ledger()
        own_folder = own_folder or folder
        (own_folder / "trap").mkdir()
        self.trap = Trap(own_folder / "trap")
        own = (*surroundings.settings, f"processes.fronts={FRONTS}", "acme.max_open_orders=10000", "lint.sample_size=0")
        self.server = Server(command, folder, (*own, *settings))
        self.server.environment = self.trap.environment | ({DATABASE_URL: database} if database else {})
        self._random = random.Random(self.seed)
        self._web = ChallengeServer(own_folder / "www", surroundings.http_01_port)
        self._dns: NameServer = surroundings.dns
        self._clients = clients
        self._customers: list[Customer] = []
        self._before: frozenset[str] = frozenset()
        self._kills: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._web.__enter__()
        self.server.init()
        self._before = serials_known(self.server)
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for customer in self._customers:
            customer.close()
        self.server.kill()
        self._web.__exit__(kind, error, traceback)

    def _start(self) -> None:
        self.server.start()
        self._kills.clear()

    # --- Load -----------------------------------------------------------------------------------------------------

    def open_shop(self) -> None:
        """Let the clients begin."""
        self._customers = [Customer(self.ledger, self._account, number, self.seed) for number in range(self._clients)]
        for customer in self._customers:
            customer.start()

    def _account(self) -> Account:
        client = CarefulClient(self.server.directory, self.server.root)
        client.register()
        return Account(client, self._web, self._dns)

    def directory(self) -> dict[str, Any]:
        """The ACME directory as a new client gets it."""
        return CarefulClient(self.server.directory, self.server.root).directory

    def wait_for_certificates(self, count: int) -> None:
        """Wait until so many more were issued."""
        wanted = self.ledger.issued + count
        deadline = time.monotonic() + _RECOVERY
        while self.ledger.issued < wanted:
            assert time.monotonic() < deadline, self.ledger.complaints
            time.sleep(0.05)

    def close_shop(self) -> None:
        """Let every client bring its last order to an end."""
        for customer in self._customers:
            customer.close()
        for customer in self._customers:
            customer.join(180)
            if customer.is_alive():
                self.ledger.complain(f"{customer.name} never finished")
        self._customers = []

    def close_the_books(self) -> Books:
        """Stop the load and reconcile."""
        self.close_shop()
        self._recover()
        return reconcile(self.server, self.ledger, self.trap.signatures(), self._before)

    # --- Kills ----------------------------------------------------------------------------------------------------

    def kill_at(self, step: str) -> None:
        """Let the process that comes to a step die there, at a pass drawn at random."""
        role = "front" if step.startswith("front.") else "core"
        self._make_room(role)
        self.trap.arm(step, self._random.randint(1, 3))
        assert self.trap.sprung(_SPRING), f"nobody came to {step}\n{self.server.log_tail()}"
        self.cycles[step] += 1
        self._recover()

    def kill_at_random(self, role: str) -> None:
        """Kill a process of a role at any time."""
        self._make_room(role)
        time.sleep(self._random.uniform(0.0, 1.0))
        victims = self.server.processes_as(role)
        if victims:
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(victims), signal.SIGKILL)
            self.cycles[f"{role} at random"] += 1
        self._recover()

    def kill_all(self) -> None:
        """Let everything die at once, as when the machine does, and start again."""
        time.sleep(self._random.uniform(0.0, 0.5))
        self.server.kill()
        self.cycles["machine"] += 1
        self._start()

    def stop_and_start(self) -> None:
        """SIGTERM under load: the exit code is 0."""
        assert self.server.stop() == 0, self.server.log_tail()
        self.cycles["SIGTERM"] += 1
        self._start()

    def _make_room(self, role: str) -> None:
        self._kills[role] += 1
        if self._kills[role] > _KILLS_OF_A_LIFE:
            self.kill_all()
            self._kills[role] += 1

    def _recover(self) -> None:
        """Wait until the supervisor has it all up again."""
        deadline = time.monotonic() + _RECOVERY
        while not (
            self.server.is_ready()
            and len(self.server.processes_as("front")) == FRONTS
            and self.server.processes_as("core")
        ):
            assert self.server.process is not None
            ended = self.server.process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = "did not recover" if ended is None else f"ended with {ended}"
                pytest.fail(f"the server {what} (seed {self.seed})\n{self.server.log_tail()}")
            time.sleep(0.05)
