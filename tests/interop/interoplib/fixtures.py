"""Fixtures for every folder of tests that runs the server: its command, folders for it, what stands around it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_ports

from interoplib.acme import AcmeClient
from interoplib.dns import NameServer
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.tools import CHECKOUT, run
from interoplib.web import ChallengeServer


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Callable[[str], Path]]:
    """Makes folders that other users can walk into: pytest's own are closed, and as root the server is other users."""
    top = Path(tempfile.mkdtemp(prefix="ca-interop-", dir="/tmp"))
    top.chmod(0o755)

    def make(name: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=top))
        folder.chmod(0o755)
        return folder

    yield make
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="session")
def ca_server_command() -> Path:
    """The path of ca-server as scripts/run installs it."""
    done = run([CHECKOUT / "scripts" / "run", "--install-only"], timeout=240)
    return Path(done.stdout.split()[-1])


@pytest.fixture(scope="session")
def surroundings(open_folder: Callable[[str], Path]) -> Iterator[Surroundings]:
    dns_port, http_01_port, tls_alpn_01_port = free_ports(3)
    server = NameServer(open_folder("dns"), dns_port)
    yield Surroundings(server, http_01_port, tls_alpn_01_port)
    server.close()


@pytest.fixture
def enroll(surroundings: Surroundings, tmp_path: Path) -> Iterator[Callable[[Server], Enrollment]]:
    """Makes an account at a CA, and answers http-01 and dns-01 for it."""
    with ChallengeServer(tmp_path / "www", surroundings.http_01_port) as web:
        yield lambda server: Enrollment(AcmeClient(server.directory, server.root).register(), web, surroundings.dns)
