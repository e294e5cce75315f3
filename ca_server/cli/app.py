"""The `ca-server` command put together, and how its errors end."""

import sys

import typer
from typer.main import get_command

from ca_server import telemetry
from ca_server.cli import audit, cert, config, crl, doctor, eab, issuer, server
from ca_server.cli.common import fail
from ca_server.domain.errors import CaError, ConfigurationError

app = typer.Typer(
    name="ca-server",
    help=(
        "An internal certificate authority: ACME, OCSP and CRL over one signing core whose keys stay in a PKCS#11 "
        "token.\n\nStart with `ca-server init`, then `ca-server serve`. Every command takes --home (default "
        "~/.ca-server); every command that reads takes --json."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
server.register(app)
app.add_typer(issuer.app, name="issuer")
app.add_typer(cert.app, name="cert")
app.add_typer(crl.app, name="crl")
app.add_typer(eab.app, name="eab")
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
doctor.register(app)


def main() -> None:
    """Run the command line; what an operator did wrong is one line on standard error and an exit code."""
    telemetry.configure_logging("console", "warning", process="cli")
    try:
        get_command(app)()
    except ConfigurationError as error:
        fail(str(error), code=2)
    except CaError as error:
        fail(error.detail + (f" (rule {error.rule})" if error.rule else ""), code=1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied; run as the owner of the home or as root", code=2)
    except KeyboardInterrupt:
        sys.exit(130)
