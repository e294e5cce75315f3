"""certbot, Debian's and the one that the package index has today: all that they offer."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import CHECKOUT, need, run

CERTBOTS = {"debian": Path("/usr/bin/certbot"), "index": CHECKOUT / ".tools" / "certbot" / "bin" / "certbot"}


@dataclass
class Certbot:
    """A certbot with folders and an account of its own."""

    program: str
    folder: Path
    server: str
    environment: dict[str, str]
    http_01_port: int
    options: list[str] = field(default_factory=list)

    def __call__(self, command: str, *arguments: str) -> str:
        folders = [f"--{kind}-dir={self.folder / kind}" for kind in ("config", "work", "logs")]
        argv = [self.program, command, *folders, "--server", self.server, "--non-interactive", *arguments]
        done = run(argv, env=self.environment)
        return done.stdout + done.stderr

    def obtain(self, name: str, *arguments: str) -> Path:
        account = ["--agree-tos", "-m", "hostmaster@example.test", "--no-eff-email"]
        self("certonly", "--cert-name", name, "-d", name, *account, *arguments)
        return self.live(name)

    def live(self, name: str) -> Path:
        return self.folder / "config" / "live" / name / "cert.pem"

    @property
    def standalone(self) -> list[str]:
        return ["--standalone", "--preferred-challenges", "http", "--http-01-port", str(self.http_01_port)]


@pytest.fixture(params=CERTBOTS)
def certbot(
    request: pytest.FixtureRequest, ca: Server, surroundings: Surroundings, environment: dict[str, str], tmp_path: Path
) -> Certbot:
    program = need(str(CERTBOTS[request.param]))
    return Certbot(program, tmp_path / "certbot", ca.directory, environment, surroundings.http_01_port)


@pytest.fixture
def record(certbot: Certbot, record_client: Callable[..., None]) -> Callable[..., None]:
    """Notes a deed of this certbot by its own version."""
    version = run([certbot.program, "--version"]).stdout.split()[-1]
    return partial(record_client, "certbot", version)


def serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def test_http_01_renew_and_revoke(certbot: Certbot, record: Callable[..., None], relying: Relying) -> None:
    host = f"http-{os.urandom(3).hex()}.example.test"
    certificate = certbot.obtain(host, *certbot.standalone)
    relying.verify(certificate, "-verify_hostname", host)
    record("issue", "http-01")
    first = serial(certificate)

    certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")
    assert serial(certificate) != first
    relying.verify(certificate, "-verify_hostname", host)
    assert f"{certificate}: good" in relying.ocsp(certificate)
    record("renew")

    certbot("revoke", "--cert-name", host, "--reason", "superseded", "--no-delete-after-revoke")
    answer = relying.ocsp(certificate)
    assert f"{certificate}: revoked" in answer
    assert "superseded" in answer.lower()
    record("revoke", "by account")


def test_dns_01_wildcard_and_rsa(
    certbot: Certbot,
    record: Callable[..., None],
    relying: Relying,
    txt_hook: Callable[[str, str], Path],
) -> None:
    host = f"dns-{os.urandom(3).hex()}.example.test"
    add = txt_hook("add.sh", 'add "_acme-challenge.$CERTBOT_DOMAIN" "$CERTBOT_VALIDATION"')
    remove = txt_hook("remove.sh", 'remove "_acme-challenge.$CERTBOT_DOMAIN"')
    manual = ["--manual", "--preferred-challenges", "dns", "--manual-auth-hook", str(add)]
    rsa = ["--key-type", "rsa", "--rsa-key-size", "2048"]
    certificate = certbot.obtain(host, *manual, "--manual-cleanup-hook", str(remove), *rsa, "-d", f"*.{host}")
    relying.verify(certificate, "-verify_hostname", host)
    relying.verify(certificate, "-verify_hostname", f"any.{host}")
    record("issue", "dns-01")
    record("wildcard", "dns-01")


def test_revocation_by_the_certificates_key(certbot: Certbot, record: Callable[..., None], relying: Relying) -> None:
    host = f"key-{os.urandom(3).hex()}.example.test"
    certificate = certbot.obtain(host, *certbot.standalone)
    key = certificate.with_name("privkey.pem")
    by_key = ["--cert-path", str(certificate), "--key-path", str(key), "--reason", "keycompromise"]
    certbot("revoke", *by_key, "--no-delete-after-revoke")
    assert f"{certificate}: revoked" in relying.ocsp(certificate)
    record("revoke", "by the certificate's key")


def test_external_account_binding(
    certbot: Certbot, record: Callable[..., None], relying: Relying, eab: Mapping[str, str]
) -> None:
    host = f"eab-{os.urandom(3).hex()}.example.test"
    binding = ["--eab-kid", eab["kid"], "--eab-hmac-key", eab["hmac_key"]]
    relying.verify(certbot.obtain(host, *certbot.standalone, *binding), "-verify_hostname", host)
    record("EAB")


@pytest.mark.parametrize("certbot", ["index"], indirect=True)
def test_an_address(certbot: Certbot, record: Callable[..., None], relying: Relying) -> None:
    """Debian's is too old for them."""
    account = ["--agree-tos", "-m", "hostmaster@example.test", "--no-eff-email"]
    certbot("certonly", "--cert-name", "address", "--ip-address", "127.0.0.1", *account, *certbot.standalone)
    relying.verify(certbot.live("address"), "-verify_ip", "127.0.0.1")
    record("IP", "yes (current)")
