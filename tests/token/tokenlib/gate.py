"""Holds signatures back in their worker thread, or delays them, at the level of the pool's work: a slow token."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ca_server.domain.keys import KeyAlgorithm
from hsm import algorithms

PATIENCE = 30.0


@dataclass
class Gate:
    """While closed, signatures of `only` (all, if None) wait in the token; `begun` has what reached it, in order."""

    only: KeyAlgorithm | None = None
    open: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    begun: list[bytes] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Gate":
        real: Callable[..., bytes] = algorithms.sign

        def sign(key: Any, algorithm: KeyAlgorithm, data: bytes) -> bytes:
            self.threads.add(threading.get_ident())
            if self.only in {None, algorithm}:
                self.begun.append(data)
                self.entered.set()
                assert self.open.wait(PATIENCE), "the gate was never opened: the event loop is blocked"
            return real(key, algorithm, data)

        monkeypatch.setattr(algorithms, "sign", sign)
        return self


def delay_signatures(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every signature takes so much longer, in its thread."""
    real: Callable[..., bytes] = algorithms.sign

    def sign(key: Any, algorithm: KeyAlgorithm, data: bytes) -> bytes:
        time.sleep(seconds)
        return real(key, algorithm, data)

    monkeypatch.setattr(algorithms, "sign", sign)
