"""One CA for all client tests, started by scripts/run as an operator would, with a name server of its own."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from interoplib.enrollment import Surroundings
from interoplib.fixtures import ca_server_command, enroll, open_folder, surroundings
from interoplib.openssl import Relying
from interoplib.server import EXTERNAL_HOST, Server
from interoplib.tools import CHECKOUT

__all__ = ["ca_server_command", "enroll", "open_folder", "surroundings"]
"""Fixtures that other folders of tests use too."""

CLIENTS = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the table of clients to docs/interop.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CLIENTS] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    clients = session.config.stash.get(CLIENTS, {})
    if not clients or not session.config.getoption("--write-docs", default=False):
        return
    lines = ["# Clients that the tests run", "", "`scripts/test tests/interop --write-docs` writes this page.", ""]
    lines += ["| client | what was done |", "|---|---|"]
    lines += [f"| {name} | {', '.join(done)} |" for name, done in sorted(clients.items())]
    (CHECKOUT / "docs" / "interop.md").write_text("\n".join(lines) + "\n", "utf-8")


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
def record_client(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Notes for the table of clients: what a client, named with its version, did."""

    def record(client: str, deed: str) -> None:
        request.config.stash[CLIENTS].setdefault(client, {})[deed] = deed

    return record


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
