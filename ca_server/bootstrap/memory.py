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
_TOP = 16 * 1024 * 1024
"""Octets free at the end of the heap that are kept: less would be given back and asked for again all the time."""
_INTERVAL = 10.0
_LONGEST = 60.0
"""Seconds between two looks; longer where the last one gave nothing back, since all of it was in use."""
_WORTH_IT = 32 * 1024 * 1024
"""Octets by which a process must be above the least that it ever had."""


def _c_library() -> Any:
    return ctypes.CDLL(None)


def give_back_large_blocks() -> None:
    """Have blocks of 128 KiB and more always mapped by themselves, and so unmapped when freed (glibc alone)."""
    try:
        mallopt = _c_library().mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _TOP)


async def give_back_memory() -> None:
    """Give free memory back where the process has grown; until cancelled (glibc alone)."""
    try:
        trim = _c_library().malloc_trim
    except (OSError, AttributeError):
        return
    least, wait = resident(), _INTERVAL
    while True:
        await asyncio.sleep(wait)
        before = resident()
        if before - least < _WORTH_IT:
            least, wait = min(least, before), _INTERVAL
            continue
        await asyncio.to_thread(trim, 0)
        after = resident()
        wait = _INTERVAL if before - after >= _WORTH_IT else min(wait * 2, _LONGEST)
        least = min(least, after)
        _log.debug("memory given back", before=before, after=after)


def resident() -> int:
    """Octets of memory that this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
