"""A victim on each database."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "interop"))

from victims import Victim, make_victim

from ca_server.store.database import Database


@pytest.fixture
async def victim(url: str, tmp_path: Path) -> AsyncIterator[Victim]:
    database = await Database.open(url)
    yield await make_victim(database, tmp_path)
    await database.close()
