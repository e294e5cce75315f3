"""What leaves the CA of its log: checkpoints by syslog, tiles by HTTP, proofs in files; all held against each other."""

import json
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.tools import run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from independent import open_checkpoint
from rfc6962 import mth

PATIENCE = 60.0


@dataclass
class Outside:
    """A CA whose log is served over HTTP and sent to a syslog of the test's."""

    server: Server
    syslog: socket.socket

    def received(self) -> list[bytes]:
        """All messages so far, at least one."""
        lines = [self.syslog.recv(65_536)]
        self.syslog.setblocking(False)
        try:
            while True:
                lines.append(self.syslog.recv(65_536))
        except BlockingIOError:
            self.syslog.settimeout(30)
            return lines

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.server.http_url}/log/{path}", timeout=30) as answer:
            return bytes(answer.read())

    def entries(self, size: int) -> list[bytes]:
        """All leaves of a tree of fewer than 256."""
        bundle, leaves = self.get(f"tile/entries/000.p/{size}"), []
        while bundle:
            length = int.from_bytes(bundle[:2], "big")
            leaves.append(bundle[2 : 2 + length])
            bundle = bundle[2 + length :]
        return leaves


@pytest.fixture(scope="module")
def outside(
    ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]
) -> Iterator[Outside]:
    folder = open_folder("outside")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(folder / "log"))
        syslog.settimeout(30)
        (folder / "log").chmod(0o666)
        settings = (f"audit.syslog=unix:{folder / 'log'}", "listeners.http.serves=status,health,metrics,log")
        server = Server(ca_server_command, folder, (*surroundings.settings, *settings))
        server.init()
        server.start()
        yield Outside(server, syslog)
        if server.process is not None:
            assert server.stop() == 0, server.log_tail()


def log_key(server: Server) -> bytes:
    pem = (server.home / "log-key.pem").read_text()
    return b64decode("".join(pem.splitlines()[1:-1]))


def test_syslog_and_tiles_tell_of_one_log(
    outside: Outside, enroll: Callable[[Server], Enrollment], tmp_path: Path
) -> None:
    server = outside.server
    enroll(server).certificate(tmp_path, "outside.example.test")
    key = log_key(server)
    deadline = time.monotonic() + PATIENCE
    while True:
        # Entries through the tiles lead to the root that every checkpoint has signed.
        _, size, root = open_checkpoint(outside.get("checkpoint"), key)
        leaves = outside.entries(size)
        assert mth(leaves) == root
        if any(b"outside.example.test" in leaf for leaf in leaves):
            break
        assert time.monotonic() < deadline, "the certificate is not in the log"
        time.sleep(0.1)
    lines = outside.received()
    for line in lines:
        found = re.search(rb"note=(\S+)", line)
        assert found is not None
        _, seen, its_root = open_checkpoint(b64decode(found[1]), key)
        if seen <= size:
            assert mth(leaves[:seen]) == its_root
    kept = tmp_path / "syslog"
    kept.write_bytes(b"\n".join(lines) + b"\n")
    server.cli("audit", "verify", "--checkpoint", str(kept))
    with urllib.request.urlopen(f"{server.http_url}/metrics", timeout=30) as answer:
        metrics = answer.read().decode()
    assert re.search(r'ca_server_audit_syslog_total\{outcome="sent"\} [1-9]', metrics)


def test_nothing_secret_is_in_the_log(outside: Outside) -> None:
    exported = outside.server.cli("audit", "export").stdout
    for name in ("pin", "so-pin"):
        assert (outside.server.home / "core" / name).read_text().strip() not in exported


def test_the_proof_of_a_certificate_is_checked_elsewhere(
    outside: Outside, enroll: Callable[[Server], Enrollment], tmp_path: Path
) -> None:
    server = outside.server
    pem = enroll(server).certificate(tmp_path, "proven.example.test")
    serial = f"{x509.load_pem_x509_certificate(pem.read_bytes()).serial_number:X}"
    proof, key = tmp_path / "proven.tlog-proof", tmp_path / "log-key.pem"
    outside.syslog.settimeout(30)
    server.cli("crl", "publish", "issuing")
    assert server.stop() == 0  # all that happened is sealed
    server.cli("audit", "proof", f"0x{serial}", "--issuer", "issuing", "--out", str(proof))
    assert server.cli("audit", "proof", serial).stdout == proof.read_text()
    key.write_bytes((server.home / "log-key.pem").read_bytes())
    argv = [server.command, "audit", "verify-proof", proof, "--key", key, "--certificate", pem, "--json"]
    told = json.loads(run(argv, env={"HOME": "/nonexistent", "CA_SERVER_HOME": "/nonexistent"}).stdout)
    assert told["event"]["serial"] == serial.lower().zfill(len(serial) + len(serial) % 2)
    assert "dns:proven.example.test" in told["event"]["names"]
    assert "is not in the log" in server.cli("audit", "proof", "0badcafe", expect=1).stderr
    server.start()


def test_the_log_is_served_where_a_listener_says_so_alone(ca: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{ca.http_url}/log/checkpoint", timeout=30)
    with refused.value as answer:
        assert answer.code == 404
