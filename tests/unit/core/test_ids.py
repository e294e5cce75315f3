"""Identifiers in the order of time."""

import os
import re
import time

import pytest

from ca_server.domain.ids import new_handle, new_id


def test_ids_are_hexadecimal_and_never_the_same() -> None:
    made = [new_id() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_a_forked_process_draws_others() -> None:
    new_id()
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(here, 32).decode()[12:] != new_id()[12:]
    os.close(here)
    os.close(there)


def test_ids_sort_by_the_millisecond_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for milliseconds in (0, 1, 31, 32, 1_700_000_000_000, 1_700_000_000_001, (1 << 48) - 1):
        monkeypatch.setattr(time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        made.append(new_id())
    assert made == sorted(made)


def test_handles_are_no_options_and_never_the_same() -> None:
    drawn = [new_handle() for _ in range(2_000)]
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch(r"\w{22}", each) for each in drawn)
