"""Restarts in the middle of an order, requests that meet each other, and the audit log after all of it."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from interoplib.acme import Order, Problem, make_csr
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import CHECKOUT, run

PATIENCE = 90.0


@pytest.fixture(scope="module")
def restarted(
    ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]
) -> Iterator[Server]:
    """A CA of this module's own, to be stopped and killed at will."""
    server = Server(ca_server_command, open_folder("restart"), surroundings.settings)
    server.init()
    server.start()
    yield server
    if server.process is not None:
        assert server.stop() == 0, server.log_tail()


@pytest.fixture
def server(restarted: Server) -> Server:
    """The module's CA, running, whatever the test before left."""
    if restarted.process is None:
        restarted.start()
    return restarted


def fresh_name(purpose: str) -> str:
    return f"{purpose}-{os.urandom(3).hex()}.example.test"


def end(server: Server, how: str) -> None:
    if how == "SIGTERM":
        assert server.stop() == 0, server.log_tail()
    else:
        server.kill()


def finish(enrollment: Enrollment, order: Order, csr: bytes) -> list[x509.Certificate]:
    """Bring an order to its certificate as a patient client does, from wherever it stands."""
    client = enrollment.client
    deadline = time.monotonic() + PATIENCE
    while True:
        client.refresh(order)
        if order.status == "valid":
            return client.certificate(order)
        assert order.status != "invalid", order.body
        if order.status == "ready":
            with contextlib.suppress(Problem):
                client.finalize(order, csr)
        assert time.monotonic() < deadline, order.body
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_between_order_and_authorization(server: Server, enroll: Callable[[Server], Enrollment], how: str) -> None:
    enrollment, name = enroll(server), fresh_name("ordered")
    order = enrollment.client.new_order(name)
    end(server, how)
    server.start()
    enrollment.authorize(order)
    assert finish(enrollment, order, make_csr(name))
    assert len(server.certificates(name)) == 1


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_during_validation(server: Server, enroll: Callable[[Server], Enrollment], how: str) -> None:
    enrollment, name = enroll(server), fresh_name("validating")
    order = enrollment.client.new_order(name)
    enrollment.authorize(order, wait=False)
    end(server, how)
    server.start()
    answer = enrollment.client.wait_for_authorization(order.body["authorizations"][0])
    assert answer["status"] == "valid", answer
    assert finish(enrollment, order, make_csr(name))
    assert len(server.certificates(name)) == 1


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_between_authorization_and_finalize(server: Server, enroll: Callable[[Server], Enrollment], how: str) -> None:
    enrollment, name = enroll(server), fresh_name("authorized")
    order = enrollment.client.new_order(name)
    enrollment.authorize(order, "dns-01")
    end(server, how)
    server.start()
    assert finish(enrollment, order, make_csr(name))
    assert len(server.certificates(name)) == 1


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_during_finalize(server: Server, enroll: Callable[[Server], Enrollment], how: str, delay: float) -> None:
    enrollment, name = enroll(server), fresh_name("finalizing")
    order, csr = enrollment.client.new_order(name), make_csr(name)
    enrollment.authorize(order)

    def finalize() -> None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, Problem, OSError):
            enrollment.client.finalize(order, csr)

    request = threading.Thread(target=finalize)
    request.start()
    time.sleep(delay)
    end(server, how)
    request.join(60)
    server.start()
    certificate = finish(enrollment, order, csr)[0]
    found = server.certificates(name)
    assert [int(row["serial"], 16) for row in found] == [certificate.serial_number]


def test_two_finalizes_at_once_give_one_certificate(server: Server, enroll: Callable[[Server], Enrollment]) -> None:
    enrollment, name = enroll(server), fresh_name("twice")
    order, csr = enrollment.client.new_order(name), make_csr(name)
    enrollment.authorize(order)
    together = threading.Barrier(4)

    def finalize(_: int) -> str:
        mine = Order(order.url, dict(order.body))
        together.wait()
        try:
            return enrollment.client.finalize(mine, csr).status
        except Problem as problem:
            return problem.type

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(finalize, range(4)))
    assert set(answers) <= {"processing", "valid"}, answers
    certificate = finish(enrollment, order, csr)[0]
    assert [int(row["serial"], 16) for row in server.certificates(name)] == [certificate.serial_number]


def test_finalizing_with_another_csr_is_refused(server: Server, enroll: Callable[[Server], Enrollment]) -> None:
    enrollment, name = enroll(server), fresh_name("other-csr")
    order = enrollment.client.new_order(name)
    enrollment.authorize(order)
    finish(enrollment, order, make_csr(name))
    with pytest.raises(Problem) as refused:
        enrollment.client.finalize(order, make_csr(name))
    assert (refused.value.status, refused.value.type) == (403, "orderNotReady")
    assert len(server.certificates(name)) == 1


def test_a_drained_server_answers_what_it_accepted(server: Server, enroll: Callable[[Server], Enrollment]) -> None:
    """Requests that run while SIGTERM comes get their answers; later ones are refused a connection, not cut off."""
    enrollment = enroll(server)
    name = fresh_name("drain")
    order, csr = enrollment.client.new_order(name), make_csr(name)
    enrollment.authorize(order)
    outcome: list[object] = []

    def finalize() -> None:
        try:
            outcome.append(enrollment.client.finalize(order, csr).status)
        except urllib.error.URLError as error:
            outcome.append(error.reason)
        except OSError as error:
            outcome.append(error)

    request = threading.Thread(target=finalize)
    request.start()
    time.sleep(0.1)
    assert server.stop() == 0
    request.join(60)
    server.start()
    assert outcome[0] in {"processing", "valid"} or isinstance(outcome[0], ConnectionRefusedError), outcome
    assert finish(enrollment, order, csr)


def test_revocation_outlives_a_kill(server: Server, enroll: Callable[[Server], Enrollment], tmp_path: Path) -> None:
    enrollment = enroll(server)
    certificate = enrollment.certificate(tmp_path, fresh_name("revoked"))
    enrollment.client.revoke(x509.load_pem_x509_certificate(certificate.read_bytes()), reason=4)
    end(server, "SIGKILL")
    server.start()
    relying = Relying(tmp_path, server.root, server.issuing)
    assert f"{certificate}: revoked" in relying.ocsp(certificate)
    assert "certificate revoked" in relying.verify_with_crl(certificate, expect=2)


def test_processes_end_with_their_supervisor(server: Server) -> None:
    """A supervisor that is killed alone leaves nothing behind that would hold ports or token."""
    assert server.process is not None
    children = server.processes()[1:]
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)
    server.process = None
    deadline = time.monotonic() + 45
    while (left := [pid for pid in children if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
    server.start()


@pytest.mark.parametrize("role", ["core", "front"])
def test_a_process_that_dies_is_started_again(
    server: Server, enroll: Callable[[Server], Enrollment], tmp_path: Path, role: str
) -> None:
    enrollment = enroll(server)
    victim = next(pid for pid in server.processes()[1:] if role in _arguments(pid))
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if not _alive(victim) and server.is_ready():
            break
    assert enrollment.certificate(tmp_path, fresh_name(f"after-{role}")).exists()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def test_a_second_start_takes_up_the_same_home(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    before = server.cli("issuer", "list", "--json").stdout
    root, issuing = server.root.read_text(), server.issuing.read_text()
    assert server.stop() == 0
    server.root.unlink()
    server.issuing.unlink()
    server.start(CHECKOUT / "scripts" / "run")
    with capsys.disabled():
        print(f"\nscripts/run on a home that is there: ready after {server.seconds_to_ready:.1f} s")  # noqa: T201
    assert server.cli("issuer", "list", "--json").stdout == before
    assert (server.root.read_text(), server.issuing.read_text()) == (root, issuing)
    served = subprocess.run(
        ["curl", "-sSf", f"{server.http_url}/issuer/root.cer"], capture_output=True, check=True, timeout=30
    ).stdout
    assert x509.load_der_x509_certificate(served).public_bytes(Encoding.PEM).decode() == root


# --- The audit log, after all of the above -------------------------------------------------------------------------


def test_audit_verifies_while_running_and_stopped(server: Server) -> None:
    server.cli("audit", "verify")
    assert server.stop() == 0
    server.cli("audit", "verify")
    tail = server.cli("audit", "tail", "--json").stdout.splitlines()
    assert "server.stop" in {json.loads(line)["type"] for line in tail}


@pytest.fixture
def altered(restarted: Server, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    """A copy of the home, of a stopped server, to be tampered with."""
    if restarted.process is not None:
        assert restarted.stop() == 0
    copy = Server(restarted.command, open_folder("altered"), restarted.settings)
    run(["cp", "-a", restarted.home, copy.home])
    configuration = copy.home / "core" / "softhsm2.conf"
    configuration.write_text(configuration.read_text().replace(str(restarted.home), str(copy.home)))
    yield copy
    shutil.rmtree(copy.home)


def test_an_untouched_copy_verifies(altered: Server) -> None:
    altered.cli("audit", "verify")


def _events_table(database: sqlite3.Connection) -> str:
    tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return next(name for name in tables if name in {"audit_events", "events"})


def test_the_log_refuses_changes_by_sql(altered: Server) -> None:
    database = sqlite3.connect(altered.home / "data" / "ca.db")
    table = _events_table(database)
    for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {_columns(database, table)[0]} = 'x'"):
        with pytest.raises(sqlite3.DatabaseError):
            database.execute(statement)
    database.close()


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _tamper(altered: Server, statement: Callable[[str, list[str]], str]) -> None:
    """Change rows of the log as one does who owns the file: triggers dropped first."""
    database = sqlite3.connect(altered.home / "data" / "ca.db", isolation_level=None)
    database.execute("PRAGMA foreign_keys = OFF")
    for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {trigger}")
    table = _events_table(database)
    changed = database.execute(statement(table, _columns(database, table)))
    assert changed.rowcount >= 1
    database.close()


def _finds(altered: Server, finding: str) -> None:
    done = altered.cli("audit", "verify", expect=None)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert finding in done.stdout, done.stdout + done.stderr


def test_audit_finds_an_edited_row(altered: Server) -> None:
    def edit(table: str, columns: list[str]) -> str:
        column = next(name for name in ("leaf", "canonical", "body", "data", "event") if name in columns)
        edited = f"CAST(replace({column}, 'success', 'failure') AS BLOB)"
        return f"UPDATE {table} SET {column} = {edited} WHERE rowid = (SELECT min(rowid) + 5 FROM {table})"

    _tamper(altered, edit)
    _finds(altered, "edited: leaf")


def test_audit_finds_a_deleted_row(altered: Server) -> None:
    _tamper(altered, lambda table, _: f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) - 3 FROM {table})")
    _finds(altered, "deleted: leaf")
