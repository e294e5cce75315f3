"""An anchor in a file, best on another volume than the database."""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from ca_server.core.notes import MAX_NOTE
from ca_server.domain.errors import CaError, ErrorKind

T = TypeVar("T")

_LOCK_WAIT: Final = 5.0
_LOCK_POLL: Final = 0.02


class FileAnchor:
    """`ca_server.core.audit.Anchor` in a file.

    Replaced by rename, with file and directory synchronised, under a lock on a file beside it. The directory must
    be there: where it is not, a volume is missing, and that must not look like an anchor that was never written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def read(self) -> bytes | None:
        return await asyncio.to_thread(_guarded, self._read)

    async def swap(self, expected: bytes | None, note: bytes) -> bool:
        return await asyncio.to_thread(_guarded, lambda: self._swap(expected, note))

    def _read(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_NOTE + 1)
        except FileNotFoundError:
            self.path.parent.stat()
            return None

    def _swap(self, expected: bytes | None, note: bytes) -> bool:
        with _locked(self.path.with_name(self.path.name + ".lock")):
            standing = self._read()
            if standing == note:
                return True
            if standing != expected:
                return False
            fresh = self.path.with_name(self.path.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(note)
                file.flush()
                os.fsync(descriptor)
            fresh.replace(self.path)
            _synchronise(self.path.parent)
            return True


def _guarded(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise CaError(ErrorKind.UNAVAILABLE, f"the audit log's anchor is away: {error.strerror or error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("its lock is held by another process") from None
                time.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
