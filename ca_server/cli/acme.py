"""`ca-server acme`: the clients of the ACME front-end, what they asked for, and what they are held to."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ca_server.bootstrap.stores import open_stores
from ca_server.cli import acme_account, acme_order, acme_simulate
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table
from ca_server.store.acme_limits import StandingLimit

app = typer.Typer(help="Look at ACME accounts and orders, and at what they are held to.", no_args_is_help=True)
app.add_typer(acme_order.app, name="order")
app.add_typer(acme_account.app, name="account")
app.command("simulate")(acme_simulate.simulate_order)


@app.command("limits")
def limits(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="So many keys at most.")] = 100,
    *,
    refusing: Annotated[bool, typer.Option("--refusing", help="Only keys that have no room now.")] = False,
    json: JsonOption = False,
) -> None:
    """List the keys of rate limits that something was taken from, those that are whole again last first.

    - `ca-server acme limits`
    - `ca-server acme limits --refusing --json`
    """

    async def work() -> tuple[StandingLimit, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.inventory.limits(datetime.now(UTC), limit, refusing=refusing)

    rows = run(work())
    if json:
        print_json(rows)
        return
    print_table(
        ["key", "refuses", "next at", "whole at"], [[row.key, row.refuses, row.next_at, row.whole_at] for row in rows]
    )
