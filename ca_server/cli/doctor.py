"""`ca-server doctor`: is everything as it should be?"""

from typing import Annotated

import typer

from ca_server.bootstrap.checkup import Check, Verdict, check_up
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table

_MARKS = {Verdict.GOOD: "ok", Verdict.WARNING: "WARN", Verdict.BAD: "FAIL"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    disk: Annotated[int, typer.Option("--min-free-mb", min=1, help="Free disk space to insist on.")] = 500,
    *,
    json: JsonOption = False,
) -> None:
    """Check token, database, clock, CRLs, responder certificates, CAA lookups, disk and permissions.

    Exit code 0: all is well (warnings included); 1: something needs you.

    - `ca-server doctor`
    - `ca-server doctor --json --min-free-mb 100`
    """

    async def work() -> list[Check]:
        place, effective = open_settings(home, settings)
        return await check_up(place, effective, minimum_free=disk * 1024 * 1024)

    checks = run(work())
    if json:
        print_json(checks)
    else:
        print_table(("", "check", "found"), [(_MARKS[check.verdict], check.name, check.found) for check in checks])
    if any(check.verdict is Verdict.BAD for check in checks):
        raise typer.Exit(1)
