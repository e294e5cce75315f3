"""Servers under measurement: each is started, waited for, and ended with all that it made."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from benchlib.usage import role_of, tree

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]
COMMAND = [sys.executable, "-m", "ca_server"]
_PATIENCE = 90.0


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has."""
    holders = [socket.socket() for _ in range(count)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


@contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ca-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for what stays."""
    members = tree(process.pid)
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> float:
    """Wait until a URL answers 200; seconds."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    begun = time.monotonic()
    while time.monotonic() - begun < _PATIENCE:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                if answer.status == 200:
                    return time.monotonic() - begun
        except OSError:
            time.sleep(0.02)
    process.kill()
    raise SystemExit(f"not started: {log.read_text('utf-8', 'replace')[-3000:]}")


class CaServer:
    """A staging home of ca-server, served with full sync and audit as in production. As root without separation.

    `checkout` is the code that is served: another one than this for before and after.
    """

    def __init__(self, place: Path, *, init: Sequence[str] = (), checkout: Path = CHECKOUT) -> None:
        self._checkout = checkout
        self.home = place / "home"
        self._log = place / "server.log"
        place.mkdir(parents=True, exist_ok=True)
        self.https_port, self.http_port, *challenge_ports = free_ports(4)
        self.challenge_ports = dict(zip(("http-01", "tls-alpn-01"), challenge_ports, strict=True))
        """Where validations ask, by challenge type."""
        ports = ["--https-port", str(self.https_port), "--http-port", str(self.http_port)]
        for kind, port in self.challenge_ports.items():
            ports += ["--set", f"acme.{kind.replace('-', '_')}_port={port}"]
        self._options = ["--home", str(self.home), *ports, "--set", "processes.allow_root=true"]
        self.process: subprocess.Popen[bytes] | None = None
        command = [*COMMAND, "init", *self._options, "--staging", "--external-host", "127.0.0.1", *init]
        subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)

    @property
    def directory(self) -> str:
        """The ACME directory's URL."""
        return f"https://127.0.0.1:{self.https_port}/acme/directory"

    @contextmanager
    def serving(self, *options: str, validating: bool = False) -> Iterator[float]:
        """Serve for as long as this holds; gives the seconds until it was ready."""
        unsafe = () if validating else ("--unsafe-skip-validation",)
        command = [*COMMAND, "serve", *self._options, *unsafe, *options]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._checkout, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield _wait(self.process, f"http://127.0.0.1:{self.http_port}/readyz", self._log)
        finally:
            _end(self.process)

    def external_key(self, *policy: str) -> tuple[str, str]:
        """A reusable external account key with what is bound to it: its id and its secret."""
        command = [*COMMAND, "eab", "create", "--home", str(self.home), "--reusable", "--json", *policy]
        made = json.loads(subprocess.run(command, cwd=self._checkout, check=True, stdout=subprocess.PIPE).stdout)
        return made["kid"], made["hmac_key"]

    def pids(self) -> dict[str, int]:
        """Process ids of core and fronts by role."""
        assert self.process is not None
        return {role: pid for pid in tree(self.process.pid) if (role := role_of(pid)).startswith(("core", "front"))}

    def pad_crl(self, size: int) -> None:
        """Serve so many octets of nothing as the issuing CA's CRL, until it is signed again."""
        with contextlib.closing(sqlite3.connect(self.home / "data" / "ca.db", timeout=30)) as database, database:
            keys = "SELECT k.id FROM issuer_keys k JOIN issuers i ON i.id = k.issuer_id WHERE i.name = 'issuing'"
            database.execute(f"UPDATE crls SET der = zeroblob(?) WHERE issuer_key_id IN ({keys})", (size,))

    def database_size(self) -> int:
        """Octets of the database."""
        return sum(file.stat().st_size for file in (self.home / "data").glob("ca.db*"))


class Pebble:
    """Debian's pebble: it says yes to every challenge, keeps everything in memory, and has no log."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.port, management = free_ports(2)
        _self_signed(place / "pebble.crt", place / "pebble.key")
        configuration = {
            "pebble": {
                "listenAddress": f"127.0.0.1:{self.port}",
                "managementListenAddress": f"127.0.0.1:{management}",
                "certificate": str(place / "pebble.crt"),
                "privateKey": str(place / "pebble.key"),
                "httpPort": 5002,
                "tlsPort": 5001,
            }
        }
        (place / "pebble.json").write_text(json.dumps(configuration))
        self.directory = f"https://127.0.0.1:{self.port}/dir"

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Serve for as long as this holds; gives the process id."""
        wishes = {"VA_ALWAYS_VALID": "1", "VA_NOSLEEP": "1", "WFE_NONCEREJECT": "0", "AUTHZREUSE": "0"}
        environment = dict(os.environ) | {f"PEBBLE_{name}": value for name, value in wishes.items()}
        log = self._place / "pebble.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["pebble", "-config", str(self._place / "pebble.json")], env=environment, stdout=output, stderr=output
            )
        try:
            _wait(process, self.directory, log)
            yield process.pid
        finally:
            process.kill()
            process.wait(10)


class BareServer:
    """aiohttp with uvloop and TLS that answers every request with two octets: the least that HTTPS costs here."""

    def __init__(self, place: Path) -> None:
        self._place = place
        (self.port,) = free_ports(1)
        _self_signed(place / "bare.crt", place / "bare.key")

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Serve for as long as this holds; gives the process id."""
        log = self._place / "bare.log"
        files = [str(self._place / name) for name in ("bare.crt", "bare.key")]
        command = [sys.executable, str(HERE / "bare.py"), str(self.port), *files]
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait(process, f"https://127.0.0.1:{self.port}/", log)
            yield process.pid
        finally:
            _end(process)


def pebble_installed() -> bool:
    """Whether pebble is here, after an attempt to install Debian's package where root may."""
    if shutil.which("pebble"):
        return True
    if os.getuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "pebble"]
        environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, env=environment, check=False, capture_output=True)
    return shutil.which("pebble") is not None


def _self_signed(certificate: Path, private: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
