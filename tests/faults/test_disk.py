"""The disk is full or read-only: errors that tell when to return, status served, and recovery without a person."""

import contextlib
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashlib.siege import Siege
from interoplib.enrollment import Surroundings
from interoplib.tools import run

PATIENCE = 90.0
SIZE = 64
"""MiB of the disk."""

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk to be filled"),
]


@pytest.fixture
def disk(open_folder: Callable[[str], Path]) -> Iterator[Path]:
    """A small disk of its own, mounted."""
    folder = open_folder("disk")
    done = run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m,mode=0755", "ca-server-test", folder], expect=None)
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    yield folder
    run(["umount", "-l", folder])


@pytest.fixture
def siege(
    ca_server_command: Path, surroundings: Surroundings, disk: Path, open_folder: Callable[[str], Path]
) -> Iterator[Siege]:
    """A server whose home is on that disk, and its log too."""
    with Siege(ca_server_command, disk, surroundings, own_folder=open_folder("trap")) as besieged:
        yield besieged


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def fill(disk: Path) -> Path:
    """Write until nothing more fits."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


def test_full(siege: Siege, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    siege.open_shop()
    siege.wait_for_certificates(5)
    processes = siege.server.processes()
    filler = fill(disk)
    until(lambda: status_of(f"{siege.server.http_url}/readyz") == 503)
    assert status_of(f"{siege.server.http_url}/livez") == 200
    assert status_of(f"{siege.server.http_url}/crl/issuing.crl") == 200
    assert siege.directory()["newOrder"]
    filler.unlink()
    until(siege.server.is_ready)
    siege.wait_for_certificates(5)
    assert siege.server.processes() == processes, "nothing died of it"
    books = siege.close_the_books()
    with capsys.disabled():
        print(f"\n{siege.ledger.retries} retries: {books}")  # noqa: T201
    assert books.differences == []


def test_read_only_at_the_start(siege: Siege, disk: Path) -> None:
    """One line says so; nothing is changed, and with the disk writable again the server starts."""
    server = siege.server
    siege.open_shop()
    siege.wait_for_certificates(3)
    siege.close_shop()
    assert server.stop() == 0
    run(["mount", "-o", "remount,ro", disk])
    done = subprocess.run(
        [server.command, "serve", *server.options],
        env={**os.environ, **server.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    run(["mount", "-o", "remount,rw", disk])
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"(?i)read-only", done.stderr), done.stderr
    server.start()
    assert siege.close_the_books().differences == []
