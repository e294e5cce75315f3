"""Faults of a running server are tested with the library of the client tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import administer, new_name, of_database, run_apart

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "interop"))

from interoplib.fixtures import ca_server_command, enroll, open_folder, surroundings

__all__ = ["ca_server_command", "enroll", "open_folder", "surroundings"]


@pytest.fixture(scope="module")
def make_database(postgresql: str) -> Iterator[Callable[[], str]]:
    """Makes PostgreSQL databases without any table; their URLs."""
    names: list[str] = []

    def make() -> str:
        names.append(new_name())
        run_apart(administer(postgresql, f"CREATE DATABASE {names[-1]}"))
        return of_database(postgresql, names[-1])

    yield make
    for name in names:
        run_apart(administer(postgresql, f"DROP DATABASE {name} WITH (FORCE)"))
