"""The `ca-server` command put together, and how its errors end."""

import os
import sys
from importlib import import_module
from typing import Annotated, Final, NoReturn

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from ca_server import telemetry
from ca_server.bootstrap.version import SOFTWARE
from ca_server.cli.common import fail
from ca_server.domain.errors import CaError, ConfigurationError

_HELP = (
    "An internal certificate authority: ACME, OCSP and CRL over one signing core whose keys stay in a PKCS#11 "
    "token.\n\nStart with `ca-server init`, then `ca-server serve`. Every command takes --home (default "
    "~/.ca-server); every command that reads takes --json; `ca-server COMMAND --help` has examples.\n\n"
    "Exit codes: 0 done; 1 refused, not found, or something that needs you; 2 a mistake in command line or "
    "configuration."
)
_MODULES: Final = {
    "server": ("init", "serve", "process"),
    "issuer": ("issuer",),
    "cert": ("cert",),
    "crl": ("crl",),
    "eab": ("eab",),
    "acme": ("acme",),
    "key": ("key",),
    "incident": ("incident",),
    "audit": ("audit",),
    "config": ("config",),
    "db": ("db",),
    "doctor": ("doctor",),
    "systemd": ("systemd-unit",),
}
"""Modules of this package, in the order of the help, with the commands that each has."""


def application(first: str = "") -> typer.Typer:
    """The command line; where its first word is a command's, with that command alone.

    The modules of the others are not loaded: they took half of a command's time.
    """
    app = typer.Typer(
        name="ca-server",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_options)
    wanted = [name for name, commands in _MODULES.items() if first in commands]
    for name in wanted or _MODULES:
        module = import_module(f"ca_server.cli.{name}")
        if hasattr(module, "register"):
            module.register(app)
        else:
            app.add_typer(module.app, name=name)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(SOFTWARE + "\n")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what an operator did wrong is one line on standard error and an exit code."""
    telemetry.configure_logging("console", "warning", process="cli")
    try:
        code = get_command(application(sys.argv[1] if len(sys.argv) > 1 else ""))(standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        _fail_usage(error)
    except ConfigurationError as error:
        fail(str(error), code=2)
    except CaError as error:
        fail(error.detail + (f" (rule {error.rule})" if error.rule else ""), code=1)
    except BrokenPipeError:
        # What stands in the buffer has no reader any more; the interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied; run as the owner of the home or as root", code=2)
    except OSError as error:
        fail(f"{error.filename or 'system'}: {error.strerror or error}", code=1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_usage(error: TyperException) -> NoReturn:
    """A mistake on the command line; a command group without a command shows its help."""
    message = error.format_message()
    if not message.strip() or "Usage:" in message:
        sys.stderr.write(message)
        sys.exit(2)
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context is not None else ""
    fail(message.rstrip(".") + hint, code=2)
