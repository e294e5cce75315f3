"""How commands print: JSON for programs, tables for people, plain where the output is no terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_UNLIMITED = 100_000
"""Columns of an output that is no terminal: what goes to grep or a file is never wrapped."""


def print_json(value: object) -> None:
    """Print a value as JSON: times in RFC 3339, bytes in base64, enums by value."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, header: bool = True) -> None:
    """Print rows as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        # Text, not markup: what stands in a name or an owner is shown, not obeyed.
        table.add_row(*(Text(text(cell)) for cell in row))
    _print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one thing: a line a field."""
    print_table(("field", "value"), [(name.replace("_", " "), value) for name, value in fields.items()], header=False)


def _print(table: Table) -> None:
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console = Console(width=_UNLIMITED, color_system=None)
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())
    sys.stdout.flush()


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a long work is, on standard error, where that is a terminal; gives what is to be told."""
    with Progress(
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task(what, total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tell


def text(value: object) -> str:
    """One value for people: no character of it moves the cursor or begins a line."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(text(item) for item in value) or "-"
    shown = str(value)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
