"""dehydrated, which never repeats a request after badNonce: all that it offers."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tls_alpn import TlsAlpnServer
from interoplib.tools import need, run
from interoplib.web import CHALLENGES, ChallengeServer


@dataclass
class Dehydrated:
    """A dehydrated with a folder and an account of its own."""

    program: str
    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> str:
        done = run([self.program, "--config", self.folder / "config", *arguments], env=self.environment)
        return done.stdout + done.stderr

    def obtain(self, host: str, *arguments: str) -> Path:
        self("--cron", "--domain", host, *arguments)
        return self.folder / "certs" / host / "cert.pem"


@pytest.fixture
def dehydrated(ca: Server, environment: dict[str, str], eab: Mapping[str, str], tmp_path: Path) -> Dehydrated:
    program = need("dehydrated")
    folder = tmp_path / "dehydrated"
    (folder / CHALLENGES).mkdir(parents=True)
    (folder / "config").write_text(
        f'BASEDIR="{folder}"\nCA="{ca.directory}"\nWELLKNOWN="{folder / CHALLENGES}"\n'
        'CONTACT_EMAIL="hostmaster@example.test"\nKEYSIZE="2048"\n'
        f'EAB_KID="{eab["kid"]}"\nEAB_HMAC_KEY="{eab["hmac_key"]}"\n'
    )
    client = Dehydrated(program, folder, environment)
    client("--register", "--accept-terms")
    return client


@pytest.fixture
def record(dehydrated: Dehydrated, record_client: Callable[..., None]) -> Callable[..., None]:
    version = re.search(r"Dehydrated version: (\S+)", dehydrated("--version"))
    assert version is not None
    return partial(record_client, "dehydrated", version[1])


def test_http_01_renew_and_revoke(
    dehydrated: Dehydrated, record: Callable[..., None], relying: Relying, surroundings: Surroundings
) -> None:
    host = f"dehydrated-{os.urandom(3).hex()}.example.test"
    with ChallengeServer(dehydrated.folder, surroundings.http_01_port):
        certificate = dehydrated.obtain(host, "--challenge", "http-01", "--algo", "rsa")
        relying.verify(certificate, "-verify_hostname", host)
        record("EAB")
        record("issue", "http-01")

        first = certificate.resolve()
        dehydrated.obtain(host, "--challenge", "http-01", "--algo", "rsa", "--force", "--force-validation")
    assert certificate.resolve() != first
    relying.verify(certificate, "-verify_hostname", host)
    record("renew")

    dehydrated("--revoke", str(certificate.resolve()))
    revoked = next(certificate.parent.glob("cert-*.pem-revoked"))
    assert f"{revoked}: revoked" in relying.ocsp(revoked)
    record("revoke", "by account")


def test_dns_01(
    dehydrated: Dehydrated,
    record: Callable[..., None],
    relying: Relying,
    txt_hook: Callable[[str, str], Path],
) -> None:
    host = f"dehydrated-dns-{os.urandom(3).hex()}.example.test"
    hook = txt_hook(
        "dehydrated-hook.sh",
        'case $1 in deploy_challenge) add "_acme-challenge.$2" "$4" ;; clean_challenge) remove "_acme-challenge.$2" ;; '
        "esac",
    )
    both = ("--domain", f"*.{host}")
    certificate = dehydrated.obtain(host, *both, "--challenge", "dns-01", "--hook", str(hook), "--algo", "secp384r1")
    relying.verify(certificate, "-verify_hostname", f"any.{host}")
    record("issue", "dns-01")
    record("wildcard", "dns-01")


def test_tls_alpn_01(
    dehydrated: Dehydrated, record: Callable[..., None], relying: Relying, surroundings: Surroundings, tmp_path: Path
) -> None:
    host = f"dehydrated-tls-{os.urandom(3).hex()}.example.test"
    with TlsAlpnServer(tmp_path / "alpn", surroundings.tls_alpn_01_port) as tls:
        certificate = dehydrated.obtain(
            host, "--challenge", "tls-alpn-01", "--alpn", str(tls.folder), "--algo", "prime256v1"
        )
    relying.verify(certificate, "-verify_hostname", host)
    record("tls-alpn-01")
