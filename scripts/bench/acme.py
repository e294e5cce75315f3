#!/usr/bin/env python3
"""Full ACME issuances a second, beside Pebble, the token's signature rate and a bare HTTPS server, as ratios.

scripts/bench/acme.py [--quick] [--fronts 1,2] [--clients 1,8,32,64] [--seconds S] [--stages] [--json FILE]

Rows "bound by" are of accounts that an external account key let in, held to names, and to quotas too. Rows "validated
by" are for addresses that the server really asks, the load generator's own among them.

An issuance is newOrder, authorization, challenge, finalize and certificate, five signed POSTs over a kept connection,
by an account made beforehand; challenges are valid at once (--unsafe-skip-validation), everything else is as in
production: full sync, audit, lints. The load generator is a process of its own on the same machine.
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
from benchlib.servers import CHECKOUT, BareServer, CaServer, Pebble, folder, pebble_installed
from benchlib.usage import machine

_REQUESTS = 5
_NAMED = ("--names", "*.bench.test", "--names", "10.0.0.0/8")
_PLAIN = "accounts without a key"
_BOUND = {"a key's names": _NAMED, "names and quotas": (*_NAMED, "--quota", "900000 live", "--quota", "900000 per 1d")}
"""What accounts are bound to by external account keys, by the name of the row."""
_BY_HTTP = "validated by http-01"
_PEBBLE_CLIENTS = 8
"""Pebble hangs above this."""
_JWS_SIZE = 450


def measure_server(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The server at each number of fronts and clients; the token's rate once it is stopped."""
    results: dict[str, Any] = {}
    server = CaServer(place / "ca", checkout=options.checkout)
    for fronts in options.fronts:
        with server.serving("--fronts", str(fronts)):
            assert server.process is not None
            for clients in options.clients:
                results[f"ca-server, {fronts} front{'s' if fronts > 1 else ''}", clients] = run_load(
                    "acme", directory=server.directory, clients=clients, pid=server.process.pid, **options.times
                )
        if fronts == options.fronts[0] and options.bound:
            results |= measure_bound(server, fronts, options)
        if fronts == options.fronts[0] and options.validated:
            results |= measure_validated(server, fronts, options)
    results["token, P-256 signatures", 64] = run_load(
        "token", home=str(server.home), label="issuing-1", clients=64, pid=os.getpid(), **options.times
    )
    return results


def measure_bound(server: CaServer, fronts: int, options: argparse.Namespace) -> dict[Any, dict[str, Any]]:
    """The server once more, after a plain run by accounts with an external account key and policy, beside it."""
    clients = max(options.clients)
    rows: dict[Any, dict[str, Any]] = {}
    with server.serving("--fronts", str(fronts)):
        assert server.process is not None
        for name, policy in {_PLAIN: None, **_BOUND}.items():
            external = () if policy is None else server.external_key(*policy)
            rows[f"bound by {name}" if policy else name, clients] = run_load(
                "acme",
                directory=server.directory,
                clients=clients,
                pid=server.process.pid,
                external=external,
                **options.times,
            )
    return rows


def measure_validated(server: CaServer, fronts: int, options: argparse.Namespace) -> dict[Any, dict[str, Any]]:
    """The server once more, asking the applicant: by http-01, and by tls-alpn-01."""
    clients = max(options.clients)
    rows: dict[Any, dict[str, Any]] = {}
    with server.serving("--fronts", str(fronts), validating=True):
        assert server.process is not None
        for validated in server.challenge_ports.items():
            rows[f"validated by {validated[0]}", clients] = run_load(
                "acme",
                directory=server.directory,
                clients=clients,
                pid=server.process.pid,
                validated=validated,
                **options.times,
            )
    return rows


def measure_stages(place: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Cost by stage at 64 clients, in core and front."""
    if py_spy() is None:
        return {}, "\nCost by stage is left out: it wants py-spy (pip install py-spy)"
    server = CaServer(place / "profiled")
    with server.serving(), profiled(server.pids(), sum(options.times.values())) as profiles:
        assert server.process is not None
        result = run_load("acme", directory=server.directory, clients=64, pid=server.process.pid, **options.times)
    found = {role: each.costs(result["cpu_ms_per_item"].get(role, 0.0)) for role, each in profiles.items()}
    text = [f"\nCost by stage, {role}:\n{stages(costs)}" for role, costs in found.items()]
    return found, "\n".join(text)


def measure_others(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Pebble and the bare server."""
    results: dict[str, Any] = {}
    bare = BareServer(place)
    with bare.serving() as pid:
        results["bare aiohttp, requests", 64] = run_load(
            "https",
            url=f"https://127.0.0.1:{bare.port}/",
            clients=64,
            pid=pid,
            size=_JWS_SIZE,
            **options.times,
        )
    if not options.pebble or not pebble_installed():
        print("pebble is left out: it is not installed, or not wanted")
        return results
    for clients in [each for each in options.clients if each <= _PEBBLE_CLIENTS]:
        pebble = Pebble(place)
        with pebble.serving() as pid:
            results["pebble", clients] = run_load(
                "acme", directory=pebble.directory, clients=clients, pid=pid, **options.times
            )
    return results


def show(results: dict[Any, dict[str, Any]]) -> None:
    """The table, then the ratios."""
    rows = [
        (
            name,
            clients,
            f"{found['per_second']:.0f}",
            f"{found['p50_ms']:.1f}",
            f"{found['p99_ms']:.1f}",
            found["5xx"],
            found.get("bad_nonces", "-"),
            sum(found["errors"].values()) - found["5xx"],
            f"{found['cpu_ms_per_item_total']:.2f}",
            f"{found['generator_cpu_ms_per_item']:.2f}",
        )
        for (name, clients), found in results.items()
    ]
    heads = ("what", "clients", "per s", "p50 ms", "p99 ms", "5xx", "badNonce", "other errors")
    print(table((*heads, "server CPU ms", "client CPU ms"), rows))
    own = {key: found for key, found in results.items() if key[0].startswith("ca-server")}
    (_, clients), best = max(own.items(), key=lambda item: item[1]["per_second"])
    ratios = []
    for (name, count), found in results.items():
        if name == "pebble" and (same := own.get(("ca-server, 1 front", count))):
            ratios.append((f"ca-server to pebble, {count} clients", same["per_second"] / found["per_second"]))
        elif name.startswith("bound"):
            ratios.append((f"{name} to {_PLAIN}", found["per_second"] / results[_PLAIN, count]["per_second"]))
        elif name == "validated by tls-alpn-01":
            ratios.append((f"{name} to http-01", found["per_second"] / results[_BY_HTTP, count]["per_second"]))
        elif name == _BY_HTTP and ("ca-server, 1 front", count) in own:
            ratios.append(
                (f"{name} to not validated", found["per_second"] / own["ca-server, 1 front", count]["per_second"])
            )
        elif name.startswith("token"):
            ratios.append((f"issuances at {clients} clients to {name}", best["per_second"] / found["per_second"]))
        elif name.startswith("bare"):
            ratios.append(
                (
                    f"requests at {clients} clients to those of bare aiohttp",
                    best["per_second"] * _REQUESTS / found["per_second"],
                )
            )
    print("\n" + table(("ratio", "value"), [(name, f"{value:.3f}") for name, value in ratios]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short, with 1 front and 8 and 64 clients")
    parser.add_argument("--fronts", default="1,2")
    parser.add_argument("--clients", default="1,8,32,64")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--no-pebble", dest="pebble", action="store_false")
    parser.add_argument("--no-bound", dest="bound", action="store_false", help="without external account keys")
    parser.add_argument("--no-validated", dest="validated", action="store_false", help="without real validations")
    parser.add_argument("--no-others", dest="others", action="store_false", help="the server alone")
    parser.add_argument("--stages", action="store_true", help="cost by stage too, by py-spy")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="serve this checkout: for before and after")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--folder", type=Path, help="where to keep homes meanwhile; what it lies on is measured too")
    options = parser.parse_args()
    if options.quick:
        options.fronts, options.clients, options.seconds = "1", "8,64", 4.0
    options.fronts = [int(part) for part in options.fronts.split(",")]
    options.clients = [int(part) for part in options.clients.split(",")]
    options.times = {"warm_up": 1.5, "seconds": options.seconds}
    with folder(options.folder) as place:
        about = machine(place)
        print(headline(about) + "\n")
        results = measure_server(place, options)
        if options.others:
            results |= measure_others(place, options)
        show(results)
        samples: dict[str, Any] = {}
        if options.stages:
            samples, text = measure_stages(place, options)
            print(text)
    named = [{"what": name, "clients": clients} | found for (name, clients), found in results.items()]
    write_json(options.json, {"machine": about, "results": named, "stages": samples})


if __name__ == "__main__":
    main()
