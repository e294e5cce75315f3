"""A token of its own for each test. The module keeps its state per process: one test closes before the next opens."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tokenlib.place import MODULE, Place

from hsm.keys import TokenKeyStore, open_keystore

OpenStore = Callable[..., Awaitable[TokenKeyStore]]


@pytest.fixture(autouse=True, scope="session")
def softhsm() -> Path:
    if not MODULE.is_file():
        pytest.fail(f"SoftHSM2 is not installed: {MODULE} is missing; scripts/test installs it")
    return MODULE


@pytest.fixture(autouse=True)
def configuration_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """hsm exports SOFTHSM2_CONF for the module: undone after the test."""
    monkeypatch.setenv("SOFTHSM2_CONF", "/nonexistent")


@pytest.fixture
def place(tmp_path: Path, configuration_restored: None) -> Place:
    """An initialised token without keys."""
    made = Place(tmp_path / "token")
    assert made.provision()
    return made


@pytest.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Opens key stores, one at a time, and closes what the test left open."""
    opened: list[TokenKeyStore] = []

    async def open_one(place: Place, **changes: object) -> TokenKeyStore:
        observe = changes.pop("observe", None)
        store = await open_keystore(place.options(**changes), observe)  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def keys(place: Place, open_store: OpenStore) -> TokenKeyStore:
    """A key store on the empty token, with two worker threads."""
    return await open_store(place)
