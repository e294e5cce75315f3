"""A CA under test: its own home and ports, started as an operator starts it, its log kept."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from ports import free_ports

from interoplib.tools import run

START_SECONDS = 120.0
STOP_SECONDS = 60.0
EXTERNAL_HOST = "127.0.0.1"
"""In every URL. Not `localhost`, which needs no name server either: pkilint takes it for no host of a URL."""


class Server:
    """`command` is the path of ca-server; `launcher` is what starts it (scripts/run, or ca-server itself).

    `environment` is what its processes and commands have beside the tests' own.
    """

    def __init__(self, command: Path, folder: Path, settings: Sequence[str] = ()) -> None:
        self.command = command
        self.home = folder / "home"
        self.log = folder / "server.log"
        self.root = folder / "root.pem"
        self.issuing = folder / "issuing.pem"
        self.https_port, self.http_port = free_ports(2)
        self.settings = tuple(settings)
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds_to_ready = 0.0

    @property
    def options(self) -> list[str]:
        chosen = [
            "--home",
            str(self.home),
            "--https-port",
            str(self.https_port),
            "--http-port",
            str(self.http_port),
        ]
        return [*chosen, *(part for setting in self.settings for part in ("--set", setting))]

    @property
    def directory(self) -> str:
        return f"https://{EXTERNAL_HOST}:{self.https_port}/acme/directory"

    @property
    def http_url(self) -> str:
        return f"http://{EXTERNAL_HOST}:{self.http_port}"

    def init(self, *options: str) -> None:
        argv = [self.command, "init", *self.options, "--external-host", EXTERNAL_HOST, *options]
        run(argv, env=self.environment)

    def join(self, home: Path, node: str) -> None:
        """Make the home of another node of the CA whose home is given."""
        run([self.command, "init", *self.options, "--join", home, "--node", node], env=self.environment)

    def _launch(self, *launcher: str | Path) -> subprocess.Popen[bytes]:
        argv = [str(part) for part in launcher or (self.command, "serve")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, *self.options],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def start_read_only(self) -> dict[str, Any]:
        """Start a server that will not become ready; what it says at /readyz."""
        process = self._launch()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.http_url}/readyz", timeout=5) as answer:
                    pytest.fail(f"it is ready: {answer.read()!r}")
            except urllib.error.HTTPError as error:
                with error:
                    told = dict(json.loads(error.read()))
                if error.code == 503 and "read-only" in str(told["problems"]):
                    return told
            except OSError:
                pass
            time.sleep(0.1)
        pytest.fail(f"it did not come up read-only\n{self.log_tail()}")

    def start(self, *launcher: str | Path) -> None:
        """Start and wait until it is ready; the launcher is `ca-server serve` unless another is given."""
        begun = time.monotonic()
        process = self._launch(*launcher)
        while not self.is_ready():
            if process.poll() is not None:
                pytest.fail(f"the server ended with {process.returncode}\n{self.log_tail()}")
            if time.monotonic() - begun > START_SECONDS:
                log_tail = self.log_tail()
                self.kill()
                pytest.fail(f"the server is not ready after {START_SECONDS:.0f} s\n{log_tail}")
            time.sleep(0.05)
        self.seconds_to_ready = time.monotonic() - begun
        for name, file in (("root", self.root), ("issuing", self.issuing)):
            if not file.exists():
                file.write_bytes(self._ca_certificate(name))

    def _ca_certificate(self, name: str) -> bytes:
        """As PEM. Fetched, since commands take seconds to start; tests of `issuer export` are elsewhere."""
        with urllib.request.urlopen(f"{self.http_url}/issuer/{name}.cer", timeout=30) as response:
            return x509.load_der_x509_certificate(response.read()).public_bytes(Encoding.PEM)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/readyz", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """The ids of the server's processes, the first one's first."""
        assert self.process is not None
        found = [self.process.pid]
        for parent in found:
            try:
                found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
            except OSError:
                continue
        return found

    def processes_as(self, role: str) -> list[int]:
        """The ids of its processes of a role, `core` or `front`."""
        found = []
        for pid in self.processes()[1:]:
            try:
                if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                    found.append(pid)
            except OSError:
                continue
        return found

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log_tail = self.log_tail()
            self.kill()
            pytest.fail(f"the server did not stop within {STOP_SECONDS:.0f} s of SIGTERM\n{log_tail}")
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL to every process of the server at once, as when the machine dies."""
        if self.process is None:
            return
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(STOP_SECONDS)
        self.process = None

    def cli(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `ca-server ARGUMENTS --home HOME`."""
        return run([self.command, *arguments, "--home", self.home], env=self.environment, expect=expect)

    def certificates(self, name: str) -> list[dict[str, Any]]:
        """What the inventory has under a name."""
        return list(json.loads(self.cli("cert", "list", "--name", name, "--json").stdout))

    def log_tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-60:])
