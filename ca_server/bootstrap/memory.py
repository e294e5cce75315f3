"""Memory that a burst of clients took is given back to the system when they are gone.

The C library keeps what was freed, above all once it has learnt from large buffers that come and go (each TLS
connection has one) to take them from its heap. It is told not to learn that, and to give back what is free.
"""

import asyncio
import ctypes
import os
from pathlib import Path
from typing import Any

import structlog

_log = structlog.get_logger()
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 128 * 1024
_INTERVAL = 10.0
_WORTH_IT = 32 * 1024 * 1024
"""Octets by which a process must have grown for a look at what it might give back."""


def _c_library() -> Any:
    return ctypes.CDLL(None)


def give_back_large_blocks() -> None:
    """Have blocks of 128 KiB and more always mapped by themselves, and so unmapped when freed (glibc alone)."""
    try:
        mallopt = _c_library().mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)


async def give_back_memory() -> None:
    """Give free memory back where the process has grown since the last time; until cancelled (glibc alone)."""
    try:
        trim = _c_library().malloc_trim
    except (OSError, AttributeError):
        return
    least = resident()
    while True:
        await asyncio.sleep(_INTERVAL)
        before = resident()
        if before - least >= _WORTH_IT:
            await asyncio.to_thread(trim, 0)
            least = resident()
            _log.debug("memory given back", before=before, after=least)
        least = min(least, before)


def resident() -> int:
    """Octets of memory that this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
