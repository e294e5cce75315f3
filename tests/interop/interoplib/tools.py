"""Programs that the tests run: found, or the test fails or skips; run with a time limit and their output kept."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
_MUST_HAVE = "CA_SERVER_TESTS_NEED_TOOLS"


def need(program: str) -> str:
    """The path of a program. Without it the test skips, or fails where scripts/test promised to install it."""
    path = shutil.which(program)
    if path is None:
        (pytest.fail if os.environ.get(_MUST_HAVE) else pytest.skip)(f"{program} is not installed")
    return str(path)


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    expect: int | None = 0,
    user: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program without standard input; with `expect`, fail showing all its output unless it exits so."""
    command = [str(part) for part in argv]
    if user is not None:
        command = ["setpriv", f"--reuid={user}", "--regid=ca-server", "--clear-groups", "--", *command]
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if expect is not None and done.returncode != expect:
        pytest.fail(f"{' '.join(command)}\nexited {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}")
    return done
