"""C2SP tlog-tiles over HTTP: a client that knows the log's key alone computes proofs from tiles, and they hold."""

import ipaddress
from hashlib import sha256
from typing import Any

import pymerkle
import pytest
import rfc6962
from independent import is_included, open_checkpoint

SIZES = (24, 255, 256, 257, 600)


class TileClient:
    """Reads hashes of perfect subtrees from tiles, by the specification: hash `index` at height 8 L + h."""

    def __init__(self, log: Any, size: int) -> None:
        self.log = log
        self.size = size
        self.tiles: dict[str, bytes] = {}

    async def node(self, height: int, index: int) -> bytes:
        if height % 8:
            left, right = await self.node(height - 1, 2 * index), await self.node(height - 1, 2 * index + 1)
            return sha256(b"\x01" + left + right).digest()
        level, number = height // 8, index // 256
        width = min(256, (self.size >> height) - number * 256)
        path = f"tile/{level}/{number:03}" + ("" if width == 256 else f".p/{width}")
        if path not in self.tiles:
            self.tiles[path] = await self.log.get(path)
            assert len(self.tiles[path]) == width * 32
        return self.tiles[path][index % 256 * 32 :][:32]

    async def mth(self, first: int, end: int) -> bytes:
        """The Merkle Tree Hash of D[first:end], a range as RFC 6962 splits them."""
        count = end - first
        if count & (count - 1) == 0:
            return await self.node(count.bit_length() - 1, first // count)
        k = first + rfc6962.split(count)
        return sha256(b"\x01" + await self.mth(first, k) + await self.mth(k, end)).digest()

    async def path(self, m: int, first: int, end: int) -> list[bytes]:
        if end - first == 1:
            return []
        k = first + rfc6962.split(end - first)
        if m < k:
            return [*await self.path(m, first, k), await self.mth(k, end)]
        return [*await self.path(m, k, end), await self.mth(first, k)]

    async def entries(self) -> list[bytes]:
        leaves: list[bytes] = []
        for number in range((self.size + 255) // 256):
            width = min(256, self.size - number * 256)
            bundle = await self.log.get(f"tile/entries/{number:03}" + ("" if width == 256 else f".p/{width}"))
            while bundle:
                length = int.from_bytes(bundle[:2], "big")
                leaves.append(bundle[2 : 2 + length])
                bundle = bundle[2 + length :]
        return leaves


async def test_inclusion_and_consistency_from_tiles_alone(log: Any) -> None:
    seen: list[tuple[int, bytes]] = []
    for size in SIZES:
        if size > 24:
            await log.grow(size)
        origin, told, root = open_checkpoint(await log.get("checkpoint"), log.victim.key.spki_der)
        assert (origin, told) == ("log.example.test", size)
        seen.append((size, root))
    client = TileClient(log, 600)
    leaves = await client.entries()
    others = pymerkle.InmemoryTree()
    others.append_entries(leaves)
    for size, root in seen:
        # Consistency: each tree that was signed is the beginning of the one whose entries were read.
        assert rfc6962.mth(leaves[:size]) == root == others.get_root(size)
        assert await TileClient(log, size).mth(0, size) == root
        pymerkle.verify_consistency(root, seen[-1][1], others.prove_consistency(size, 600))
    for index in (0, 1, 23, 254, 255, 256, 511, 512, 599):
        path = await client.path(index, 0, 600)
        assert path == rfc6962.path(index, leaves)
        assert is_included(leaves[index], index, 600, path, seen[-1][1])
    assert not is_included(leaves[1], 0, 600, await client.path(0, 0, 600), seen[-1][1])


async def test_partial_tiles_of_every_signed_size_stay(log: Any) -> None:
    await log.grow(300)
    full = await log.get("tile/0/000")
    for width in (1, 24, 255):
        assert await log.get(f"tile/0/000.p/{width}") == full[: 32 * width]
    assert await log.get("tile/0/001.p/44")
    assert await log.get("tile/1/000.p/1") == rfc6962.mth(await TileClient(log, 256).entries())


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/000",  # not full yet
        "tile/0/000.p/25",  # beyond the checkpoint
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/1",
        "tile/0/0",
        "tile/0/000.p/0",
        "tile/0/000.p/024",
        "tile/0/000.p/256",
        "tile/00/000.p/24",
        "tile/64/000.p/1",
        "tile/0/x000/000.p/24",
        "tile/0/x001/x002/999",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/0/1000",
        "tile/-1/000.p/24",
        "tile/entries/000.p/24/",
        "tile//000.p/24",
        "tile/0/000.p/２4",  # noqa: RUF001 - another script's digit
    ],
)
async def test_what_is_not_there(log: Any, path: str) -> None:
    await log.get(path, expect=404)


async def test_headers(log: Any) -> None:
    await log.grow(256)
    for path, kind, caching in (
        ("checkpoint", "text/plain; charset=utf-8", "no-store"),
        ("tile/0/000", "application/octet-stream", "private, max-age=31536000, immutable"),
        ("tile/0/000.p/3", "application/octet-stream", "private, max-age=60"),
        ("tile/entries/000", "application/octet-stream", "private, max-age=31536000, immutable"),
    ):
        async with log.client.get(f"/log/{path}") as answer:
            assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (kind, caching)
            assert answer.headers.get("Content-Encoding") == ("deflate" if "entries" in path else None)
            await answer.read()


@pytest.mark.parametrize("path", ["checkpoint", "tile/0/000.p/24", "tile/entries/000.p/24"])
async def test_the_log_is_for_the_configured_networks(log: Any, path: str) -> None:
    async with await log.served_to((ipaddress.ip_network("192.0.2.0/24"),)) as client:
        answer = await client.get(f"/log/{path}")
        assert answer.status == 403
        assert b"c2sp" not in await answer.read()


@pytest.mark.alters_schema
async def test_leaves_that_are_gone_are_an_error_not_an_answer(log: Any) -> None:
    await log.victim.disarm()
    await log.victim.attack("DELETE FROM audit_leaves WHERE leaf_index = 5")
    await log.get("tile/0/000.p/24", expect=500)
    await log.get("tile/entries/000.p/24", expect=500)
    assert await log.get("tile/0/000.p/5")
