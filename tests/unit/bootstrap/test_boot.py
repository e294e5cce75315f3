"""Which home may be at work under a node's name."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ca_server.bootstrap import boot
from ca_server.bootstrap.stores import Stores, open_stores
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import DatabaseSettings, Home, Settings


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings(database=DatabaseSettings(url=url))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.core.mkdir(parents=True)
    return made


@pytest.fixture
async def stores(home: Home, settings: Settings) -> AsyncIterator[Stores]:
    async with open_stores(home, settings) as opened:
        yield opened


async def test_a_home_starts_again_at_once(home: Home, settings: Settings, stores: Stores) -> None:
    epochs = [(await boot.begin_boot(home, settings, stores)).boot_epoch for _ in range(2)]
    assert epochs == [1, 2]


async def test_a_copied_home_waits_for_the_one_it_was_copied_from(
    home: Home, settings: Settings, stores: Stores
) -> None:
    """Started beside it, it would fence off a node that is at work."""
    fence = await boot.begin_boot(home, settings, stores)
    copy = Home(home.path.with_name("copy"))
    shutil.copytree(home.path, copy.path)
    with pytest.raises(ConfigurationError) as refused:
        await boot.begin_boot(copy, settings, stores)
    assert "another home is at work as node 'node1'" in str(refused.value)
    await boot.end_boot(stores, fence)
    assert (await boot.begin_boot(copy, settings, stores)).boot_epoch == 2


async def test_so_does_one_that_was_copied_to_another_machine(
    home: Home, settings: Settings, stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await boot.begin_boot(home, settings, stores)
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(boot, "_MACHINE_ID", tmp_path / "machine-id")
    with pytest.raises(ConfigurationError):
        await boot.begin_boot(home, settings, stores)
    monkeypatch.setattr(boot, "_MACHINE_ID", tmp_path / "none")
    with pytest.raises(ConfigurationError):
        await boot.begin_boot(home, settings, stores)
