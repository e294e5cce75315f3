"""Mistakes at the start: each stops it with one clear line, an exit code, and no traceback."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interoplib.server import Server
from interoplib.tools import run


@pytest.fixture(scope="module")
def home(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Server:
    """An initialised server that never runs."""
    server = Server(ca_server_command, open_folder("mistakes"))
    server.init()
    return server


@pytest.fixture
def copy(home: Server, open_folder: Callable[[str], Path]) -> Server:
    """The same in a copy that a test may spoil."""
    server = Server(home.command, open_folder("spoiled"))
    run(["cp", "-a", home.home, server.home])
    configuration = server.home / "core" / "softhsm2.conf"
    configuration.write_text(configuration.read_text().replace(str(home.home), str(server.home)))
    return server


def refusal(server: Server, *options: str, command: str = "serve") -> str:
    """The one line with which a start is refused."""
    done = run([server.command, command, *server.options, *options], expect=None, timeout=90)
    assert done.returncode not in {0, -9, -11}, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "ready" not in done.stdout
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("acme.no_such_key=1", "no_such_key"),
        ("nosuchsection.key=1", "nosuchsection"),
        ("acme.http_01_port=99999", "http_01_port"),
        ("acme.http_01_port=web", "http_01_port"),
        ("listeners.http.address=here", "listeners.http.address"),
        ("no-equals-sign", "no-equals-sign"),
        ("acme.attestation.apple_roots=no-such.pem", "no-such.pem"),
    ],
)
def test_wrong_setting(home: Server, setting: str, told: str) -> None:
    assert told in refusal(home, "--set", setting)


def test_wrong_setting_in_the_file(copy: Server) -> None:
    file = copy.home / "ca-server.toml"
    file.write_text(file.read_text() + "\n[nonsense]\nx = 1\n")
    line = refusal(copy)
    assert "nonsense" in line
    assert str(file) in line


def test_file_that_is_no_toml(copy: Server) -> None:
    file = copy.home / "ca-server.toml"
    file.write_text("this is [not TOML\n")
    assert str(file) in refusal(copy)


def test_wrong_setting_in_the_environment(home: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CA_SERVER__ACME__NO_SUCH_KEY", "1")
    line = refusal(home)
    assert "CA_SERVER__ACME__NO_SUCH_KEY" in line or "no_such_key" in line


def test_wrong_profile(copy: Server) -> None:
    (copy.home / "profiles" / "default.toml").write_text('description = "x"\nisuer = "issuing"\n')
    assert "isuer" in refusal(copy)


def test_missing_module(home: Server) -> None:
    assert "/nowhere/module.so" in refusal(home, "--set", "token.module=/nowhere/module.so")


def test_module_that_is_no_module(home: Server, open_folder: Callable[[str], Path]) -> None:
    module = open_folder("module") / "module.so"
    module.write_text("not a library")
    assert str(module) in refusal(home, "--set", f"token.module={module}")


def test_missing_token(home: Server) -> None:
    assert "no-such-token" in refusal(home, "--set", "token.label=no-such-token")


def test_wrong_pin(copy: Server) -> None:
    pin = copy.home / "core" / "pin"
    pin.write_text("0123456789wrong")
    line = refusal(copy)
    assert "PIN" in line
    assert "0123456789wrong" not in line


def test_missing_pin(copy: Server) -> None:
    pin = copy.home / "core" / "pin"
    pin.unlink()
    assert str(pin) in refusal(copy)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize("listener", ["https", "http"])
def test_port_in_use(home: Server, taken_port: int, listener: str) -> None:
    line = refusal(home, "--set", f"listeners.{listener}.port={taken_port}", f"--{listener}-port", str(taken_port))
    assert str(taken_port) in line
    assert "in use" in line


def test_unwritable_home(ca_server_command: Path, open_folder: Callable[[str], Path]) -> None:
    """Root may write wherever there is a folder, so the home is put where there can't be one."""
    folder = open_folder("unwritable")
    (folder / "home").write_text("a file")
    server = Server(ca_server_command, folder)
    assert str(server.home) in refusal(server, command="init")
    server.home = folder / "home" / "below"
    assert str(server.home) in refusal(server, command="init")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_home_without_write_permission(copy: Server, open_folder: Callable[[str], Path]) -> None:
    folder = open_folder("closed")
    folder.chmod(0o500)
    server = Server(copy.command, folder)
    assert str(folder) in refusal(server, command="init")
    (copy.home / "data").chmod(0o500)
    assert str(copy.home) in refusal(copy)
    (copy.home / "data").chmod(0o700)


def test_home_that_is_not_there(ca_server_command: Path, open_folder: Callable[[str], Path]) -> None:
    server = Server(ca_server_command, open_folder("empty"))
    line = refusal(server)
    assert str(server.home) in line
    assert "init" in line


def test_home_that_is_there_already(home: Server) -> None:
    assert "initialised" in refusal(home, command="init")
    run([home.command, "init", "--if-missing", *home.options])


def test_home_in_use(ca: Server) -> None:
    """A second server on the same home, on other ports."""
    second = Server(ca.command, ca.home.parent)
    line = refusal(second)
    assert "another ca-server process" in line
    assert ca.is_ready()


def test_closed_home(ca_server_command: Path, open_folder: Callable[[str], Path]) -> None:
    """As root, a home that the server's users can't walk into."""
    if os.getuid() != 0:
        pytest.skip("only root serves as other users")
    folder = open_folder("shut")
    folder.chmod(0o700)
    try:
        assert str(folder) in refusal(Server(ca_server_command, folder), command="init")
    finally:
        shutil.rmtree(folder)
