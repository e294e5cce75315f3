"""`ca-server systemd-unit`: how to run it as a service."""

import sys

import typer

from ca_server.bootstrap.unit import systemd_unit
from ca_server.cli.common import DEFAULT_HOME, HomeOption, SetOption, open_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("systemd-unit")(unit)


def unit(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Print a hardened unit for systemd that serves this home: starts, reloads, drains and restarts it.

    It starts as root and gives core and fronts users of their own; docs/service.md has the steps.

    - `ca-server systemd-unit`
    - `ca-server systemd-unit > ca-server.service`
    """
    place, effective = open_settings(home, settings)
    sys.stdout.write(systemd_unit(place, effective))
