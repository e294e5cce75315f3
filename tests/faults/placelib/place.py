"""The outside of `inside/sitecustomize.py`: hands code to the next front that starts, and waits for what it says."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from interoplib.server import Server

INSIDE = Path(__file__).parent / "inside"
EMPTY = "GIVEN: dict[str, Any] = {}"
PATIENCE = 60.0


class Place:
    """The place of a front of one server."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        folder.chmod(0o777)
        paths = [str(INSIDE), os.environ.get("PYTHONPATH", "")]
        server.environment["PLACE_FOLDER"] = str(folder)
        server.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def pid(self, role: str) -> int:
        """The process of a running server: `core` or `front`."""
        for pid in self._server.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "process" in words[:-1] and words[words.index("process") + 1] == role:
                return pid
        raise AssertionError(f"there is no {role}")

    def run(self, code: Path, **given: Any) -> Any:
        """What the code's `result` is; it finds what it is given in GIVEN. The running front dies, the next runs it."""
        source = code.read_text("utf-8")
        assert EMPTY in source
        (self._folder / "result.json").unlink(missing_ok=True)
        draft = self._folder / "code.draft"
        draft.write_text(source.replace(EMPTY, EMPTY.removesuffix("{}") + repr(given)))
        draft.chmod(0o644)
        draft.rename(self._folder / "code.py")
        os.kill(self.pid("front"), signal.SIGKILL)
        self._until((self._folder / "result.json").exists)
        self._until(self._server.is_ready)
        told = json.loads((self._folder / "result.json").read_text())
        assert "traceback" not in told, told["traceback"]
        return told

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self._server.log_tail()
            time.sleep(0.05)
