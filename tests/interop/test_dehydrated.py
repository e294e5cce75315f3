"""dehydrated, which never repeats a request after badNonce: issue by http-01 and dns-01, revoke."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
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
def dehydrated(ca: Server, environment: dict[str, str], tmp_path: Path) -> Dehydrated:
    program = need("dehydrated")
    folder = tmp_path / "dehydrated"
    (folder / CHALLENGES).mkdir(parents=True)
    (folder / "config").write_text(
        f'BASEDIR="{folder}"\nCA="{ca.directory}"\nWELLKNOWN="{folder / CHALLENGES}"\n'
        'CONTACT_EMAIL="hostmaster@example.test"\nKEYSIZE="2048"\n'
    )
    client = Dehydrated(program, folder, environment)
    client("--register", "--accept-terms")
    return client


@pytest.fixture
def record(dehydrated: Dehydrated, record_client: Callable[[str, str], None]) -> Callable[[str], None]:
    version = re.search(r"Dehydrated version: (\S+)", dehydrated("--version"))
    assert version is not None
    return lambda deed: record_client(f"dehydrated {version[1]}", deed)


def test_http_01_and_revoke(
    dehydrated: Dehydrated, record: Callable[[str], None], relying: Relying, surroundings: Surroundings
) -> None:
    host = f"dehydrated-{os.urandom(3).hex()}.example.test"
    with ChallengeServer(dehydrated.folder, surroundings.http_01_port):
        certificate = dehydrated.obtain(host, "--challenge", "http-01", "--algo", "rsa")
    relying.verify(certificate, "-verify_hostname", host)
    record("http-01")

    dehydrated("--revoke", str(certificate.resolve()))
    revoked = next(certificate.parent.glob("cert-*.pem-revoked"))
    assert f"{revoked}: revoked" in relying.ocsp(revoked)
    record("revoke")


def test_dns_01(
    dehydrated: Dehydrated,
    record: Callable[[str], None],
    relying: Relying,
    txt_hook: Callable[[str, str], Path],
) -> None:
    host = f"dehydrated-dns-{os.urandom(3).hex()}.example.test"
    hook = txt_hook(
        "dehydrated-hook.sh",
        'case $1 in deploy_challenge) add "_acme-challenge.$2" "$4" ;; clean_challenge) remove "_acme-challenge.$2" ;; '
        "esac",
    )
    certificate = dehydrated.obtain(host, "--challenge", "dns-01", "--hook", str(hook), "--algo", "secp384r1")
    relying.verify(certificate, "-verify_hostname", host)
    record("dns-01")
