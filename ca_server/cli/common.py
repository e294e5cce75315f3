"""What all commands share: options, output, and the way to a running or a stopped server."""

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.settings import Home, Settings, load_settings

T = TypeVar("T")

DEFAULT_HOME = Path("~/.ca-server")

HomeOption = Annotated[
    Path, typer.Option("--home", help="The home directory.", envvar="CA_SERVER_HOME", show_default="~/.ca-server")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.", show_default=False),
]
SerialArgument = Annotated[str, typer.Argument(help="Serial number in hexadecimal, as `cert list` shows it.")]
IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="The issuer, where the serial exists under more than one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def home_at(path: Path) -> Home:
    """The home at a path as the operator wrote it."""
    return Home(path.expanduser().resolve())


def open_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[Home, Settings]:
    """Home and effective settings. ConfigurationError."""
    home = home_at(path)
    return home, load_settings(home.configuration, overrides)


def serial_digits(serial: str) -> str:
    """A serial number as people write it (colons, 0x, upper case), as this server does. MALFORMED."""
    text = serial.lower().replace(":", "").removeprefix("0x").lstrip("0")
    if not text or any(digit not in "0123456789abcdef" for digit in text):
        raise CaError(ErrorKind.MALFORMED, f"{serial!r} is no serial number in hexadecimal")
    return text if len(text) % 2 == 0 else "0" + text


def fail(message: str, *, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    sys.stderr.write("ca-server: " + " ".join(message.split()) + "\n")
    sys.exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(work)


def print_json(value: object) -> None:
    """Print a value as JSON: times in RFC 3339, bytes in base64, enums by value."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table; plain, without colour, where the output is no terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def text(value: object) -> str:
    """One value for people."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(str(item) for item in value) or "-"
    return str(value)
