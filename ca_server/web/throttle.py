"""A log that a flood can't fill: of each kind of event a few lines in a while, and then how many were left out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LINES = 5
SECONDS = 10.0
_KINDS = 1024


@dataclass(slots=True)
class _Window:
    begun: float
    lines: int = 0
    left_out: int = 0


class LogThrottle:
    """Lets through `lines` events of a kind in `seconds`; the next one after that tells how many it stands for.

    Owned by the event loop. What is left out is counted in a metric by whoever asks: a log is not for counting.
    """

    def __init__(
        self, lines: int = LINES, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[object, _Window] = {}

    def admit(self, kind: object) -> dict[str, Any] | None:
        """Fields to log with the event (`left_out`, where lines were), or None where it is not to be logged."""
        now = self._clock()
        window = self._windows.get(kind)
        if window is None or now - window.begun >= self._seconds:
            if len(self._windows) >= _KINDS:
                self._windows.clear()
            left_out = 0 if window is None else window.left_out
            self._windows[kind] = _Window(now, 1)
            return {"left_out": left_out} if left_out else {}
        if window.lines < self._lines:
            window.lines += 1
            return {}
        window.left_out += 1
        return None
