"""`ca-server doctor` finds each fault that is made for it, says what to do, and tells scripts by its exit code."""

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from interoplib.commands import told
from interoplib.server import Server
from interoplib.tools import need, run
from ports import free_ports

from ca_server.store.migrate import head_revision

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")


@pytest.fixture(scope="module")
def healthy(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Server:
    """A stopped server that was at work once, with nothing wrong."""
    server = Server(ca_server_command, open_folder("healthy"))
    server.init()
    server.start()
    assert server.stop() == 0
    return server


@pytest.fixture
def patient(healthy: Server, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    """Its copy, in which a test may break something."""
    server = Server(healthy.command, open_folder("patient"))
    run(["cp", "-a", healthy.home, server.home])
    for file in (server.home / "core" / "softhsm2.conf", server.home / "ca-server.toml"):
        text = file.read_text().replace(str(healthy.home), str(server.home))
        for old, new in ((healthy.https_port, server.https_port), (healthy.http_port, server.http_port)):
            text = text.replace(f"port = {old}", f"port = {new}")
        file.write_text(text)
    yield server
    if server.process is not None:
        server.stop()
    shutil.rmtree(server.home)


def findings(server: Server, *options: str, code: int) -> dict[str, tuple[str, str]]:
    """Verdict and text by name of the check."""
    done = server.cli("doctor", "--json", *options, expect=code)
    assert "Traceback" not in done.stderr
    return {check["name"]: (check["verdict"], check["found"]) for check in json.loads(done.stdout)}


def faults(found: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, (verdict, _) in found.items() if verdict == "bad"}


def unwell(found: dict[str, tuple[str, str]]) -> set[str]:
    """What is not good; how many files may be opened is this machine's affair."""
    return {name for name, (verdict, _) in found.items() if verdict != "good"} - {"open files"}


def one_fault(server: Server, name: str, *options: str) -> str:
    """The doctor finds this fault and no other; what it says of it."""
    found = findings(server, *options, code=1)
    assert faults(found) == {name}, found
    return found[name][1]


def change_database(server: Server, statement: str, *parameters: Any) -> None:
    database = sqlite3.connect(server.home / "data" / "ca.db", isolation_level=None)
    for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {trigger}")
    assert database.execute(statement, parameters).rowcount >= 1
    database.close()


def microseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


# --- Nothing wrong ------------------------------------------------------------------------------------------------


def test_a_stopped_server(healthy: Server) -> None:
    found = findings(healthy, code=0)
    assert unwell(found) == {"server"}
    assert found["server"] == ("warning", "not running; ca-server serve")
    for name in (
        "permissions of core",
        "permissions of pin",
        "permissions of so-pin",
        "permissions of listener.pem",
        "disk",
        "tls certificate",
        "database",
        "clock",
        "audit log",
        "crl of root",
        "crl of issuing",
        "ocsp responder of issuing",
        "token",
    ):
        assert name in found


def test_a_running_server(patient: Server) -> None:
    patient.start()
    found = findings(patient, code=0)
    assert unwell(found) == set()
    assert found["server"][1].startswith("ready")
    assert {"listener https", "listener http"} <= set(found)


def test_for_people(healthy: Server) -> None:
    lines = healthy.cli("doctor").stdout.splitlines()
    marks = {line.split()[0] for line in lines[1:]}
    assert marks == {"ok", "WARN"}
    assert any(line.startswith("WARN  server ") for line in lines)


def test_a_new_home(ca_server_command: Path, open_folder: Callable[[str], Path]) -> None:
    """Between `init` and the first start all is well but what only a start brings."""
    server = Server(ca_server_command, open_folder("new"))
    server.init()
    found = findings(server, code=0)
    assert unwell(found) == {"server", "tls certificate"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a stranger")
def test_without_rights(healthy: Server) -> None:
    """A stranger learns nothing, is told whom to be, and must not take it for good news."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    done = run([*become, healthy.command, "doctor", "--json", "--home", healthy.home], expect=1)
    assert done.stderr == ""
    found = {check["name"]: (check["verdict"], check["found"]) for check in json.loads(done.stdout)}
    assert faults(found) == {"records"}
    for name in ("records", "server", "permissions of pin"):
        assert found[name][1] == "not visible to this user; run as root"


FEW = ["prlimit", "--nofile=300:4000", "--"]


def test_too_few_open_files(healthy: Server) -> None:
    done = run([*FEW, healthy.command, "doctor", "--json", "--home", healthy.home])
    found = {check["name"]: (check["verdict"], check["found"]) for check in json.loads(done.stdout)}
    verdict, text = found["open files"]
    assert verdict == "warning"
    assert text.startswith("a server started from here may open 4000, the listeners' max_connections need 16256;")


def test_too_few_open_files_of_a_running_server(patient: Server) -> None:
    """It raised its own limit as far as it may, lets in fewer connections, and is looked at rather than this shell."""
    patient.start(*FEW, patient.command, "serve")
    verdict, text = findings(patient, code=0)["open files"]
    assert (verdict, text.partition(",")[0]) == ("warning", "the running server may open 4000")
    (line,) = [line for line in patient.log.read_text().splitlines() if "too few open files" in line]
    assert json.loads(line)["https"] == (4000 - 256) // 2


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("core", 0o755),
        ("core/pin", 0o640),
        ("core/so-pin", 0o604),
        ("tls", 0o750),
        ("tls/listener.pem", 0o644),
        ("data", 0o2777),
        ("run", 0o2770),
        ("metrics", 0o775),
        ("ca-server.toml", 0o666),
        ("profiles", 0o777),
        ("profiles/default.toml", 0o664),
        ("log-key.pem", 0o646),
    ],
)
def test_open_files(patient: Server, path: str, mode: int) -> None:
    file = patient.home / path
    before = file.stat().st_mode & 0o7777
    file.chmod(mode)
    found = one_fault(patient, f"permissions of {file.name}")
    remedy = found.partition("; ")[2]
    assert remedy.endswith(str(file))
    run(remedy.split())
    assert file.stat().st_mode & mode == file.stat().st_mode & 0o7777
    assert findings(patient, code=0)
    file.chmod(before)


@pytest.mark.parametrize("path", ["core/so-pin", "log-key.pem"])
def test_missing_files(patient: Server, path: str) -> None:
    file = patient.home / path
    file.unlink()
    found = findings(patient, code=1)
    assert f"{file} is missing" in found[f"permissions of {file.name}"][1]


def test_a_file_of_another_user(patient: Server) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(patient.home / "core" / "so-pin", 65534, 65534)
    assert "chown" in one_fault(patient, "permissions of so-pin")


def test_a_pin_file_elsewhere(patient: Server, open_folder: Callable[[str], Path]) -> None:
    pin = open_folder("pin") / "pin"
    shutil.copy2(patient.home / "core" / "pin", pin)
    shutil.chown(pin, *(("ca-server-core", "ca-server") if os.getuid() == 0 else (os.getuid(), None)))
    pin.chmod(0o644)
    assert str(pin) in one_fault(patient, "permissions of pin", "--set", f"token.pin_file={pin}")


def test_disk_full(patient: Server) -> None:
    found = one_fault(patient, "disk", "--min-free-mb", str(2**31))
    assert f"at {patient.home}" in found
    assert "make room" in found
    assert findings(patient, "--min-free-mb", "1", code=0)["disk"][0] == "good"


# --- What the database says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("issuer", ["root", "issuing"])
def test_expired_crl(patient: Server, issuer: str) -> None:
    past = microseconds(datetime.now(UTC) - timedelta(hours=1))
    change_database(
        patient,
        "UPDATE crls SET next_update = ? WHERE issuer_key_id = (SELECT issuer_keys.id FROM issuer_keys"
        " JOIN issuers ON issuers.id = issuer_keys.issuer_id WHERE issuers.name = ?)",
        past,
        issuer,
    )
    found = one_fault(patient, f"crl of {issuer}")
    assert "expired" in found
    remedy = found.partition("; ")[2]
    assert remedy == f"ca-server crl publish {issuer}"
    patient.cli(*remedy.split()[1:])
    assert findings(patient, code=0)[f"crl of {issuer}"][0] == "good"


def test_crl_overdue(patient: Server) -> None:
    now = datetime.now(UTC)
    change_database(
        patient,
        "UPDATE crls SET this_update = ?, next_update = ?",
        microseconds(now - timedelta(days=6)),
        microseconds(now + timedelta(days=1)),
    )
    found = findings(patient, code=0)
    assert found["crl of issuing"][0] == "warning"
    assert "overdue" in found["crl of issuing"][1]


def test_no_crl(patient: Server) -> None:
    change_database(patient, "DELETE FROM crls")
    assert faults(findings(patient, code=1)) == {"crl of root", "crl of issuing"}


def test_clock_that_went_back(patient: Server) -> None:
    future = microseconds(datetime.now(UTC) + timedelta(hours=1))
    change_database(patient, "UPDATE audit_checkpoints SET created_at = ?", future)
    assert "set the clock" in one_fault(patient, "clock")


def test_responder_certificate_expired(patient: Server) -> None:
    change_database(
        patient,
        "UPDATE certificates SET not_after = ? WHERE profile = 'ocsp-responder'",
        microseconds(datetime.now(UTC) - timedelta(hours=1)),
    )
    assert "no valid responder certificate" in one_fault(patient, "ocsp responder of issuing")


def test_responder_certificate_revoked(patient: Server) -> None:
    serial = told(patient, "cert", "list", "--profile", "ocsp-responder")[0]["serial"]
    database = sqlite3.connect(patient.home / "data" / "ca.db", isolation_level=None)
    now = microseconds(datetime.now(UTC))
    changed = database.execute(
        "UPDATE certificates SET revoked_at = ?, revocation_reason = 4 WHERE serial = ?", (now, serial)
    )
    assert changed.rowcount == 1
    database.close()
    assert faults(findings(patient, code=1)) == {"ocsp responder of issuing"}


def test_responder_certificate_overdue(patient: Server) -> None:
    now = datetime.now(UTC)
    change_database(
        patient,
        "UPDATE certificates SET not_before = ?, not_after = ? WHERE profile = 'ocsp-responder'",
        microseconds(now - timedelta(days=13)),
        microseconds(now + timedelta(days=1)),
    )
    assert findings(patient, code=0)["ocsp responder of issuing"][0] == "warning"


def test_database_missing(patient: Server) -> None:
    for file in (patient.home / "data").glob("ca.db*"):
        file.unlink()
    found = findings(patient, code=1)
    assert {"database", "records"} <= faults(found)
    assert not (patient.home / "data" / "ca.db").exists(), "looking makes no database"


def test_database_damaged(patient: Server) -> None:
    for file in (patient.home / "data").glob("ca.db-*"):
        file.unlink()
    (patient.home / "data" / "ca.db").write_bytes(b"no database" * 1000)
    assert "database" in faults(findings(patient, code=1))


def test_schema_of_another_version(patient: Server) -> None:
    change_database(patient, "UPDATE alembic_version SET version_num = '0002'")
    found = findings(patient, code=1)
    assert f"schema 0002, wanted {head_revision()}" in found["database"][1]


def test_log_rolled_back(patient: Server, healthy: Server) -> None:
    """The database of yesterday under the anchor of today."""
    patient.cli("eab", "create")
    for file in (patient.home / "data").glob("ca.db*"):
        file.unlink()
    run(["cp", "-a", *(healthy.home / "data").glob("ca.db*"), patient.home / "data"])
    assert "rolled back" in one_fault(patient, "audit log")


def test_anchor_missing(patient: Server) -> None:
    (patient.home / "core" / "anchor").unlink()
    assert "accept-anchor" in one_fault(patient, "audit log")
    patient.cli("audit", "accept-anchor", "--reason", "lost with its volume")
    assert findings(patient, code=0)["audit log"][0] == "good"


def test_anchor_away(patient: Server) -> None:
    found = findings(patient, "--set", "audit.anchor=/nowhere/anchor", code=1)
    assert {"audit log", "disk of the anchor"} <= faults(found)


# --- Token --------------------------------------------------------------------------------------------------------


def delete_key(server: Server, label: str) -> None:
    module = next(path for path in MODULES if Path(path).exists())
    environment = {
        "SOFTHSM2_CONF": str(server.home / "core" / "softhsm2.conf"),
        "TOKEN_PIN": (server.home / "core" / "pin").read_text().strip(),
    }
    argv = [need("pkcs11-tool"), "--module", module, "--token-label", "ca-server", "--login", "--pin", "env:TOKEN_PIN"]
    run([*argv, "--delete-object", "--type", "privkey", "--label", label], env=environment)
    if os.getuid() == 0:
        run(["chown", "-R", "ca-server-core:ca-server", server.home / "core"])


def test_key_missing(patient: Server) -> None:
    delete_key(patient, "issuing-1")
    assert "keys are missing: issuing-1" in one_fault(patient, "token")


def test_key_of_the_responder_missing(patient: Server) -> None:
    label = told(patient, "cert", "list", "--profile", "ocsp-responder")[0]["transaction"]
    delete_key(patient, label)
    assert f"keys are missing: {label}" in one_fault(patient, "token")


def test_wrong_pin(patient: Server) -> None:
    (patient.home / "core" / "pin").write_text("0123456789wrong")
    found = one_fault(patient, "token")
    assert "PIN" in found
    assert "0123456789wrong" not in found


def test_token_missing(patient: Server) -> None:
    shutil.rmtree(patient.home / "core" / "tokens")
    found = findings(patient, code=1)
    assert "token" in faults(found)


def test_module_missing(patient: Server) -> None:
    assert "/nowhere/module.so" in one_fault(patient, "token", "--set", "token.module=/nowhere/module.so")


# --- What runs ----------------------------------------------------------------------------------------------------


def test_nobody_at_a_listener(patient: Server) -> None:
    patient.start()
    (port,) = free_ports(1)
    found = one_fault(patient, "listener http", "--set", f"listeners.http.port={port}")
    assert str(port) in found


def test_something_else_at_the_admin_socket(patient: Server) -> None:
    """Something listens there and never answers."""
    path = patient.home / "core" / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        path.unlink(missing_ok=True)
        stranger.bind(str(path))
        stranger.listen()
        found = findings(patient, code=1)
    path.unlink()
    assert faults(found) == {"server"}


def test_a_wrong_configuration(patient: Server) -> None:
    done = patient.cli("doctor", "--set", "token.threads=0", expect=2)
    assert done.stdout == ""
    assert done.stderr.startswith("ca-server: --set: token.threads")
