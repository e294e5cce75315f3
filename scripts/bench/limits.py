#!/usr/bin/env python3
"""What attacks on the limits cost: memory of the front, and how long others wait for their certificate meanwhile.

scripts/bench/limits.py [--quick] [--only WORD] [--seconds S] [--json FILE]

Each attack (tests/faults/floodlib/attacker.py, a process of its own) holds for some seconds, while one other client,
from another address, gets one certificate after the other, each over a new connection. Its time per certificate is
set in relation to that of the quiet seconds before the same attack: attackers and server share this machine's cores.
"""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "faults"))

from benchlib.client import AcmeClient
from benchlib.https import insecure_context
from benchlib.report import headline, percentile, table, write_json
from benchlib.servers import CaServer, folder
from benchlib.usage import machine
from floodlib.flood import Flood, Memory, descriptors

_SECONDS = 5
"""The server's limits of time, shorter than its defaults so that the attacks meet them."""
_CRL = 4 * 2**20
_SETTLE = 25.0
"""At most so many seconds until memory is back."""


@dataclass(frozen=True)
class Attack:
    """One row."""

    name: str
    attack: str
    listener: str
    count: int
    options: tuple[str, ...] = ()
    quick: bool = True


_ONCE = ("--once",)
_MANY = ("--once", "--sources", "20")
_ORDER = ("--tls", "--path", "/acme/new-order")
_OCSP = ("--path", "/ocsp", "--type", "application/ocsp-request")
ATTACKS = (
    Attack("10,000 idle, one address, plain", "idle", "http", 10_000, _ONCE),
    Attack("10,000 idle, 20 addresses, plain", "idle", "http", 10_000, _MANY),
    Attack("10,000 handshakes never ended, one address", "idle", "https", 10_000, _ONCE),
    Attack("10,000 handshakes never ended, 20 addresses", "idle", "https", 10_000, _MANY),
    Attack("2,000 idle over TLS, one address", "idle", "https", 2_000, ("--tls", *_ONCE)),
    Attack("8,000 idle over TLS, 20 addresses", "idle", "https", 8_000, ("--tls", *_MANY), quick=False),
    Attack("headers, octet by octet", "slow-headers", "https", 500, ("--tls",)),
    Attack("bodies, octet by octet", "slow-body", "https", 500, _ORDER),
    Attack("OCSP bodies, octet by octet", "slow-body", "http", 500, _OCSP),
    Attack("4,000 header fields", "many-headers", "https", 20, ("--tls",)),
    Attack("header fields of 1 MiB", "huge-header", "https", 20, ("--tls",)),
    Attack("bodies of 1 GB", "huge-body", "https", 20, _ORDER),
    Attack("chunks of one octet", "endless-chunks", "https", 20, _ORDER),
    Attack("trailers without an end", "endless-trailers", "https", 20, _ORDER),
    Attack("pipelined requests, answers not taken", "pipeline", "https", 20, ("--tls", "--path", "/acme/directory")),
    Attack("a CRL of 4 MiB, not taken", "unread", "http", 500, ("--path", "/crl/issuing.crl")),
)


async def issuances(directory: str, seconds: float) -> list[float]:
    """Milliseconds of each certificate, with its connection and account, for so many seconds; at least one."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while not found or time.monotonic() < end:
        begun = time.perf_counter()
        client = AcmeClient(directory, insecure_context())
        await client.register()
        await client.issue()
        client.close()
        found.append((time.perf_counter() - begun) * 1000)
    return found


def measure(server: CaServer, attack: Attack, pid: int, seconds: float) -> dict[str, Any]:
    """One attack, with quiet seconds before it."""
    memory = Memory(pid)
    quiet = asyncio.run(issuances(server.directory, seconds / 2))
    memory.forget_peak()
    before, files = memory.now, descriptors(pid)
    port = server.https_port if attack.listener == "https" else server.http_port
    flood = Flood(attack.attack, port, "--count", str(attack.count), *attack.options)
    with flood:
        open_files = descriptors(pid) - files
        others = asyncio.run(issuances(server.directory, seconds))
    peak, end = memory.peak, time.monotonic() + _SETTLE
    while memory.now > before + 16 and time.monotonic() < end:
        time.sleep(0.5)
    return {
        "connections": open_files,
        "memory_before": before,
        "memory_peak": peak,
        "memory_after": memory.now,
        "descriptors_after": descriptors(pid) - files,
        "quiet_p50_ms": percentile(quiet, 0.5),
        "p50_ms": percentile(others, 0.5),
        "max_ms": max(others),
        "issued": len(others),
        "attacker": flood.done,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    rows = [
        (
            name,
            found["connections"],
            f"{found['memory_before']:.0f}",
            f"{found['memory_peak']:.0f}",
            f"{found['memory_after']:.0f}",
            f"{found['p50_ms'] / found['quiet_p50_ms']:.1f}",
            f"{found['max_ms'] / found['quiet_p50_ms']:.1f}",
            ", ".join(f"{number} {what}" for what, number in sorted(found["attacker"].items())) or "-",
        )
        for name, found in results.items()
    ]
    heads = ("attack", "held", "MiB before", "peak", "after", "another's time, ratio", "longest", "attacker saw")
    print(table(heads, rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, without the largest")
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each attack is held")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    chosen = [each for each in ATTACKS if options.only in each.name and (each.quick or not options.quick)]
    seconds = 3.0 if options.quick else options.seconds
    settings = [
        f"listeners.{name}.{each}={_SECONDS}"
        for name in ("https", "http")
        for each in ("body_seconds", "write_seconds")
    ]
    settings += ["listeners.https.header_seconds=20", "listeners.http.header_seconds=60"]
    results = {}
    with folder(None) as place:
        about = machine(place)
        print(headline(about) + "\n")
        server = CaServer(place / "ca")
        with server.serving(*(part for each in settings for part in ("--set", each))):
            server.pad_crl(_CRL)
            pid = next(pid for role, pid in server.pids().items() if role.startswith("front"))
            for each in chosen:
                results[each.name] = measure(server, each, pid, seconds)
        show(results)
    write_json(options.json, {"machine": about, "results": results})


if __name__ == "__main__":
    main()
