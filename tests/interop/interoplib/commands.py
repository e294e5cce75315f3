"""What tests expect of a command's end: its JSON, or the one line with which it refuses."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interoplib.server import Server
from interoplib.tools import run


def told(server: Server, *arguments: str) -> Any:
    """What a command prints with --json."""
    return json.loads(server.cli(*arguments, "--json").stdout)


def lines_of(server: Server, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints as JSON lines."""
    return [json.loads(line) for line in server.cli(*arguments).stdout.splitlines()]


def refusal(server: Server, *arguments: str, code: int, home: bool = True) -> str:
    """The one line on standard error with which a command ends, and nothing on standard output."""
    tail = ("--home", str(server.home)) if home else ()
    done = run([server.command, *arguments, *tail], expect=code)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ca-server: ")
    return lines[0]


def shell(server: Server, line: str, folder: Path) -> str:
    """Run a line as an operator types it, ca-server on the PATH and the home in the environment."""
    environment = {
        "PATH": f"{server.command.parent}:{os.environ['PATH']}",
        "CA_SERVER_HOME": str(server.home),
    }
    return run(["bash", "-c", f"cd '{folder}' && {line}"], env=environment).stdout


def rows(table: str) -> list[list[str]]:
    """The cells of a table printed for people; columns are two or more spaces apart."""
    return [[cell for cell in line.split("  ") if cell] for line in table.splitlines() if line.strip()]


def column(table: str, position: int = 0) -> Sequence[str]:
    return [row[position].strip() for row in rows(table)]
