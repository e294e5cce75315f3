"""Tiles of a tree that is larger than a test would put in a database."""

import asyncio
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from ca_server.core.audit.tiles import Tiles
from ca_server.core.tlog import Frontier
from ca_server.domain.audit import Checkpoint
from ca_server.domain.errors import CaError, ErrorKind

SIZE = 70_000
HASHES = tuple(sha256(b"%d" % number).digest() for number in range(SIZE))


class MemoryLog:
    """Hashes in memory; counts how many were read."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.read = 0

    async def latest_checkpoint(self) -> tuple[Checkpoint, bytes] | None:
        checkpoint = Checkpoint("log", self.size, b"", b"note", datetime.now(UTC))
        return (checkpoint, b"") if self.size else None

    async def leaf_hashes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        await asyncio.sleep(0)
        self.read += limit
        return HASHES[first_index : first_index + limit]

    async def leaf_bytes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        return tuple(b"%d" % number for number in range(first_index, first_index + limit))


def root(first: int, end: int) -> bytes:
    tree = Frontier()
    tree.extend(HASHES[first:end])
    return tree.root()


async def test_the_specification_s_example() -> None:
    """A tree of 70,000 has 273 full and one partial tile of width 112 at level 0; 1 and 17 at level 1; 1 at level 2."""
    tiles = Tiles(MemoryLog())
    assert await tiles.tile(0, 272, 256) == b"".join(HASHES[272 * 256 : 273 * 256])
    assert await tiles.tile(0, 273, 112) == b"".join(HASHES[273 * 256 :])
    level_1 = await tiles.tile(1, 0, 256)
    assert [level_1[at : at + 32] for at in (0, 255 * 32)] == [root(0, 256), root(255 * 256, 256 * 256)]
    assert len(await tiles.tile(1, 1, 17)) == 17 * 32
    assert await tiles.tile(2, 0, 1) == root(0, 65_536)
    for level, index, width in ((0, 273, 113), (0, 273, 256), (1, 1, 18), (2, 0, 2), (3, 0, 1), (63, 0, 1)):
        with pytest.raises(CaError) as caught:
            await tiles.tile(level, index, width)
        assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_what_was_computed_once_is_kept_and_clients_share_it() -> None:
    log = MemoryLog()
    tiles = Tiles(log)
    together = await asyncio.gather(*(tiles.tile(2, 0, 1) for _ in range(5)))
    assert set(together) == {root(0, 65_536)}
    assert log.read == 65_536
    await tiles.tile(1, 0, 256)
    assert log.read == 65_536


async def test_an_empty_log() -> None:
    tiles = Tiles(MemoryLog(0))
    for call in (tiles.checkpoint(), tiles.tile(0, 0, 1), tiles.entries(0, 1)):
        with pytest.raises(CaError) as caught:
            await call
        assert caught.value.kind is ErrorKind.NOT_FOUND
