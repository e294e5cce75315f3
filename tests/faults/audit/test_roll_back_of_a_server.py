"""A whole CA whose database is put back to an older copy: it serves what it may, changes nothing, says what to do."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from interoplib.acme import AcmeClient, Problem
from interoplib.dns import NameServer
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.tools import CHECKOUT, run
from interoplib.web import ChallengeServer
from ports import free_ports


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's own users can walk into."""
    made = Path(run(["mktemp", "-d", "/tmp/ca-roll-back-XXXXXX"]).stdout.strip())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def surroundings(folder: Path) -> Iterator[Surroundings]:
    dns_port, http_01_port = free_ports(2)
    (folder / "dns").mkdir()
    server = NameServer(folder / "dns", dns_port)
    yield Surroundings(server, http_01_port)
    server.close()


@pytest.fixture
def server(folder: Path, surroundings: Surroundings) -> Iterator[Server]:
    command = Path(run([CHECKOUT / "scripts" / "run", "--install-only"], timeout=240).stdout.split()[-1])
    made = Server(command, folder, surroundings.settings)
    made.init()
    made.start()
    yield made
    made.kill()


def ask_ocsp(server: Server, certificate: x509.Certificate) -> ocsp.OCSPResponse:
    issuing = x509.load_pem_x509_certificate(server.issuing.read_bytes())
    question = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuing, hashes.SHA1()).build()
    request = urllib.request.Request(
        f"{server.http_url}/ocsp",
        question.public_bytes(Encoding.DER),
        {"Content-Type": "application/ocsp-request"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return ocsp.load_der_ocsp_response(answer.read())


def fetch_crl(server: Server) -> x509.CertificateRevocationList:
    with urllib.request.urlopen(f"{server.http_url}/crl/issuing.crl", timeout=30) as answer:
        return x509.load_der_x509_crl(answer.read())


def copy_database(server: Server, to: Path) -> None:
    """All files of the embedded database, as they are on disk, with their owners."""
    shutil.rmtree(to, ignore_errors=True)
    run(["cp", "-a", server.home / "data", to])


def put_back(server: Server, copy: Path) -> None:
    shutil.rmtree(server.home / "data")
    run(["cp", "-a", copy, server.home / "data"])


def check_read_only(server: Server, client: AcmeClient, revoked: x509.Certificate) -> None:
    """What a server does that has come up over the older database; stops it."""
    log = server.log.read_text()
    assert "read-only: the database does not extend the audit log's anchor" in log
    assert "accept-anchor" in log
    with pytest.raises(Problem) as refused:
        client.new_order("third.example.test")
    assert (refused.value.status, refused.value.type) == (503, "serverInternal")
    assert refused.value.headers["retry-after"] == "300"
    with pytest.raises(Problem) as refused:
        client.revoke(revoked)
    assert refused.value.type == "serverInternal"
    # Not even "good": the older database does not know of the revocation.
    assert ask_ocsp(server, revoked).response_status is ocsp.OCSPResponseStatus.TRY_LATER
    issuing = x509.load_pem_x509_certificate(server.issuing.read_bytes())
    assert fetch_crl(server).is_signature_valid(issuing.public_key())
    found = server.cli("audit", "verify", expect=1)
    assert "truncated: leaves" in found.stdout
    assert "rolled back" in found.stdout
    running = server.cli("audit", "accept-anchor", "--reason", "disk lost", expect=1)
    assert "stop it first" in running.stderr
    events = server.cli("audit", "export").stdout.count("\n")
    assert server.stop() == 0
    assert server.cli("audit", "export").stdout.count("\n") == events, "something was added to the older log"


def test_an_older_database_is_found_at_the_start(server: Server, surroundings: Surroundings, folder: Path) -> None:
    with ChallengeServer(folder / "www", surroundings.http_01_port) as web:
        client = AcmeClient(server.directory, server.root).register()
        enrollment = Enrollment(client, web, surroundings.dns)
        early = x509.load_pem_x509_certificate(enrollment.certificate(folder, "early.example.test").read_bytes())
        assert server.stop() == 0
        copy_database(server, folder / "older")
        server.start()
        enrollment.certificate(folder, "late.example.test")
        client.revoke(early, reason=1)
        assert ask_ocsp(server, early).certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert server.stop() == 0
        copy_database(server, folder / "newer")

        put_back(server, folder / "older")
        said = server.start_read_only()
        assert "rolled back or truncated" in str(said["problems"])
        check_read_only(server, client, early)

        # The newer database comes back: all is well.
        put_back(server, folder / "newer")
        server.start()
        assert ask_ocsp(server, early).certificate_status is ocsp.OCSPCertStatus.REVOKED
        enrollment.certificate(folder, "third.example.test")
        server.cli("audit", "verify")
        assert server.stop() == 0
        kept = folder / "checkpoint"
        kept.write_bytes((server.home / "core" / "anchor").read_bytes())

        # Or it is lost for good: an operator takes the older one, with a reason, on record.
        put_back(server, folder / "older")
        accepted = server.cli("audit", "accept-anchor", "--reason", "disk lost, ticket 12")
        assert "rolled back or truncated" in accepted.stdout
        server.start()
        assert ask_ocsp(server, early).certificate_status is ocsp.OCSPCertStatus.GOOD
        enrollment.certificate(folder, "fourth.example.test")
        server.cli("audit", "verify")
        event = json.loads(server.cli("audit", "tail", "--type", "anchor.accepted", "--json").stdout)
        assert event["reason"] == "disk lost, ticket 12"
        assert event["extra"]["anchor_was"] == kept.read_text()
        # The checkpoint that somebody kept still tells of the history that was given up.
        told = server.cli("audit", "verify", "--checkpoint", str(kept), expect=1)
        assert "has seen" in told.stdout
        assert server.stop() == 0
