"""`ca-server eab`: external account keys, which let ACME accounts in."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    open_settings,
    run,
)
from ca_server.cli.output import print_json, print_table
from ca_server.core.ports import CreatedEab, CreateEab, DisableEab, Done
from ca_server.domain.accounts import EabKey
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(help="Create, list and disable external account keys (RFC 8555 section 7.3.4).", no_args_is_help=True)


@app.command("create")
def create(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    profile: Annotated[str | None, typer.Option(help="Good for this profile's directory only.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who gets it: a person, a team, a ticket.")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=3650, help="Expires after so many days.")] = None,
    *,
    reusable: Annotated[bool, typer.Option("--reusable", help="Lets in any number of accounts, not just one.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a key and print it with its HMAC secret: this once, and never again.

    - `ca-server eab create --owner "web team" --days 7`
    - `ca-server eab create --profile short --reusable --json`
    """

    async def work() -> CreatedEab:
        place, effective = open_settings(home, settings)
        lifetime = None if days is None else timedelta(days=days).total_seconds()
        async with open_admin(place, effective) as admin:
            return await admin.create_eab(CreateEab(profile, owner, reusable, lifetime))

    made = run(work())
    if json:
        print_json({"hmac_key": made.hmac_key, **_summary(made.key)})
        return
    sys.stdout.write(f"kid:      {made.key.kid}\nhmac key: {made.hmac_key}\n")
    sys.stdout.write(f"certbot:  --eab-kid={made.key.kid} --eab-hmac-key={made.hmac_key}\n")


@app.command("list")
def list_keys(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """List the keys, newest first; never their secrets.

    - `ca-server eab list`
    """

    async def work() -> tuple[EabKey, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.eab.eab_keys()

    rows = [_summary(key) for key in run(work())]
    if json:
        print_json(rows)
        return
    columns = ("kid", "status", "profile", "owner", "reusable", "uses", "created_at", "expires_at", "last_used_at")
    print_table([column.replace("_", " ") for column in columns], [[row[column] for column in columns] for row in rows])


@app.command("disable")
def disable(
    kid: Annotated[str, typer.Argument(help="The key's id.")],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Disable a key: accounts that it let in stay.

    - `ca-server eab disable KID`
    """

    async def work() -> Done:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            known = await stores.eab.eab(kid)
        if known is None:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no key {kid!r}; `ca-server eab list` names them")
        async with open_admin(place, effective) as admin:
            return await admin.disable_eab(DisableEab(kid))

    if not run(work()).changed:
        raise CaError(ErrorKind.CONFLICT, f"the key {kid!r} was disabled before")
    if json:
        print_json({"kid": kid, "status": "disabled"})
    else:
        sys.stdout.write(f"disabled {kid}\n")


def _status(key: EabKey) -> str:
    if key.disabled_at is not None:
        return "disabled"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "used" if key.uses and not key.reusable else "usable"


def _summary(key: EabKey) -> dict[str, object]:
    return {
        "kid": key.kid,
        "status": _status(key),
        "profile": key.profile,
        "owner": key.owner,
        "reusable": key.reusable,
        "uses": key.uses,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "disabled_at": key.disabled_at,
        "last_used_at": key.last_used_at,
    }
