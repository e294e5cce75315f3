"""The tree as tiles of 256 hashes (C2SP tlog-tiles), computed from the stored leaves.

No tile is stored: those of level 0 are read by index, and a hash of a higher level is the root of a full tile one level
below. Such roots never change, so those that were computed are kept, a bounded number of them.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

from ca_server.core.audit.events import MAX_LEAF
from ca_server.core.tlog import tree_root
from ca_server.domain.audit import Checkpoint
from ca_server.domain.errors import CaError, ErrorKind

TILE_WIDTH: Final = 256
"""Hashes of a full tile."""
_HEIGHT: Final = 8
_KEPT_ROOTS: Final = 65_536
_LENGTH_BYTES: Final = 2


class LogReader(Protocol):
    """What tiles are made from."""

    async def latest_checkpoint(self) -> tuple[Checkpoint, bytes] | None:
        """The last checkpoint with the tree's state."""

    async def leaf_hashes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        """Hashes of at most `limit` leaves from `first_index` on; fewer only where an index is missing."""

    async def leaf_bytes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        """At most `limit` leaves from `first_index` on; fewer only where one is missing."""


class Tiles:
    """Tiles and entry bundles under the last checkpoint.

    `_roots` has the roots of full tiles by level and index, the one used last at the end; whoever holds `_computing`
    adds to it: one at a time, so that a cold start does not read the whole log for every client.
    """

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._roots: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._computing = asyncio.Lock()

    async def checkpoint(self) -> bytes:
        """The last signed checkpoint. NOT_FOUND while there is none."""
        latest = await self._reader.latest_checkpoint()
        if latest is None:
            raise CaError(ErrorKind.NOT_FOUND, "the log has no checkpoint yet")
        return latest[0].note

    async def tile(self, level: int, index: int, width: int) -> bytes:
        """The first `width` hashes of a tile. NOT_FOUND where the last checkpoint does not cover them."""
        await self._require(level, index, width)
        if level == 0:
            return b"".join(await self._leaves(index, width))
        async with self._computing:
            first = index * TILE_WIDTH
            return b"".join([await self._root(level - 1, first + offset) for offset in range(width)])

    async def entries(self, index: int, width: int) -> bytes:
        """The first `width` leaves of a tile of level 0, each behind its length in two bytes. NOT_FOUND likewise."""
        await self._require(0, index, width)
        leaves = await self._reader.leaf_bytes(index * TILE_WIDTH, width)
        if len(leaves) != width or any(len(leaf) > MAX_LEAF for leaf in leaves):
            raise _broken()
        return b"".join(len(leaf).to_bytes(_LENGTH_BYTES, "big") + leaf for leaf in leaves)

    async def _require(self, level: int, index: int, width: int) -> None:
        latest = await self._reader.latest_checkpoint()
        hashes = 0 if latest is None else latest[0].size >> (_HEIGHT * level)
        if index * TILE_WIDTH + width > hashes:
            raise CaError(ErrorKind.NOT_FOUND, "no checkpoint covers this tile yet")

    async def _leaves(self, index: int, width: int) -> tuple[bytes, ...]:
        hashes = await self._reader.leaf_hashes(index * TILE_WIDTH, width)
        if len(hashes) != width:
            raise _broken()
        return hashes

    async def _root(self, level: int, index: int) -> bytes:
        """The root of a full tile."""
        known = self._roots.get((level, index))
        if known is not None:
            self._roots.move_to_end((level, index))
            return known
        if level == 0:
            root = tree_root(await self._leaves(index, TILE_WIDTH))
        else:
            first = index * TILE_WIDTH
            root = tree_root([await self._root(level - 1, first + offset) for offset in range(TILE_WIDTH)])
        self._roots[level, index] = root
        if len(self._roots) > _KEPT_ROOTS:
            self._roots.popitem(last=False)
        return root


def _broken() -> CaError:
    return CaError(ErrorKind.INTERNAL, "leaves of the log are missing; run a verification")
