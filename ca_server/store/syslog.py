"""A copy of each anchored checkpoint in syslog (RFC 5424), where whoever can alter database and anchor can't reach it.

A copy must never hold up the log: what waits is bounded, the oldest is dropped first (a later checkpoint says all that
an earlier one does), and sending is a thread's work.
"""

import asyncio
import base64
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC
from typing import Final

import structlog

from ca_server.domain.audit import Checkpoint
from ca_server.domain.syslog import SyslogAddress

_log = structlog.get_logger(__name__)

WAITING: Final = 64
"""Checkpoints that wait for a syslog that is away."""
SEND_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0
"""What a stop of the server waits for the last checkpoint to be sent."""
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_AUDIT: Final = 13
_NOTICE: Final = 5
_PRIORITY: Final = _AUDIT * 8 + _NOTICE
_HOST_NAME: Final = 255


def syslog_line(checkpoint: Checkpoint, host: str, process: int) -> bytes:
    """A checkpoint as one message (RFC 5424 section 6): `note` is the signed note in base64, to stay one line."""
    time = checkpoint.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = host if host and host.isascii() and host.isprintable() and " " not in host else "-"
    note = base64.b64encode(checkpoint.note).decode()
    origin = checkpoint.origin.encode("unicode_escape").decode()
    text = f"audit log {origin} size={checkpoint.size} root={checkpoint.root.hex()} note={note}"
    return f"<{_PRIORITY}>1 {time} {name[:_HOST_NAME]} ca-server {process} checkpoint - {text}".encode()


class SyslogAnchor:
    """Sends checkpoints one after the other; `_waiting` is owned by the event loop.

    `observe` is told how each ended: sent, failed (it is tried again) or dropped.
    """

    def __init__(
        self,
        address: SyslogAddress,
        *,
        observe: Callable[[str], None] = lambda _outcome: None,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self._address = address
        self._observe = observe
        self._first_pause = first_pause
        self._host = socket.gethostname()
        self._waiting: deque[Checkpoint] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def publish(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint, to be sent soon. Never blocks, never fails."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._observe("dropped")
        self._waiting.append(checkpoint)
        self._idle.clear()
        self._wake.set()

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name="syslog anchor")

    async def close(self) -> None:
        """Send what waits if that is quick, and end."""
        if self._task is None:
            return
        if not self._failing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), CLOSE_SECONDS)
        if self._waiting:
            _log.warning("checkpoints were not sent to syslog", count=len(self._waiting))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = self._first_pause
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                checkpoint = self._waiting[0]
                if await self._try(checkpoint):
                    pause = self._first_pause
                    # It may have been dropped meanwhile, for a newer one.
                    if self._waiting and self._waiting[0] is checkpoint:
                        self._waiting.popleft()
                else:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
            self._idle.set()

    async def _try(self, checkpoint: Checkpoint) -> bool:
        line = syslog_line(checkpoint, self._host, os.getpid())
        try:
            await asyncio.to_thread(_send, self._address, line)
        except OSError as error:
            self._observe("failed")
            if not self._failing:
                _log.error("syslog is away: checkpoints are not anchored there", error=error.strerror or str(error))
            self._failing = True
            return False
        self._observe("sent")
        if self._failing:
            _log.info("syslog is back", size=checkpoint.size)
        self._failing = False
        return True


def _send(address: SyslogAddress, line: bytes) -> None:
    if address.kind == "tcp":
        with socket.create_connection((address.place, address.port), SEND_SECONDS) as connection:
            # Octet counting (RFC 6587 section 3.4.1).
            connection.sendall(b"%d %b" % (len(line), line))
        return
    family: int = socket.AF_UNIX
    target: str | tuple[object, ...] = address.place
    if address.kind == "udp":
        family, _, _, _, target = socket.getaddrinfo(address.place, address.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as connection:
        connection.settimeout(SEND_SECONDS)
        connection.connect(target)
        connection.send(line)
