"""Kills at every step of the pipeline and at random, under load: what stands afterwards agrees with what was seen.

`scripts/soak` does the same for as long as it is told to.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from crashlib.siege import Siege
from crashlib.trap import CORE_STEPS, FRONT_STEPS
from interoplib.enrollment import Surroundings

BesiegeType = Callable[..., Siege]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def besiege(ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]) -> BesiegeType:
    """Makes a server of the test's own, to be killed under load."""
    return lambda **options: Siege(ca_server_command, open_folder("crash"), surroundings, **options)


def conclude(siege: Siege, capsys: pytest.CaptureFixture[str]) -> None:
    books = siege.close_the_books()
    with capsys.disabled():
        print(f"\n{siege.cycles.total()} kills (seed {siege.seed}): {books}")  # noqa: T201
    assert books.differences == [], f"seed {siege.seed}"
    assert books.held > 0


def test_every_step_and_at_random_on_sqlite(besiege: BesiegeType, capsys: pytest.CaptureFixture[str]) -> None:
    with besiege() as siege:
        siege.open_shop()
        for step in (*CORE_STEPS, *FRONT_STEPS):
            siege.kill_at(step)
        for role in ("core", "front"):
            siege.kill_at_random(role)
        siege.kill_all()
        conclude(siege, capsys)


@pytest.mark.parametrize("steps", [("reserve.uncommitted", "reserve.after", "sign.after", "store.uncommitted")])
def test_steps_on_postgresql(
    besiege: BesiegeType, make_database: Callable[[], str], steps: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with besiege(database=make_database()) as siege:
        siege.open_shop()
        for step in steps:
            siege.kill_at(step)
        siege.kill_at_random("front")
        conclude(siege, capsys)


def test_sigterm_drops_nothing(besiege: BesiegeType, capsys: pytest.CaptureFixture[str]) -> None:
    """Each finalize that reached the server is answered, or was carried out by when the server is back."""
    with besiege(clients=6) as siege:
        siege.open_shop()
        for _ in range(2):
            siege.wait_for_certificates(20)
            siege.stop_and_start()
        dropped = siege.ledger.dropped
        conclude(siege, capsys)
    assert dropped == 0
