"""What all commands share: their options, and the way to settings and stores."""

import asyncio
import re
import sys
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from ca_server.configuration import load_settings
from ca_server.domain.profile_rules import parse_duration
from ca_server.settings import Home, Settings

T = TypeVar("T")

DEFAULT_HOME = Path("~/.ca-server")
_DURATION = re.compile(r"[1-9][0-9]{0,6}[smhdw]")

HomeOption = Annotated[
    Path, typer.Option("--home", help="The home directory.", envvar="CA_SERVER_HOME", show_default="~/.ca-server")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def home_at(path: Path) -> Home:
    """The home at a path as the operator wrote it."""
    return Home(path.expanduser().resolve())


def open_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[Home, Settings]:
    """Home and effective settings. ConfigurationError."""
    home = home_at(path)
    return home, load_settings(home.configuration, overrides)


def fail(message: str, *, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    sys.stderr.write("ca-server: " + " ".join(message.split()) + "\n")
    sys.exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(work)


def duration(text: str, option: str) -> timedelta:
    """Read a time such as `30d` or `12h`. BadParameter names the option."""
    if not _DURATION.fullmatch(text):
        raise typer.BadParameter("write a number with s, m, h, d or w, such as 30d", param_hint=option)
    return parse_duration(text)


def one_of(text: str, choices: Sequence[str], option: str) -> str:
    """Check a choice. BadParameter names the option and what there is."""
    if text not in choices:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}", param_hint=option)
    return text
