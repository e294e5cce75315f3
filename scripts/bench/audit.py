#!/usr/bin/env python3
"""Measure the audit log: the tree alone, events into the database, the sequencer behind them, and verification.

Prints a table on standard error and JSON on standard output.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ca_server.core.audit import EventFactory, Sequencer, encode_event, verify
from ca_server.core.tlog import Frontier, leaf_hash
from ca_server.domain.audit import EventType
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.migrate import migrate


@dataclass(frozen=True, slots=True)
class Measurement:
    """Events handled in some seconds."""

    what: str
    events: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds


class MemoryKey:
    """Signs without a token, so that the log is measured and not the token."""

    label = "log"
    algorithm = KeyAlgorithm.P256

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.spki_der = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(SHA256()))


def make_events(count: int) -> list:
    factory = EventFactory(node="bench", process="core", software="bench", configuration="0" * 64)
    return [
        factory.make(
            EventType.ISSUANCE_REFUSED,
            actor="acme:account",
            source="192.0.2.1",
            request_id=f"{number:032x}",
            object=f"enrollment:{number}",
            profile="default",
            names=(f"dns:host{number}.example.test",),
            rule="names.dns_suffixes",
            reason="the name is outside of the profile",
        )
        for number in range(count)
    ]


async def timed(what: str, events: int, work: Callable[[], Awaitable[object]]) -> Measurement:
    started = time.perf_counter()
    await work()
    return Measurement(what, events, time.perf_counter() - started)


async def measure(url: str, directory: Path, count: int, together: int) -> list[Measurement]:
    results: list[Measurement] = []

    async def make() -> None:
        made.extend(make_events(count))

    made: list = []
    results.append(await timed("make events", count, make))
    leaves: list[bytes] = []

    async def encode() -> None:
        leaves.extend(encode_event(event) for event in made)

    results.append(await timed("encode leaves", count, encode))
    hashes = [leaf_hash(leaf) for leaf in leaves]
    tree = Frontier()

    async def grow() -> None:
        tree.extend(hashes)
        tree.root()

    results.append(await timed("tree: grow by leaf hashes", count, grow))

    async def hash_and_grow() -> None:
        Frontier().extend(map(leaf_hash, leaves))

    results.append(await timed("tree: hash leaves and grow", count, hash_and_grow))

    await migrate(url)
    database = await Database.open(url)
    store, key, anchor = SqlAuditStore(database), MemoryKey(), FileAnchor(directory / "anchor")
    sequencer = Sequencer(
        store=store,
        coordination=SqlCoordinationStore(database),
        key=key,
        anchor=anchor,
        origin="bench",
        holder="bench",
        interval=0.2,
    )

    async def insert() -> None:
        for first in range(0, count, together):
            await asyncio.gather(*(store.append([event]) for event in made[first : first + together]))

    results.append(await timed(f"commit events, {together} at once", count, insert))
    results.append(await timed("sequencer: leaves, checkpoints, anchor", count, sequencer.run_once))
    before = sequencer.size
    made[:] = make_events(count)
    stop = asyncio.Event()
    task = asyncio.create_task(sequencer.run(stop))

    async def both() -> None:
        await insert()
        stop.set()
        await task

    results.append(await timed("commit with the sequencer behind", count, both))
    assert sequencer.size == before + count
    report = None

    async def check() -> None:
        nonlocal report
        report = await verify(store, [key.spki_der], anchor=anchor)

    results.append(await timed("verify the whole log", before + count, check))
    assert report is not None
    assert report.ok, report.findings
    await database.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--together", type=int, default=100, help="commits that wait at the same moment")
    parser.add_argument("--database", help="URL of an empty database; SQLite in a temporary directory otherwise")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        url = arguments.database or f"sqlite:///{directory}/bench.db"
        results = asyncio.run(measure(url, directory, arguments.events, arguments.together))
    for result in results:
        print(f"{result.what:42} {result.events:9,} {result.seconds:9.3f} s {result.rate:12,.0f}/s", file=sys.stderr)
    about = {"python": platform.python_version(), "cpus": os.cpu_count(), "database": url.split(":")[0]}
    print(json.dumps({**about, "results": [asdict(each) | {"per_second": round(each.rate)} for each in results]}))


if __name__ == "__main__":
    main()
