"""A staging directory beside the real one: another root, clients that are tried, and no way from one to the other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from interoplib.acme import AcmeClient
from interoplib.commands import refusal, told
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import need, run
from interoplib.web import ChallengeServer

CHAOS = ("acme.chaos.profiles=staging", "acme.chaos.bad_nonces=0.5", "acme.chaos.validation_delay=0.2")
HOST = "staged.example.test"


@pytest.fixture(scope="module")
def mixed(ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    """A production home that got its staging directory later, serving with chaos."""
    server = Server(ca_server_command, open_folder("mixed"), surroundings.settings)
    server.init()
    assert told(server, "issuer", "create", "--staging") == ["staging-root", "staging-issuing"]
    assert told(server, "issuer", "create", "--staging") == []
    server.settings += CHAOS
    server.start()
    yield server
    assert server.stop() == 0, server.log_tail()


@pytest.fixture(scope="module")
def staging(mixed: Server, open_folder: Callable[[str], Path]) -> Relying:
    """Who trusts the staging root alone."""
    folder = open_folder("trust")
    for name in ("staging-root", "staging-issuing"):
        (folder / f"{name}.pem").write_bytes(mixed._ca_certificate(name))
    return Relying(folder, folder / "staging-root.pem", folder / "staging-issuing.pem")


def directory(server: Server) -> str:
    return server.directory.replace("/directory", "/staging/directory")


def test_certbot_has_a_certificate_of_the_staging_root_alone(
    mixed: Server, staging: Relying, surroundings: Surroundings, tmp_path: Path
) -> None:
    """Half of its nonces are refused: it gets through by sending each request again, once."""
    folders = [f"--{kind}-dir={tmp_path / kind}" for kind in ("config", "work", "logs")]
    web = ["--standalone", "--http-01-port", str(surroundings.http_01_port)]
    account = ["--agree-tos", "--register-unsafely-without-email"]
    argv = [need("/usr/bin/certbot"), "certonly", *folders, "--server", directory(mixed), "--non-interactive"]
    environment = {"REQUESTS_CA_BUNDLE": str(mixed.root)}
    run([*argv, *web, *account, "--cert-name", HOST, "-d", HOST], env=environment)
    certificate = tmp_path / "config" / "live" / HOST / "cert.pem"
    staging.verify(certificate, "-verify_hostname", HOST)
    staging.verify_with_crl(certificate, expect=0)
    assert f"{certificate}: good" in staging.ocsp(certificate)
    Relying(tmp_path, mixed.root, mixed.issuing).verify(certificate, expect=2)
    for file in (staging.root, staging.issuing):
        names = x509.load_pem_x509_certificate(file.read_bytes()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert [str(name.value).startswith("STAGING ") for name in names] == [True]
    log = next((tmp_path / "logs").iterdir()).read_text()
    assert "badNonce" in log, "nothing was tried"


def test_the_real_directory_is_as_ever(mixed: Server, surroundings: Surroundings, tmp_path: Path) -> None:
    """The client of the tests sends nothing twice: a refused nonce would be the end of it."""
    with ChallengeServer(tmp_path / "www", surroundings.http_01_port) as web:
        client = AcmeClient(mixed.directory, mixed.root).register()
        certificate = Enrollment(client, web, surroundings.dns).certificate(tmp_path, "real.example.test")
    Relying(tmp_path, mixed.root, mixed.issuing).verify(certificate)


def test_issuers_are_made_while_the_server_is_stopped(mixed: Server) -> None:
    assert "stop it first" in refusal(mixed, "issuer", "create", code=1)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("acme.chaos.profiles=default", "issuer 'issuing' of this profile is no staging issuer"),
        ("acme.chaos.profiles=none", "acme.chaos.profiles = 'none': no such file"),
        ("issuers.staging-issuing.staging=false", "issuers.staging-issuing.parent"),
    ],
)
def test_what_is_refused_at_the_start(mixed: Server, setting: str, line: str) -> None:
    assert line in refusal(mixed, "config", "check", "--set", setting, code=2)
