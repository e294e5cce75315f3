"""`ca-server acme limits`: which rate limits are drawn on, and giving one back."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table
from ca_server.core.ports import Done, ResetLimit
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme_limits import StandingLimit

app = typer.Typer(help="List what is taken from rate limits, and give it back.", no_args_is_help=True)


@app.command("list")
def list_limits(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="So many keys at most.")] = 100,
    *,
    refusing: Annotated[bool, typer.Option("--refusing", help="Only keys that have no room now.")] = False,
    json: JsonOption = False,
) -> None:
    """List the keys of rate limits that something was taken from, those that are whole again last first.

    - `ca-server acme limits list`
    - `ca-server acme limits list --refusing --json`
    """

    async def work() -> tuple[StandingLimit, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.limits.standing(datetime.now(UTC), limit, refusing=refusing)

    rows = run(work())
    if json:
        print_json(rows)
        return
    print_table(
        ["key", "refuses", "next at", "whole at"], [[row.key, row.refuses, row.next_at, row.whole_at] for row in rows]
    )


@app.command("reset")
def reset(
    key: Annotated[str, typer.Argument(help="The key, as `acme limits list` shows it.")],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Give one key of one rate limit back what was taken from it, on record.

    - `ca-server acme limits reset default/orders/all`
    """

    async def work() -> Done:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.reset_limit(ResetLimit(key))

    if not run(work()).changed:
        raise CaError(
            ErrorKind.NOT_FOUND, f"nothing is taken from {key!r}; `ca-server acme limits list` names the keys"
        )
    sys.stdout.write(f"reset {key}\n")
