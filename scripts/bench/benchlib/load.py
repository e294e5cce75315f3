"""Load generators, each run in a process of its own (`load.py KIND JSON`); the result is JSON on standard output."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# In place of this folder, whose modules must not shadow others.
sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import uvloop

from benchlib.client import AcmeClient, FailedError
from benchlib.enrollment import CsrMaker
from benchlib.https import Connection, insecure_context
from benchlib.report import percentile
from benchlib.responders import responding
from benchlib.usage import cpu_seconds

Turn = Callable[[], Awaitable[object]]


def run_load(kind: str, **arguments: Any) -> dict[str, Any]:
    """Run a load generator in a process of its own."""
    command = [sys.executable, __file__, kind, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the load generator {kind} failed")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def _drive(turns: list[Turn], *, warm_up: float, seconds: float, pid: int) -> dict[str, Any]:
    """Let all take turns; what ends between the end of the warm-up and the end is counted."""
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    latencies: list[float] = []
    errors: Counter[str] = Counter()

    async def work(turn: Turn) -> None:
        while (started := time.perf_counter()) < end:
            try:
                await turn()
            except (FailedError, ConnectionError) as error:
                errors[str(error) or type(error).__name__] += 1
                if isinstance(error, ConnectionError):
                    return
                continue
            now = time.perf_counter()
            if begin <= now <= end:
                latencies.append(now - started)

    tasks = [asyncio.create_task(work(turn)) for turn in turns]
    await asyncio.sleep(warm_up)
    before, own = cpu_seconds(pid), time.process_time()
    await asyncio.sleep(seconds)
    after = cpu_seconds(pid)
    own = time.process_time() - own
    await asyncio.wait(tasks, timeout=30)
    done = len(latencies)
    cpu = {role: after[role] - before.get(role, 0.0) for role in after}
    return {
        "done": done,
        "per_second": done / seconds,
        "p50_ms": percentile(latencies, 0.50) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "errors": dict(errors),
        "5xx": sum(count for name, count in errors.items() if name.startswith("5")),
        "cpu_ms_per_item": {role: value / max(done, 1) * 1000 for role, value in cpu.items() if value},
        "cpu_ms_per_item_total": sum(cpu.values()) / max(done, 1) * 1000,
        "generator_cpu_ms_per_item": own / max(done, 1) * 1000,
    }


async def acme(
    directory: str,
    clients: int,
    pid: int,
    warm_up: float,
    seconds: float,
    external: Sequence[str] = (),
    validated: tuple[str, int] | None = None,
) -> dict[str, Any]:
    """Full issuances through ACME; `external` is the external account key of all accounts, its id and its secret.

    `validated` is the challenge type that is really answered, and the port at which.
    """
    context = insecure_context()
    async with AsyncExitStack() as stack:
        responder = None if validated is None else await stack.enter_async_context(responding(*validated))
        all_clients = [AcmeClient(directory, context, responder) for _ in range(clients)]
        for client in all_clients:
            await client.register(external)
        result = await _drive([client.issue for client in all_clients], warm_up=warm_up, seconds=seconds, pid=pid)
    result["bad_nonces"] = sum(client.bad_nonces for client in all_clients)
    for client in all_clients:
        client.close()
    return result


async def https(url: str, clients: int, pid: int, warm_up: float, seconds: float, size: int) -> dict[str, Any]:
    """Plain POSTs of `size` octets."""
    context, where = insecure_context(), urlsplit(url)
    assert where.hostname
    connections = [await Connection.open(where.hostname, where.port or 443, context) for _ in range(clients)]
    body = b"x" * size

    def turn(connection: Connection) -> Turn:
        return lambda: connection.request(b"POST", b"/", body)

    result = await _drive([turn(each) for each in connections], warm_up=warm_up, seconds=seconds, pid=pid)
    for connection in connections:
        connection.close()
    return result


async def port(socket: str, clients: int, pid: int, warm_up: float, seconds: float) -> dict[str, Any]:
    """CSR to stored certificate through the core's port."""
    from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester, ValidatedIdentifier  # noqa: PLC0415
    from ca_server.domain.errors import CaError  # noqa: PLC0415
    from ca_server.domain.ids import new_id  # noqa: PLC0415
    from ca_server.domain.names import dns_identifier  # noqa: PLC0415
    from ca_server.rpc.client import RpcCorePort  # noqa: PLC0415

    core, csrs = RpcCorePort.at(Path(socket)), CsrMaker()
    requester = Requester(Protocol.ACME, "bench", "jws")

    async def turn() -> None:
        name = csrs.name()
        identifier = dns_identifier(name)
        request = EnrollmentRequest(
            requester,
            "default",
            csrs.csr(name),
            (identifier,),
            new_id(),
            evidence=(ValidatedIdentifier(identifier, "http-01", datetime.now(UTC)),),
            request_id=name,
        )
        try:
            await core.issue(request)
        except CaError as error:
            raise FailedError(f"500 {error.kind.value}: {error.detail}") from error

    result = await _drive([turn] * clients, warm_up=warm_up, seconds=seconds, pid=pid)
    await core.close()
    return result


async def token(home: str, label: str, clients: int, pid: int, warm_up: float, seconds: float) -> dict[str, Any]:
    """Signatures alone, from the token's worker threads as the core uses them."""
    from ca_server.bootstrap.token import open_token  # noqa: PLC0415
    from ca_server.configuration import load_settings  # noqa: PLC0415
    from ca_server.settings import Home  # noqa: PLC0415

    place = Home(Path(home))
    keys = await open_token(place, load_settings(place.configuration))
    key = await keys.find(label)
    data = b"d" * 500
    result = await _drive([lambda: key.sign(data)] * clients, warm_up=warm_up, seconds=seconds, pid=pid)
    await keys.close()
    return result


KINDS = {"acme": acme, "https": https, "port": port, "token": token}

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(KINDS[sys.argv[1]](**json.loads(sys.argv[2])))))
