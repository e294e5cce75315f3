"""The token goes and comes back under a running server: no bare error, nothing lost, nothing doubled."""

import contextlib
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from interoplib.acme import AcmeClient, Order, Problem, b64url, make_csr
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server

PATIENCE = 90.0


@pytest.fixture(scope="module")
def server(ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    """A CA whose token is looked at every half second."""
    made = Server(ca_server_command, open_folder("token"), (*surroundings.settings, "token.probe_interval=0.5"))
    made.init()
    made.start()
    yield made
    assert made.stop() == 0, made.log_tail()


@dataclass
class TokenDirectory:
    """The embedded token's directory, to be moved away and back."""

    path: Path

    @property
    def elsewhere(self) -> Path:
        return self.path.with_name("tokens-away")

    def move_away(self) -> None:
        self.path.rename(self.elsewhere)

    def move_back(self) -> None:
        if self.elsewhere.exists():
            self.elsewhere.rename(self.path)


@pytest.fixture
def token(server: Server) -> Iterator[TokenDirectory]:
    """The token's directory, in its place again when the test ends however it ends."""
    directory = TokenDirectory(server.home / "core" / "tokens")
    until(server.is_ready)
    yield directory
    directory.move_back()
    until(server.is_ready)


@pytest.fixture
def away(server: Server, token: TokenDirectory) -> TokenDirectory:
    """The token is away, and the server has noticed."""
    token.move_away()
    until(lambda: not server.is_ready())
    return token


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def fresh_name(purpose: str) -> str:
    return f"{purpose}-{os.urandom(3).hex()}.example.test"


def ordered(enrollment: Enrollment, purpose: str) -> tuple[str, Order, bytes]:
    """An order that is ready for finalize, with its name and CSR."""
    name = fresh_name(purpose)
    order = enrollment.client.new_order(name)
    enrollment.authorize(order)
    return name, order, make_csr(name)


def finalize_meanwhile(client: AcmeClient, order: Order, csr: bytes) -> None:
    """Finalize while there is no token: `processing` or a problem to be tried again, and when; never a bare 500."""
    body = {"csr": b64url(csr)}
    try:
        answer = client.post(order.body["finalize"], body)
    except Problem as problem:
        headers, said = problem.headers, f"{problem.status} {problem.type}"
    else:
        headers, said = answer.headers, f"{answer.status} {answer.json['status']}"
    assert said in {"200 processing", "503 serverInternal"}
    assert int(headers["retry-after"]) >= 1


def finish(client: AcmeClient, order: Order, csr: bytes) -> x509.Certificate:
    """Bring an order to its certificate as a patient client does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(Problem, OSError, HTTPException):
            client.refresh(order)
            assert order.status != "invalid", order.body
            if order.status == "valid":
                return client.certificate(order)[0]
            if order.status == "ready":
                client.finalize(order, csr)
        assert time.monotonic() < deadline, order.body
        time.sleep(0.1)


def check_one_certificate(server: Server, name: str, certificate: x509.Certificate) -> None:
    found = server.certificates(name)
    assert [int(row["serial"], 16) for row in found] == [certificate.serial_number]


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def readiness(server: Server) -> tuple[int, dict[str, Any]]:
    status, body = get(f"{server.http_url}/readyz")
    return status, json.loads(body)


def token_up(server: Server) -> float:
    text = get(f"{server.http_url}/metrics")[1].decode()
    values = re.findall(r"(?m)^ca_server_token_up(?:\{[^}]*\})? (\S+)$", text)
    assert len(values) == 1, values
    return float(values[0])


def ask_ocsp(server: Server, certificate: x509.Certificate) -> ocsp.OCSPResponse:
    issuing = x509.load_pem_x509_certificate(server.issuing.read_bytes())
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuing, SHA256()).build()
    sent = urllib.request.Request(
        f"{server.http_url}/ocsp",
        request.public_bytes(Encoding.DER),
        {"Content-Type": "application/ocsp-request"},
    )
    with urllib.request.urlopen(sent, timeout=30) as response:
        assert response.status == 200
        return ocsp.load_der_ocsp_response(response.read())


def crl(server: Server) -> x509.CertificateRevocationList:
    status, body = get(f"{server.http_url}/crl/issuing.crl")
    assert status == 200
    return x509.load_der_x509_crl(body)


def doctor(server: Server) -> tuple[int, dict[str, dict[str, str]]]:
    done = server.cli("doctor", "--json", expect=None)
    assert "Traceback" not in done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


def processes(server: Server, role: str) -> list[int]:
    """The server's processes of a role, core or front."""
    found = []
    for pid in server.processes()[1:]:
        with contextlib.suppress(OSError):
            if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                found.append(pid)
    return found


# --- The token directory is moved away and back ---------------------------------------------------------------------


def test_what_is_said_while_the_token_is_away(server: Server, away: TokenDirectory) -> None:
    status, told = readiness(server)
    assert status == 503
    assert told["ready"] is False
    assert told["token"] is False
    assert told["database"] is True
    assert any("token" in problem for problem in told["problems"]), told
    assert str(server.home) not in json.dumps(told), "/readyz is for everybody: it names no path"
    until(lambda: token_up(server) == 0)

    code, checks = doctor(server)
    assert code == 1
    assert checks["token"]["verdict"] == "bad"
    assert checks["server"]["verdict"] == "bad"
    assert "token" in checks["server"]["found"]
    assert checks["database"]["verdict"] == "good"

    assert get(f"{server.http_url}/livez")[0] == 200, "there is no reason to restart anything"

    away.move_back()
    until(server.is_ready)
    assert readiness(server)[1]["problems"] == []
    until(lambda: token_up(server) == 1)
    code, checks = doctor(server)
    assert checks["token"]["verdict"] == checks["server"]["verdict"] == "good"
    assert code == 0


def test_an_order_waits_for_the_token(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment]
) -> None:
    before = server.processes()
    enrollment = enroll(server)
    name, order, csr = ordered(enrollment, "waiting")
    token.move_away()
    until(lambda: not server.is_ready())
    finalize_meanwhile(enrollment.client, order, csr)
    enrollment.client.refresh(order)
    assert order.status == "processing", order.body
    assert server.certificates(name) == []
    token.move_back()
    check_one_certificate(server, name, finish(enrollment.client, order, csr))
    assert server.processes() == before, "nothing was restarted"


def test_an_order_is_finalized_as_the_token_goes(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment]
) -> None:
    """At once, before any probe: whatever the core still has in its hands, the order is not lost."""
    enrollment = enroll(server)
    for _ in range(2):
        name, order, csr = ordered(enrollment, "going")
        token.move_away()
        with contextlib.suppress(Problem):
            enrollment.client.finalize(order, csr)
        assert order.status in {"ready", "processing", "valid"}, order.body
        token.move_back()
        check_one_certificate(server, name, finish(enrollment.client, order, csr))


def test_many_orders_wait_for_the_token(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment]
) -> None:
    enrollment = enroll(server)
    orders = [ordered(enrollment, "many") for _ in range(3)]
    token.move_away()
    until(lambda: not server.is_ready())
    for _, order, csr in orders:
        finalize_meanwhile(enrollment.client, order, csr)
    token.move_back()
    for name, order, csr in orders:
        check_one_certificate(server, name, finish(enrollment.client, order, csr))


def test_new_orders_are_taken_and_validated_without_the_token(
    server: Server, away: TokenDirectory, enroll: Callable[[Server], Enrollment]
) -> None:
    """Account, order and validation need the database alone."""
    enrollment = enroll(server)
    name, order, csr = ordered(enrollment, "new")
    finalize_meanwhile(enrollment.client, order, csr)
    away.move_back()
    check_one_certificate(server, name, finish(enrollment.client, order, csr))


def test_status_goes_on(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment], tmp_path: Path
) -> None:
    """CRL and CA certificate are served; OCSP answers, or tells the client to try later, inside HTTP 200."""
    enrollment = enroll(server)
    file = enrollment.certificate(tmp_path, fresh_name("status"))
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    assert ask_ocsp(server, certificate).certificate_status is ocsp.OCSPCertStatus.GOOD
    number = crl(server).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    token.move_away()
    until(lambda: not server.is_ready())
    assert ask_ocsp(server, certificate).response_status is ocsp.OCSPResponseStatus.TRY_LATER
    assert crl(server).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    assert get(f"{server.http_url}/issuer/issuing.cer")[0] == 200
    assert AcmeClient(server.directory, server.root).directory["newOrder"]

    enrollment.client.revoke(certificate, reason=4)
    assert ask_ocsp(server, certificate).response_status is ocsp.OCSPResponseStatus.TRY_LATER

    token.move_back()
    until(server.is_ready)
    assert ask_ocsp(server, certificate).certificate_status is ocsp.OCSPCertStatus.REVOKED
    until(lambda: crl(server).get_revoked_certificate_by_serial_number(certificate.serial_number))


# --- The core process is killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_the_core_is_killed_while_an_order_is_finalized(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment], delay: float
) -> None:
    enrollment = enroll(server)
    name, order, csr = ordered(enrollment, "killed")
    (victim,), fronts = processes(server, "core"), processes(server, "front")
    outcome: list[str] = []

    def finalize() -> None:
        mine = Order(order.url, dict(order.body))
        try:
            outcome.append(enrollment.client.finalize(mine, csr).status)
        except Problem as problem:
            outcome.append(problem.type)

    request = threading.Thread(target=finalize)
    request.start()
    time.sleep(delay)
    os.kill(victim, signal.SIGKILL)
    request.join(60)
    assert outcome[0] in {"processing", "valid", "serverInternal"}, outcome
    check_one_certificate(server, name, finish(enrollment.client, order, csr))
    # A front may still say that it is ready by what it heard before.
    until(lambda: processes(server, "core") not in ([], [victim]))
    until(server.is_ready)
    assert processes(server, "front") == fronts, "the fronts live on"


def test_the_core_is_killed_while_the_token_is_away(
    server: Server, token: TokenDirectory, enroll: Callable[[Server], Enrollment]
) -> None:
    """It can't start without its token: the supervisor tries again until it can, and the fronts stay."""
    enrollment = enroll(server)
    name, order, csr = ordered(enrollment, "homeless")
    token.move_away()
    until(lambda: not server.is_ready())
    finalize_meanwhile(enrollment.client, order, csr)
    fronts = processes(server, "front")
    os.kill(processes(server, "core")[0], signal.SIGKILL)
    until(lambda: readiness(server)[1]["problems"][0].startswith("core:"))
    assert crl(server)
    assert AcmeClient(server.directory, server.root).directory["newOrder"]
    enrollment.client.refresh(order)
    assert order.status == "processing"
    token.move_back()
    check_one_certificate(server, name, finish(enrollment.client, order, csr))
    until(server.is_ready)
    assert processes(server, "front") == fronts


def test_the_log_is_whole_after_all_of_it(server: Server, token: TokenDirectory) -> None:
    server.cli("audit", "verify")
    assert "Traceback" not in server.log.read_text("utf-8", "replace")
