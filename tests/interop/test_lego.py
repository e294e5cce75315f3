"""lego: all that it offers."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import need, run


@dataclass
class Lego:
    """A lego with a folder and an account of its own."""

    program: str
    folder: Path
    server: str
    environment: dict[str, str]

    def __call__(self, domain: str, *arguments: str) -> Path:
        account = ["--server", self.server, "--path", str(self.folder), "--email", "hostmaster@example.test"]
        run([self.program, *account, "--accept-tos", "--domains", domain, *arguments], env=self.environment)
        return self.folder / "certificates" / f"{domain}.crt"


@pytest.fixture
def lego(ca: Server, environment: dict[str, str], tmp_path: Path) -> Lego:
    return Lego(need("lego"), tmp_path / "lego", ca.directory, environment)


@pytest.fixture
def record(record_client: Callable[..., None]) -> Callable[..., None]:
    # Debian's build calls itself "dev": the package's version says more.
    shown = run(["dpkg-query", "-W", "-f", "${Version}", "lego"], expect=None).stdout
    version = re.split(r"[-+]", shown)[0] or "dev"
    return partial(record_client, "lego", version)


def serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def test_http_01_renew_and_revoke(
    lego: Lego, record: Callable[..., None], relying: Relying, surroundings: Surroundings
) -> None:
    host = f"lego-{os.urandom(3).hex()}.example.test"
    http = ["--http", "--http.port", f"127.0.0.1:{surroundings.http_01_port}"]
    certificate = lego(host, *http, "run")
    relying.verify(certificate, "-verify_hostname", host)
    record("issue", "http-01")
    first = serial(certificate)

    lego(host, *http, "renew", "--days", "3650", "--no-random-sleep")
    assert serial(certificate) != first
    relying.verify(certificate, "-verify_hostname", host)
    record("renew")

    lego(host, "revoke", "--keep")
    assert f"{certificate}: revoked" in relying.ocsp(certificate)
    record("revoke", "by account")


def test_tls_alpn_01(
    lego: Lego, record: Callable[..., None], relying: Relying, surroundings: Surroundings, ca: Server
) -> None:
    host = f"lego-tls-{os.urandom(3).hex()}.example.test"
    tls = ["--tls", "--tls.port", f"127.0.0.1:{surroundings.tls_alpn_01_port}"]
    certificate = lego(host, *tls, "run")
    relying.verify(certificate, "-verify_hostname", host)
    shown = json.loads(ca.cli("cert", "show", f"{serial(certificate):x}", "--json").stdout)
    assert shown["validated_by"] == "tls-alpn-01"
    record("tls-alpn-01")


def test_dns_01_wildcard(
    lego: Lego,
    record: Callable[..., None],
    relying: Relying,
    surroundings: Surroundings,
    txt_hook: Callable[[str, str], Path],
) -> None:
    host = f"lego-dns-{os.urandom(3).hex()}.example.test"
    hook = txt_hook("lego-hook.sh", 'case $1 in present) add "$2" "$3" ;; *) remove "$2" ;; esac')
    lego.environment |= {"EXEC_PATH": str(hook), "EXEC_SEQUENCE_INTERVAL": "1"}
    dns = ["--dns", "exec", "--dns.resolvers", surroundings.dns.address, "--dns.disable-cp"]
    certificate = lego(host, "--domains", f"*.{host}", "--key-type", "rsa2048", *dns, "run")
    relying.verify(certificate, "-verify_hostname", f"any.{host}")
    record("issue", "dns-01")
    record("wildcard", "dns-01")


def test_external_account_binding(
    lego: Lego,
    record: Callable[..., None],
    relying: Relying,
    surroundings: Surroundings,
    eab: Mapping[str, str],
) -> None:
    host = f"lego-eab-{os.urandom(3).hex()}.example.test"
    http = ["--http", "--http.port", f"127.0.0.1:{surroundings.http_01_port}"]
    certificate = lego(host, "--eab", "--kid", eab["kid"], "--hmac", eab["hmac_key"], *http, "run")
    relying.verify(certificate, "-verify_hostname", host)
    record("EAB")
