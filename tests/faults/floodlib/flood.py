"""An attack under way, and what a process of the server takes meanwhile."""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_PATIENCE = 60.0


class Flood:
    """`attacker.py` at work for as long as this holds; `done` tells afterwards how often what happened."""

    def __init__(self, attack: str, port: int, *options: str) -> None:
        self._argv = [sys.executable, str(Path(__file__).with_name("attacker.py")), attack, "--port", str(port)]
        self._argv += options
        self.done: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.kill()
            raise AssertionError(f"the attack did not begin: {self._argv}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            output, _ = self._process.communicate("", timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        self.done = json.loads(output)


class Memory:
    """The resident memory of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def now(self) -> float:
        return self._read("VmRSS:")

    @property
    def peak(self) -> float:
        """The most since `forget_peak`."""
        return self._read("VmHWM:")

    def forget_peak(self) -> None:
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")

    def _read(self, key: str) -> float:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
