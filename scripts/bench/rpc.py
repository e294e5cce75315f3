#!/usr/bin/env python3
"""How many issue() calls a second the core's port carries: a core of no work, clients in processes of their own.

scripts/bench/rpc.py [--fronts 1] [--concurrency 64] [--calls 20000] [--loop asyncio|uvloop]
"""

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.rpc.client import PortClient
from ca_server.rpc.messages import Operation, OperationTable
from ca_server.rpc.server import serve_unix

TABLE = OperationTable("bench", 1, (Operation("issue", EnrollmentRequest, IssuedCertificate, idempotent=True),))


class IdleCore:
    """Answers at once: what is measured is the port."""

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        now = datetime.now(UTC)
        return IssuedCertificate("0a" * 20, "issuing", 1, request.csr_der * 3, (b"c" * 600,), "p", "h", now, now)


def new_runner(kind: str) -> asyncio.Runner:
    if kind == "uvloop":
        import uvloop  # noqa: PLC0415 - optional

        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()


def front(path: Path, kind: str, concurrency: int, calls: int, results: "multiprocessing.Queue[float]") -> None:
    async def work() -> float:
        client = PortClient(path, TABLE)
        name = Identifier(IdentifierType.DNS, "host.example.internal")
        requester = Requester(Protocol.ACME, "account", "account-key")
        evidence = (ValidatedIdentifier(name, "http-01", datetime.now(UTC)),)
        left = calls

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                request = EnrollmentRequest(
                    requester, "default", b"x" * 300, (name,), f"order-{left}", evidence=evidence
                )
                await client.call("issue", request)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(concurrency)))
        elapsed = time.perf_counter() - started
        await client.close()
        return elapsed

    with new_runner(kind) as runner:
        results.put(runner.run(work()))


async def serve(path: Path, options: argparse.Namespace) -> float:
    server = await serve_unix(path, TABLE, IdleCore(), allowed_uids=frozenset({os.getuid()}))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (path, options.loop, options.concurrency, options.calls, results)
    fronts = [context.Process(target=front, args=arguments) for _ in range(options.fronts)]
    for process in fronts:
        process.start()
    slowest = 0.0
    for _ in fronts:
        slowest = max(slowest, await asyncio.to_thread(results.get))
    for process in fronts:
        await asyncio.to_thread(process.join)
    await server.close()
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fronts", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, new_runner(options.loop) as runner:
        elapsed = runner.run(serve(Path(folder) / "core.sock", options))
    total = options.calls * options.fronts
    print(f"{options.loop}: {options.fronts} fronts x {options.concurrency}: {total / elapsed:,.0f} calls/s")


if __name__ == "__main__":
    main()
