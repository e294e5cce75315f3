"""`ca-server incident`: certificates that are to be renewed now."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table
from ca_server.core.ports import CreateIncident, EndIncident
from ca_server.domain.certificates import serial_text
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.incidents import Incident, Scope, Target

app = typer.Typer(help="Have certificates renewed now by clients that ask when to (RFC 9773).", no_args_is_help=True)
Values = list[str]


@app.command("create")
def create(
    reason: Annotated[str, typer.Option(help="Why; it is on record.", show_default=False)],
    serial: Annotated[Values, typer.Option(help="Serial number in hexadecimal; may be repeated.")] = [],  # noqa: B006
    serials: Annotated[
        Path | None, typer.Option(help="A file with a serial number a line.", show_default=False)
    ] = None,
    issuer: Annotated[Values, typer.Option(help="Name of an issuer; may be repeated.")] = [],  # noqa: B006
    profile: Annotated[Values, typer.Option(help="Name of a profile; may be repeated.")] = [],  # noqa: B006
    key: Annotated[Values, typer.Option(help="Label of an issuing key; may be repeated.")] = [],  # noqa: B006
    method: Annotated[Values, typer.Option(help="Challenge such as http-01; may be repeated.")] = [],  # noqa: B006
    explanation_url: Annotated[str, typer.Option(help="A page that tells owners why.", show_default=False)] = "",
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Tell clients to renew, within a day from now, all certificates so far that any of the options names.

    Nothing is revoked. Clients learn of it at their next look, after `acme.renewal_retry_after` at most.

    - `ca-server incident create --reason "weak keys" --serial 5f3a --explanation-url https://ca.example.org/weak`

    - `ca-server incident create --reason "http-01 was wrong" --method http-01`
    """
    texts = [*serial, *(_lines(serials) if serials is not None else ())]
    by_scope = {
        Scope.SERIAL: [_serial(text) for text in texts],
        Scope.ISSUER: issuer,
        Scope.PROFILE: profile,
        Scope.KEY: key,
        Scope.METHOD: method,
    }
    targets = tuple(Target(scope, value) for scope, values in by_scope.items() for value in values)

    async def work() -> Incident:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.create_incident(CreateIncident(reason, targets, explanation_url))

    made = run(work())
    if json:
        print_json(_plain(made))
        return
    sys.stdout.write(f"incident {made.id} begins now; targets: {len(targets)}\n")


@app.command("end")
def end(
    incident: Annotated[
        str, typer.Argument(metavar="INCIDENT", help="The id that `create` and `list` tell.", show_default=False)
    ],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """End an incident: the windows of its certificates are where they were.

    - `ca-server incident end INCIDENT`
    """

    async def work() -> bool:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return (await admin.end_incident(EndIncident(incident))).changed

    if not run(work()):
        raise CaError(ErrorKind.NOT_FOUND, f"there is no incident {incident!r} under way")
    sys.stdout.write(f"ended: {incident}\n")


@app.command("list")
def list_incidents(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """List incidents, newest first.

    - `ca-server incident list`
    """

    async def work() -> tuple[Incident, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.incidents.incidents()

    found = run(work())
    if json:
        print_json([_plain(each) for each in found])
        return
    print_table(
        ("incident", "since", "ended", "targets", "reason"),
        [(each.id, each.created_at, each.ended_at, " ".join(map(str, each.targets)), each.reason) for each in found],
    )


def _plain(incident: Incident) -> dict[str, object]:
    return {
        "id": incident.id,
        "created_at": incident.created_at,
        "ended_at": incident.ended_at,
        "reason": incident.reason,
        "explanation_url": incident.explanation_url,
        "targets": [str(target) for target in incident.targets],
    }


def _serial(text: str) -> str:
    try:
        return serial_text(int(text.replace(":", ""), 16))
    except ValueError:
        raise CaError(ErrorKind.MALFORMED, f"{text!r} is no serial number in hexadecimal") from None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").split()
    except UnicodeDecodeError:
        raise CaError(ErrorKind.MALFORMED, f"{file} is no text") from None
