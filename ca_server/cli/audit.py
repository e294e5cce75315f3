"""`ca-server audit`: read the log, take it out, and check that nobody altered it."""

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ca_server.bootstrap.logkey import read_log_keys
from ca_server.bootstrap.operator import accept_database
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.certificates import whole_serial
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    open_settings,
    run,
)
from ca_server.cli.output import print_json, print_table, progress_bar
from ca_server.core.audit import leaf_members, prove_serial
from ca_server.core.audit.findings import VerificationReport
from ca_server.core.audit.proof import check_certificate, read_certificate
from ca_server.core.audit.reading import LoggedEvent
from ca_server.core.audit.verify import verify as verify_log
from ca_server.core.audit.witnessed import find_checkpoint
from ca_server.core.notes import MAX_PROOF, InclusionProof
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.anchor import FileAnchor

app = typer.Typer(help="Verify, follow and export the audit log.", no_args_is_help=True)
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="PEM file with the log's public key(s); default log-key.pem in the home.")
]
_FOLLOW_SECONDS = 1.0
MAX_KEPT = 16 * 1024 * 1024
"""Bytes of the longest file in which a checkpoint is looked for: some of a syslog."""
MAX_CERTIFICATE = 1024 * 1024


@app.command("verify")
def verify(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    key: KeyOption = None,
    anchor: Annotated[Path | None, typer.Option(help="The anchor's file; default as configured.")] = None,
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE|-",
            help="A checkpoint kept elsewhere, which the log must extend: a signed note, or lines of syslog (the last "
            "counts); repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    grace: Annotated[float, typer.Option(min=0, help="Seconds that a new event may be without a leaf.")] = 10.0,
    *,
    json: JsonOption = False,
) -> None:
    """Recompute the whole log and hold certificates, revocations and reservations against it.

    Exit code 0 where nothing is wrong, 1 where something is: each finding says what was done, and where. Works on a
    stopped server and beside a running one.

    - `ca-server audit verify`
    - `ca-server audit verify --json`
    """

    async def work() -> VerificationReport:
        place, effective = open_settings(home, settings)
        keys = read_log_keys(key or place.log_key)
        kept = [(f"checkpoint {file}", find_checkpoint(_read(file, MAX_KEPT))) for file in checkpoint]
        path = anchor or (Path(effective.audit.anchor) if effective.audit.anchor else place.anchor)
        async with open_stores(place, effective) as stores:
            with progress_bar("verifying leaves") as progress:
                return await verify_log(
                    stores.audit,
                    keys,
                    anchor=FileAnchor(path),
                    checkpoints=kept,
                    grace=timedelta(seconds=grace),
                    progress=progress,
                )

    report = run(work())
    if json:
        print_json({**msgspec.to_builtins(report, builtin_types=(bytes,)), "ok": report.ok, "root": report.root.hex()})
    else:
        for finding in report.findings:
            sys.stdout.write(f"{finding.kind.value}: {finding.where}: {finding.text}\n")
        if report.omitted:
            sys.stdout.write(f"... and {report.omitted} more\n")
        verdict = "the log is whole" if report.ok else "THE LOG WAS ALTERED OR IS INCOMPLETE"
        sys.stdout.write(
            f"{verdict}: {report.leaves} leaves, {report.checkpoints} checkpoints, {report.events} events, "
            f"{report.certificates} certificates, {report.revocations} revocations, {report.intents} reservations; "
            f"anchored at {report.anchored_size if report.anchored_size is not None else 'nothing'}; "
            f"root {report.root.hex()}\n"
        )
    if not report.ok:
        raise typer.Exit(1)


@app.command("proof")
def proof(
    serial: Annotated[str, typer.Argument(help="The whole serial number in hexadecimal.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: Annotated[
        str | None, typer.Option("--issuer", help="The issuer, where the serial exists under more than one.")
    ] = None,
    key: KeyOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: standard output.")] = None,
) -> None:
    """Write a proof that the issuance of a certificate is in the log, to be checked anywhere (C2SP tlog-proof).

    It carries the event, the way to the root and the signed checkpoint: `audit verify-proof` needs the log's public
    key alone.

    - `ca-server audit proof SERIAL --out proof.txt`
    """

    async def work() -> bytes:
        place, effective = open_settings(home, settings)
        keys = read_log_keys(key or place.log_key)
        async with open_stores(place, effective) as stores:
            return (await prove_serial(stores.audit, whole_serial(serial), keys, issuer=issuer)).encode()

    made = run(work())
    if out is None:
        sys.stdout.buffer.write(made)
    else:
        out.write_bytes(made)


@app.command("verify-proof")
def verify_proof(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|-", help="The proof, as `audit proof` wrote it.", show_default=False)
    ],
    key: Annotated[Path, typer.Option("--key", help="PEM file with the log's public key(s).", show_default=False)],
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="PEM or DER file of the certificate that it must be about.")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Check a proof offline, without home, database or token, and print the event that it proves.

    Exit code 0 where it holds; 1, with the reason, where it does not.

    - `ca-server audit verify-proof proof.txt --key log-key.pem`
    """
    proven = InclusionProof.parse(_read(file, MAX_PROOF))
    head = proven.verify(read_log_keys(key))
    event = leaf_members(proven.extra)
    if certificate is not None:
        check_certificate(event, read_certificate(_read(certificate, MAX_CERTIFICATE)))
    if json:
        told = {"origin": head.origin, "index": proven.index, "size": head.size, "root": head.root.hex()}
        print_json({"ok": True, **told, "event": event})
        return
    sys.stdout.write(proven.extra.decode() + "\n")
    sys.stdout.write(f"in the log: leaf {proven.index} of {head.size} of {head.origin}, root {head.root.hex()}\n")


@app.command("accept-anchor")
def accept_anchor(
    reason: Annotated[str, typer.Option("--reason", help="Why: it is on record.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Take the database as it is, although it does not extend the anchor of its log, on a stopped server.

    The server starts read-only where its database was restored from an older backup, altered, or where the anchor is
    missing. Restore the newer database if there is one. If there is none: revoke again what was revoked since (the
    export of the log tells), then run this. It writes an event with your reason and with what the anchor said, and
    anchors what the database has now.

    - `ca-server audit accept-anchor --reason "restored after the fire, ticket 42"`
    """

    async def work() -> str:
        place, effective = open_settings(home, settings)
        return await accept_database(place, effective, reason)

    sys.stdout.write(run(work()) + "\n")


@app.command("tail")
def tail(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many events.")] = 20,
    kind: Annotated[str | None, typer.Option("--type", help="Of this type, such as issuance.refused.")] = None,
    serial: Annotated[str | None, typer.Option(help="About this serial.")] = None,
    subject: Annotated[str | None, typer.Option("--object", help="About this object, such as acme-order:ID.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events come.")] = False,
    json: JsonOption = False,
) -> None:
    """Show the newest events, oldest first; with --json one object a line: the bytes of its leaf.

    - `ca-server audit tail -n 50`
    - `ca-server audit tail --type issuance.refused --json`
    - `ca-server audit tail --follow` goes on until it is interrupted.
    """
    wanted = _event_type(kind)

    async def work() -> None:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            page = await stores.audit.tail(limit, wanted, serial, subject)
            _show(page, json=json)
            after = page[-1].id if page else ""
            while follow:
                await asyncio.sleep(_FOLLOW_SECONDS)
                page = await stores.audit.tail(1000, wanted, serial, subject, after=after)
                _show(page, json=json, header=False)
                after = page[-1].id if page else after

    run(work())


@app.command("export")
def export(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    first: Annotated[int, typer.Option("--from", min=0, help="Index of the first leaf.")] = 0,
    last: Annotated[int | None, typer.Option("--to", min=0, help="Index of the last leaf.")] = None,
) -> None:
    """Write events in the order of the tree, one JSON object a line: the bytes of each line are those of its leaf.

    - `ca-server audit export > audit.jsonl`
    - `ca-server audit export --from 100 --to 199`
    """

    async def work() -> None:
        place, effective = open_settings(home, settings)
        write: Callable[[bytes], Any] = sys.stdout.buffer.write
        async with open_stores(place, effective) as stores:
            async for leaf in stores.audit.export(first, last):
                write(leaf + b"\n")

    run(work())


def _read(file: Path, limit: int) -> bytes:
    """A file, or standard input for `-`. MALFORMED beyond `limit` bytes."""
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise CaError(ErrorKind.NOT_FOUND, f"{file} can't be read: {error.strerror}") from None
    if len(content) > limit:
        raise CaError(ErrorKind.MALFORMED, f"{file} is longer than {limit} bytes")
    return content


def _event_type(kind: str | None) -> EventType | None:
    if kind is None:
        return None
    try:
        return EventType(kind)
    except ValueError:
        known = ", ".join(each.value for each in EventType)
        raise CaError(ErrorKind.MALFORMED, f"there is no event type {kind!r}; known: {known}") from None


def _show(events: tuple[LoggedEvent, ...], *, json: bool, header: bool = True) -> None:
    if json:
        for event in events:
            sys.stdout.buffer.write(event.leaf + b"\n")
        sys.stdout.buffer.flush()
        return
    rows = []
    for event in events:
        members = leaf_members(event.leaf)
        about = members.get("serial") or members.get("object") or members.get("issuer") or ""
        told = members.get("rule") or ""
        reason = members.get("reason") or ""
        rows.append(
            (
                event.index if event.index is not None else "pending",
                members.get("time"),
                members.get("type"),
                members.get("outcome"),
                members.get("actor"),
                about,
                f"{told} {reason}".strip(),
            )
        )
    if rows:
        print_table(("leaf", "time", "event", "outcome", "actor", "about", "rule, reason"), rows, header=header)
