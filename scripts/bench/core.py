#!/usr/bin/env python3
"""The core's port alone: CSR to stored certificate over the Unix socket, with everything on, for two kinds of issuer.

scripts/bench/core.py [--quick] [--keys ec-p256,rsa-2048] [--clients 1,64] [--seconds S] [--json FILE]

Beside it, in the same run: what the token's threads sign with the same key, one signature after another and 64 at a
time, and the cost by stage (another run, sampled by py-spy).
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchlib.load import run_load
from benchlib.profiling import profiled, py_spy
from benchlib.report import headline, stages, table, write_json
from benchlib.servers import CHECKOUT, CaServer, folder
from benchlib.usage import machine


def measure(place: Path, key: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float], str]:
    """Port and token with one kind of issuing key; the cost by stage; and the same as text."""
    server = CaServer(place / key, init=["--set", f"issuers.issuing.key={key}"], checkout=options.checkout)
    results = []
    times = {"warm_up": 1.5, "seconds": options.seconds}
    # The token between two rounds of the port: what else the machine does falls on both.
    for clients in options.clients:
        token = {"home": str(server.home), "label": "issuing-1", "clients": clients}
        results.append(
            {"what": f"token, {key}", "clients": clients} | run_load("token", pid=os.getpid(), **token, **times)
        )
        with server.serving():
            assert server.process is not None
            socket = str(server.home / "run" / "core.sock")
            port = {"socket": socket, "clients": clients, "pid": server.process.pid}
            results.append({"what": f"core's port, {key}", "clients": clients} | run_load("port", **port, **times))
    if py_spy() is None:
        return results, {}, "left out: it wants py-spy (pip install py-spy)"
    with server.serving():
        assert server.process is not None
        with profiled({"core": server.pids()["core"]}, sum(times.values())) as profiles:
            port = {"socket": socket, "clients": max(options.clients), "pid": server.process.pid}
            found = run_load("port", **port, **times)
    costs = profiles["core"].costs(found["cpu_ms_per_item"]["core"])
    text = stages(costs)
    if options.functions:
        total = profiles["core"].stages.total()
        text += "".join(f"\n{n / total:6.1%} {name}" for name, n in profiles["core"].functions.most_common(80))
    return results, costs, text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short, with P-256 and 64 clients alone")
    parser.add_argument("--keys", default="ec-p256,rsa-2048")
    parser.add_argument("--clients", default="1,64,256")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--functions", action="store_true", help="cost by function too")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="serve this checkout: for before and after")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--folder", type=Path, help="where to keep homes meanwhile")
    options = parser.parse_args()
    if options.quick:
        options.keys, options.clients, options.seconds = "ec-p256", "64", 4.0
    options.clients = [int(part) for part in options.clients.split(",")]
    everything: dict[str, Any] = {"results": [], "stages": {}}
    with folder(options.folder) as place:
        everything["machine"] = machine(place)
        print(headline(everything["machine"]) + "\n")
        texts = []
        for key in options.keys.split(","):
            results, samples, text = measure(place, key, options)
            everything["results"] += results
            everything["stages"][key] = samples
            texts.append(f"\nCost by stage in the core, {key}:\n{text}")
    rows = []
    for token, port in zip(everything["results"][::2], everything["results"][1::2], strict=True):
        for found in (token, port):
            cells = (f"{found[name]:.1f}" for name in ("per_second", "p50_ms", "p99_ms"))
            share = f"{found['per_second'] / token['per_second']:.2f}" if found is port else ""
            cpu = f"{found['cpu_ms_per_item_total']:.2f}" if found is port else ""
            rows.append((found["what"], found["clients"], *cells, sum(found["errors"].values()), cpu, share))
    print(
        table(("what", "clients", "per s", "p50 ms", "p99 ms", "errors", "server CPU ms", "of the token's rate"), rows)
    )
    print("\n".join(texts))
    write_json(options.json, everything)


if __name__ == "__main__":
    main()
