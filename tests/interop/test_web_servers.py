"""Web servers that get their certificates themselves: Apache with mod_md, and Caddy."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import CHECKOUT, need, run
from ports import free_ports

CADDY = CHECKOUT / ".tools" / "caddy" / "usr" / "bin" / "caddy"
MODULES = Path("/usr/lib/apache2/modules")
PATIENCE = 60.0


@contextmanager
def running(argv: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the foreground, ended at the end; its output goes to a log that a failure shows."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        sys.stdout.write(log.read_text("utf-8", "replace")[-5000:])


def served(port: int, host: str) -> x509.Certificate | None:
    """The certificate that a server shows for a name, if any."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            shown = tls.getpeercert(binary_form=True)
    except OSError:
        return None
    return x509.load_der_x509_certificate(shown) if shown else None


def wait_for(server: subprocess.Popen[bytes], found: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert server.poll() is None, f"it ended before there was {what}"
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def of_ours(certificate: x509.Certificate | None, issuing: Path) -> bool:
    issuer = x509.load_pem_x509_certificate(issuing.read_bytes())
    return certificate is not None and certificate.issuer == issuer.subject


def keep(certificate: x509.Certificate | None, file: Path) -> Path:
    assert certificate is not None
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return file


def test_caddy(
    ca: Server,
    surroundings: Surroundings,
    relying: Relying,
    eab: Mapping[str, str],
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    program = need(str(CADDY))
    host = f"caddy-{os.urandom(3).hex()}.example.test"
    version = run(["dpkg-query", "-W", "-f", "${Version}", "caddy"], expect=None).stdout or "2.6.2"
    ports = {"http-01": (surroundings.http_01_port, free_ports(1)[0])}
    ports["tls-alpn-01"] = (free_ports(1)[0], surroundings.tls_alpn_01_port)
    for kind, (http_port, https_port) in ports.items():
        name = f"{kind}.{host}"
        issuer = {
            "module": "acme",
            "ca": ca.directory,
            "trusted_roots_pem_files": [str(ca.root)],
            "external_account": {"key_id": eab["kid"], "mac_key": eab["hmac_key"]},
            "challenges": {
                "http": {"disabled": kind != "http-01", "alternate_port": http_port},
                "tls-alpn": {"disabled": kind != "tls-alpn-01", "alternate_port": https_port},
            },
        }
        server = {"listen": [f"127.0.0.1:{https_port}"], "routes": [{"match": [{"host": [name]}]}]}
        apps = {
            "http": {"http_port": http_port, "https_port": https_port, "servers": {"one": server}},
            "tls": {"automation": {"policies": [{"issuers": [issuer]}]}},
        }
        config = tmp_path / f"{kind}.json"
        config.write_text(json.dumps({"admin": {"disabled": True}, "apps": apps}))
        places = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        with running([program, "run", "--config", str(config)], places, tmp_path / "caddy.log") as caddy:
            wait_for(caddy, lambda p=https_port, n=name: of_ours(served(p, n), ca.issuing), f"a certificate of {name}")
            relying.verify(keep(served(https_port, name), tmp_path / "leaf.pem"), "-verify_hostname", name)
        record_client("Caddy", version, "issue" if kind == "http-01" else kind, kind if kind == "http-01" else "yes")
    record_client("Caddy", version, "EAB", "yes")


@pytest.fixture
def apache(
    tmp_path: Path, ca: Server, txt_hook: Callable[[str, str], Path], eab: Mapping[str, str]
) -> Callable[..., list[str]]:
    """Writes a configuration; gives the command that serves it."""
    program = need("/usr/sbin/apache2")
    for folder in ("md", "www", "logs"):
        (tmp_path / folder).mkdir(exist_ok=True)
    hook = txt_hook(
        "dns.sh", 'case $1 in setup) add "_acme-challenge.$2" "$3" ;; *) remove "_acme-challenge.$2" ;; esac'
    )

    def configure(name: str, kind: str, http_port: int, https_port: int) -> list[str]:
        modules = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "md")
        lines = [f"LoadModule {module}_module {MODULES}/mod_{module}.so" for module in modules]
        lines += [
            f"ServerRoot {tmp_path}",
            f"PidFile {tmp_path}/apache.pid",
            f"ErrorLog {tmp_path}/logs/error.log",
            "LogLevel warn md:info",
            f"DefaultRuntimeDir {tmp_path}/logs",
            f"Mutex file:{tmp_path}/logs",
            f"Listen 127.0.0.1:{http_port}",
            f"Listen 127.0.0.1:{https_port}",
            "Protocols http/1.1 acme-tls/1",
            f"MDStoreDir {tmp_path}/md",
            f"MDCertificateAuthority {ca.directory}",
            "MDCertificateAgreement accepted",
            "MDContactEmail hostmaster@example.test",
            f"MDCACertificateFile {ca.root}",
            f"MDExternalAccountBinding {eab['kid']} {eab['hmac_key']}",
            f"MDCAChallenges {kind}",
            f"MDChallengeDns01 {hook}",
            f"MDPortMap http:{http_port} https:{https_port}",
            "MDPrivateKeys secp256r1",
            "MDStapling off",
            f"MDomain {name} manual {f'*.{name}' if kind == 'dns-01' else ''}",
            f"ServerName {name}",
            f"<VirtualHost 127.0.0.1:{https_port}>",
            f"ServerName {name}",
            "SSLEngine on",
            f"DocumentRoot {tmp_path}/www",
            "</VirtualHost>",
        ]
        config = tmp_path / "apache.conf"
        config.write_text("\n".join(lines) + "\n")
        return [program, "-X", "-f", str(config)]

    return configure


def test_apache_mod_md(
    apache: Callable[..., list[str]],
    ca: Server,
    surroundings: Surroundings,
    environment: dict[str, str],
    relying: Relying,
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    """It gets a certificate beside serving, and takes it at the next start."""
    version = run(["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "apache2-bin"]).stdout
    host = f"apache-{os.urandom(3).hex()}.example.test"
    log = tmp_path / "logs" / "error.log"
    http, https = surroundings.http_01_port, surroundings.tls_alpn_01_port

    def obtain(name: str, *configuration: object) -> x509.Certificate:
        command = apache(name, *configuration)
        staged = tmp_path / "md" / "staging" / name / "pubcert.secp256r1.pem"
        with running(command, environment, log) as apache2:
            wait_for(apache2, lambda: any(staged.parent.glob("pubcert*.pem")), f"a certificate of {name}")
            wait_for(apache2, (staged.parent / "job.json").exists, "the job's record")
            wait_for(apache2, lambda: '"finished": true' in (staged.parent / "job.json").read_text(), "the job's end")
        with running(command, environment, log) as apache2:
            wait_for(
                apache2, lambda: of_ours(served(int(str(configuration[2])), name), ca.issuing), f"{name} to be served"
            )
            certificate = served(int(str(configuration[2])), name)
        relying.verify(keep(certificate, tmp_path / "leaf.pem"), "-verify_hostname", name)
        assert certificate is not None
        return certificate

    first = obtain(host, "http-01", http, free_ports(1)[0])
    record_client("Apache mod_md", version, "issue", "http-01")
    record_client("Apache mod_md", version, "EAB", "yes")
    ca.cli("cert", "revoke", f"{first.serial_number:x}", "--reason", "superseded")
    assert obtain(host, "http-01", http, free_ports(1)[0]).serial_number != first.serial_number
    record_client("Apache mod_md", version, "renew", "yes")
    record_client("Apache mod_md", version, "other", "renewal information")
    obtain(f"tls.{host}", "tls-alpn-01", free_ports(1)[0], https)
    record_client("Apache mod_md", version, "tls-alpn-01", "yes")
    obtain(f"dns.{host}", "dns-01", *free_ports(2))
    relying.verify(tmp_path / "leaf.pem", "-verify_hostname", f"any.dns.{host}")
    record_client("Apache mod_md", version, "wildcard", "dns-01")
