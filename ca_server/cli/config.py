"""`ca-server config`: check what would be started with."""

import sys

import typer

from ca_server.bootstrap.attestation import load_attestation_roots
from ca_server.bootstrap.profiles import load_profiles
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings
from ca_server.cli.output import print_json

app = typer.Typer(help="Check the configuration.", no_args_is_help=True)


@app.command("check")
def check(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Read configuration and profiles, and say the first thing that is wrong; with --json print all settings.

    - `ca-server config check`
    - `ca-server config check --set acme.require_eab=true --json`
    """
    place, effective = open_settings(home, settings)
    profiles = load_profiles(place, effective)
    load_attestation_roots(place, effective)
    if json:
        print_json({"settings": effective, "profiles": sorted(profiles)})
    else:
        sys.stdout.write(f"{place.configuration}: good; profiles: {', '.join(sorted(profiles))}\n")
