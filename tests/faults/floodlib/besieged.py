"""A staging server with short limits of time, one front, and books about what attacks cost it."""

import contextlib
import json
import re
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from interoplib.server import Server
from ports import free_ports

from floodlib.flood import Memory, descriptors

SECONDS = 3
"""To send a header, a body, or to take an answer."""
SHARE = 200
"""Connections of one address on the listeners `https` and `log`; on `http` the default."""
_PATIENCE = 60.0


class Besieged:
    """The server and its books."""

    def __init__(self, command: Path, folder: Path, settings: tuple[str, ...] = ()) -> None:
        (self.log_port,) = free_ports(1)
        own = ["lint.sample_size=0", f"listeners.log.port={self.log_port}", 'listeners.log.serves=["log"]']
        for listener in ("https", "http", "log"):
            times = ("header_seconds", "body_seconds", "write_seconds")
            own += [f"listeners.{listener}.{each}={SECONDS}" for each in times]
        # Where thousands connect, which may take a while.
        own.append("listeners.http.header_seconds=120")
        own += [f"listeners.{listener}.max_connections_per_address={SHARE}" for listener in ("https", "log")]
        self.server = Server(command, folder, (*own, *settings))
        self.server.init("--staging")
        self.server.start(command, "serve", "--unsafe-skip-validation")
        (self.front,) = self._processes("front")
        (self.core,) = self._processes("core")
        self.memory = Memory(self.front)
        self.core_memory = Memory(self.core)

    def pad_crl(self, size: int) -> None:
        """Serve so many octets of nothing as the issuing CA's CRL."""
        with contextlib.closing(sqlite3.connect(self.server.home / "data" / "ca.db", timeout=30)) as database, database:
            keys = "SELECT k.id FROM issuer_keys k JOIN issuers i ON i.id = k.issuer_id WHERE i.name = 'issuing'"
            database.execute(f"UPDATE crls SET der = zeroblob(?) WHERE issuer_key_id IN ({keys})", (size,))

    def _processes(self, role: str) -> list[int]:
        found = []
        for pid in self.server.processes()[1:]:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "process" in words and role in words:
                found.append(pid)
        return found

    def port(self, listener: str) -> int:
        ports = {"https": self.server.https_port, "http": self.server.http_port, "log": self.log_port}
        return ports[listener]

    # --- Books ----------------------------------------------------------------------------------------------------

    def metrics(self, name: str) -> Counter[tuple[str, ...]]:
        """Values of a metric by its labels' values, in the order of their names."""
        with urllib.request.urlopen(f"{self.server.http_url}/metrics", timeout=30) as response:
            text = response.read().decode()
        found: Counter[tuple[str, ...]] = Counter()
        for labels, value in re.findall(rf"(?m)^{name}{{([^}}]*)}} (\S+)$", text):
            found[tuple(re.findall(r'="([^"]*)"', labels))] += int(float(value))
        return found

    def refused(self) -> Counter[str]:
        """Refusals by listener and reason."""
        return Counter({" ".join(key): value for key, value in self.metrics("ca_server_http_refused_total").items()})

    def connections(self) -> int:
        """Open ones, without that which asks."""
        return self.metrics("ca_server_http_connections").total() - 1

    def descriptors(self) -> int:
        return descriptors(self.front)

    def log_lines(self) -> list[dict[str, object]]:
        """What the server's processes have logged."""
        lines = self.server.log.read_text("utf-8", "replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
