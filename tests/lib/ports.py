"""Ports for servers that the tests start: given out once each, to all test processes of the machine.

A port found by binding to 0 is free only until it is closed: the system may give it to another worker's server, or to
an outgoing connection, before the server that it was meant for is up. So ports come from below the range that the
system gives out by itself, in turn, from a counter that all processes share under a lock.
"""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

_COUNTER = Path(tempfile.gettempdir(), f"ca-server-tests-{os.getuid()}.port")
_FIRST = 10_000
_SYSTEM_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_START = 32_768


def free_ports(count: int) -> list[int]:
    """Ports that nothing is bound to, by TCP or by UDP, and that no other caller has been given lately."""
    end = _end()
    descriptor = os.open(_COUNTER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        last = int(os.pread(descriptor, 16, 0) or _FIRST)
        ports: list[int] = []
        for _ in range(end - _FIRST):
            last = last + 1 if _FIRST <= last + 1 < end else _FIRST
            if _is_free(last):
                ports.append(last)
                if len(ports) == count:
                    break
        else:
            raise RuntimeError(f"of the ports {_FIRST} to {end - 1}, fewer than {count} are free")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(last).encode(), 0)
        return ports
    finally:
        os.close(descriptor)


def _end() -> int:
    """The first port that the system gives out by itself, where that leaves room below it."""
    try:
        start = int(_SYSTEM_RANGE.read_text().split()[0])
    except OSError:
        start = _USUAL_START
    return start if start > _FIRST + 1_000 else _USUAL_START


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True
