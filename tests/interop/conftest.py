"""One CA for all client tests, started by scripts/run as an operator would, with a name server of its own."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from interoplib.enrollment import Surroundings
from interoplib.fixtures import ca_server_command, enroll, open_folder, surroundings
from interoplib.matrix import Matrix, committed
from interoplib.openssl import Relying
from interoplib.server import EXTERNAL_HOST, Server
from interoplib.tools import CHECKOUT

__all__ = ["ca_server_command", "enroll", "open_folder", "surroundings"]
"""Fixtures that other folders of tests use too."""

MATRIX = pytest.StashKey[Matrix]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the table of clients to docs/interop.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = Matrix()


def pytest_sessionfinish(session: pytest.Session) -> None:
    matrix = session.config.stash.get(MATRIX, Matrix())
    if not matrix.versions or not session.config.getoption("--write-docs", default=False):
        return
    if holes := matrix.holes():
        sys.stderr.write(f"\ndocs/interop.md is left as it was, since not all clients ran: {', '.join(holes)}\n")
        return
    matrix.write()


@pytest.fixture(scope="session")
def ca(ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    """A running CA in a new home: initialised and started by scripts/run."""
    server = Server(ca_server_command, open_folder("ca"), surroundings.settings)
    server.start(CHECKOUT / "scripts" / "run", "--external-host", EXTERNAL_HOST)
    yield server
    if server.process is not None:
        assert server.stop() == 0, server.log_tail()


@pytest.fixture(autouse=True)
def show_log_of_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """A failed test is shown with what the server said meanwhile."""
    server = request.getfixturevalue("ca") if "ca" in request.fixturenames else None
    before = server.log.stat().st_size if server else 0
    yield
    if server:
        with server.log.open("rb") as log:
            log.seek(before)
            sys.stdout.write(log.read()[-20_000:].decode("utf-8", "replace"))


@pytest.fixture
def relying(ca: Server, tmp_path: Path) -> Relying:
    return Relying(tmp_path, ca.root, ca.issuing)


@pytest.fixture
def record_client(request: pytest.FixtureRequest) -> Callable[[str, str, str, str], None]:
    """Notes for the table of clients: a client, its version, a column and what was done.

    Fails where the table as it is committed does not tell of it.
    """

    def record(client: str, version: str, column: str, deed: str = "yes") -> None:
        request.config.stash[MATRIX].record(client, version, column, deed)
        if not request.config.getoption("--write-docs", default=False):
            told = committed().get(client, {}).get(column, "-")
            assert deed in told.split(", "), f"docs/interop.md does not tell of {client}: {column}, {deed}"

    return record


@pytest.fixture(scope="session")
def eab(ca: Server) -> dict[str, str]:
    """An external account key that lets in any number of accounts: `kid` and `hmac_key`."""
    made = json.loads(ca.cli("eab", "create", "--reusable", "--json").stdout)
    return {"kid": made["kid"], "hmac_key": made["hmac_key"]}


@pytest.fixture
def environment(ca: Server) -> dict[str, str]:
    """Makes every client trust the CA's root, each in its own way."""
    return {
        "REQUESTS_CA_BUNDLE": str(ca.root),
        "LEGO_CA_CERTIFICATES": str(ca.root),
        "CURL_CA_BUNDLE": str(ca.root),
        "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
    }


@pytest.fixture
def txt_hook(surroundings: Surroundings, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a hook script for a DNS challenge from shell code that may call `add NAME VALUE` and `remove NAME`."""

    def write(name: str, body: str) -> Path:
        script = tmp_path / name
        script.write_text(
            "#!/bin/sh\nset -eu\n"
            f"records='{surroundings.dns.records}'\n"
            'add() { printf \'%s\\n\' "$2" >>"$records/${1%.}"; }\n'
            'remove() { rm -f "$records/${1%.}"; }\n'
            f"{body}\n"
        )
        script.chmod(0o755)
        return script

    return write
