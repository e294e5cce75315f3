"""`ca-server acme`: what the ACME front-end holds its clients to."""

import typer

from ca_server.cli import acme_limits

app = typer.Typer(help="Show what ACME clients are held to, and change it.", no_args_is_help=True)
app.add_typer(acme_limits.app, name="limits")
