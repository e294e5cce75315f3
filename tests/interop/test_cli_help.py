"""Help that teaches: every command, argument and option has its text, and every example runs as it is written."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from interoplib.acme import AcmeClient
from interoplib.commands import shell, told
from interoplib.server import Server
from interoplib.tools import run
from other_ca import OtherCa
from typer.main import get_command
from typer.testing import CliRunner

from ca_server.cli.app import application

EXAMPLE = re.compile(r"^- `(ca-server [^`]+)`", re.MULTILINE)
NOT_RUN = ("serve", "init", "--follow", "accept-anchor", "--staging", "reset")
"""Examples that make a home, do not end, want a stopped server or a limit in use are checked, not run."""


def walk(command: Any, name: str = "ca-server") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, groups included."""
    yield name, command
    for child, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from walk(each, f"{name} {child}")


COMMANDS = dict(walk(get_command(application())))
LEAVES = [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]
READERS = {
    "issuer list",
    "issuer show",
    "cert list",
    "cert show",
    "crl show",
    "eab list",
    "eab show",
    "incident list",
    "acme simulate",
    "acme account list",
    "acme account show",
    "acme limits list",
    "acme order list",
    "acme order show",
    "key list",
    "audit verify",
    "audit verify-proof",
    "audit tail",
    "config check",
    "doctor",
}
LISTED = {"ORDER": ("acme", "order", "list"), "ACCOUNT": ("acme", "account", "list", "--status", "valid")}
"""Commands that list what a word in capitals stands for."""
EXAMPLES = [line for name in LEAVES for line in EXAMPLE.findall(COMMANDS[name].help)]


@pytest.fixture(scope="module")
def server(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    server = Server(ca_server_command, open_folder("help"))
    server.init()
    profile = server.home / "profiles" / "listener.toml"
    profile.write_text("allow_hold = true\n" + profile.read_text())
    server.start()
    AcmeClient(server.directory, server.root).register().new_order("help.test")
    AcmeClient(server.directory, server.root).register()  # to be revoked
    yield server
    assert server.stop() == 0, server.log_tail()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_text(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help or "") > 20
    for parameter in command.params:
        assert len(getattr(parameter, "help", None) or "") > 10, parameter.name


@pytest.mark.parametrize("name", [name for name in LEAVES if name != "ca-server audit verify-proof"])
def test_every_command_takes_home_and_set(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--home", "--set"} <= options
    assert any(parameter.envvar == "CA_SERVER_HOME" for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_command_that_reads_takes_json(name: str) -> None:
    options = {option for parameter in COMMANDS[f"ca-server {name}"].params for option in parameter.opts}
    assert "--json" in options


def test_no_option_takes_a_secret() -> None:
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert "--pin-file" in options
    assert not [option for option in options if re.search(r"pin$|password|secret", option)]


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_an_example_of_itself(name: str) -> None:
    examples = EXAMPLE.findall(COMMANDS[name].help)
    assert examples
    assert all(example.startswith(name) for example in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed(name: str) -> None:
    done = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(application(), [*name.split()[1:], "--help"])
    assert (done.exit_code, done.stderr) == (0, "")
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            assert option in done.stdout


def with_things_of(server: Server, example: str, folder: Path) -> str:
    """An example with the names of what there is, made where need be."""
    line = example
    for word, listing in LISTED.items():
        if word in example.split():
            line = example.replace(word, str(told(server, *listing)[0]["id"]))
    if "SERIAL" in example:
        valid = () if "proof" in example else ("--status", "valid")
        listed = told(server, "cert", "list", *valid, "--profile", "ocsp-responder")
        line = example.replace("SERIAL", listed[0]["serial"])
    if "verify-proof" in example:
        serial = told(server, "cert", "list", "--profile", "ocsp-responder")[0]["serial"]
        server.cli("audit", "proof", serial, "--out", str(folder / "proof.txt"))
        shutil.copy(server.home / "log-key.pem", folder)
    if "HELD" in example:
        held = told(server, "cert", "list", "--status", "valid", "--profile", "listener")[0]["serial"]
        server.cli("cert", "revoke", held, "--reason", "certificate-hold")
        line = example.replace("HELD", held)
    make_files_of(server, example, folder)
    if "KID" in example:
        line = example.replace("KID", told(server, "eab", "create")["kid"])
    if "INCIDENT" in example:
        made = told(server, "incident", "create", "--reason", "to be ended", "--profile", "short")
        line = example.replace("INCIDENT", made["id"])
    return line


def make_files_of(server: Server, example: str, folder: Path) -> None:
    """The files that an example reads."""
    imported = re.match(r"ca-server issuer import (\S+) (\S+)", example)
    if imported is not None:
        other, csr = OtherCa("Root of Another CA"), server.cli("issuer", "csr", imported[1]).stdout
        chain = (other.certify(x509.load_pem_x509_csr(csr.encode())), other.root)
        (folder / imported[2]).write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    if "leaked.pem" in example:
        leaked = ec.generate_private_key(ec.SECP256R1()).public_key()
        pem = leaked.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "leaked.pem").write_bytes(pem)
        if "unblock" in example:
            server.cli("key", "block", str(folder / "leaked.pem"), "--reason", "to be undone")


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(server: Server, tmp_path: Path, example: str) -> None:
    words = example.split()
    if any(word in words for word in NOT_RUN):
        name = next(name for name in LEAVES if example.startswith(name))
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
        return
    line = with_things_of(server, example, tmp_path)
    output = shell(server, line, tmp_path)
    if ">" in words:
        assert output == ""
        assert (tmp_path / words[words.index(">") + 1]).stat().st_size > 0


def test_a_group_without_a_command_shows_its_help(ca_server_command: Path) -> None:
    for name in ([], ["cert"]):
        done = run([ca_server_command, *name], expect=2)
        assert "Usage: ca-server" in done.stdout + done.stderr


def test_version(ca_server_command: Path) -> None:
    assert re.fullmatch(r"ca-server/\d+\.\d+\.\d+\S*\n", run([ca_server_command, "--version"]).stdout)
