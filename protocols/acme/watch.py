"""Whether the core takes changes: while it is read-only, nothing of ours may be written either.

A database that was rolled back must stay as it was found: accounts and orders that a front adds to it would be lost
with it, and their events would fork the log.
"""

import asyncio

import structlog

from ca_server.core.ports import CorePort, Ping
from ca_server.domain.errors import CaError, ErrorKind

_log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
RETRY_AFTER = 300


class CoreWatch:
    """Asks the core how it is, once a second; `_read_only` is None until it first answered."""

    def __init__(self, core: CorePort) -> None:
        self._core = core
        self._read_only: bool | None = None

    def check(self) -> None:
        """Raise UNAVAILABLE unless the core, when it last answered, took changes."""
        if self._read_only is None:
            raise CaError(ErrorKind.UNAVAILABLE, "this CA is starting")
        if self._read_only:
            raise CaError(
                ErrorKind.UNAVAILABLE, "this CA is read-only until its operators act", retry_after=RETRY_AFTER
            )

    async def run(self) -> None:
        """Look until cancelled. A core that is away is not known to be read-only: what it said last stands."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Ask once."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                health = await self._core.ping(Ping())
        except (CaError, TimeoutError):
            return
        if health.read_only != bool(self._read_only):
            _log.warning("the core is read-only" if health.read_only else "the core takes changes again")
        self._read_only = health.read_only
