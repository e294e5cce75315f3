"""The anchor in a file: compare-and-swap, durable, and never mistaken for one that was not written."""

import asyncio
import fcntl
import os
import stat
from pathlib import Path

import pytest

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import anchor as anchor_module
from ca_server.store.anchor import FileAnchor


async def test_compare_and_swap(anchor: FileAnchor) -> None:
    assert await anchor.read() is None
    assert not await anchor.swap(b"one", b"two")
    assert await anchor.read() is None
    assert await anchor.swap(None, b"one")
    assert await anchor.swap(None, b"one")  # stands already
    assert not await anchor.swap(None, b"two")
    assert await anchor.swap(b"one", b"two")
    assert await anchor.read() == b"two"
    assert not await anchor.swap(b"one", b"three")
    assert await anchor.read() == b"two"


async def test_one_of_many_wins(anchor: FileAnchor) -> None:
    results = await asyncio.gather(*(FileAnchor(anchor.path).swap(None, b"%d" % n) for n in range(8)))
    assert sum(results) == 1
    assert await anchor.read() == b"%d" % results.index(True)


async def test_a_missing_directory_is_no_missing_anchor(tmp_path: Path) -> None:
    away = FileAnchor(tmp_path / "volume" / "anchor")
    for call in (away.read(), away.swap(None, b"note")):
        with pytest.raises(CaError) as caught:
            await call
        assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not (tmp_path / "volume").exists()


async def test_a_crash_before_the_rename_leaves_the_old_one(
    anchor: FileAnchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await anchor.swap(None, b"one")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _disk_full)
        with pytest.raises(CaError):
            await anchor.swap(b"one", b"two")
    assert await anchor.read() == b"one"
    assert await anchor.swap(b"one", b"two")
    assert await anchor.read() == b"two"


async def test_file_and_directory_are_synchronised(anchor: FileAnchor, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synchronised.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    await anchor.swap(None, b"one")
    assert synchronised == [False, True]
    assert anchor.path.stat().st_mode & 0o077 == 0


async def test_a_lock_that_is_held_does_not_block_for_ever(anchor: FileAnchor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_module, "_LOCK_WAIT", 0.05)
    with anchor.path.with_name("anchor.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CaError) as caught:
            await anchor.swap(None, b"one")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert await anchor.swap(None, b"one")


def _disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")
