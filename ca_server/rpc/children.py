"""What a supervised process tells its supervisor and learns from it: readiness, and that the supervisor lives."""

import asyncio
import os
import socket
from collections.abc import Mapping

READY_FD = "CA_SERVER_READY_FD"
LIFELINE_FD = "CA_SERVER_LIFELINE_FD"


def _descriptor(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name, "")
    if not text.isdigit():
        return None
    descriptor = int(text)
    try:
        # Nothing that this process starts shall hold it.
        os.set_inheritable(descriptor, False)
    except OSError:
        return None
    return descriptor


def notify_ready(environment: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor that this process serves; nothing where there is no supervisor. To be called once."""
    descriptor = _descriptor(READY_FD, environment)
    if descriptor is None:
        return
    try:
        os.write(descriptor, b"1")
    except OSError:
        # The supervisor is gone: the lifeline tells.
        return
    finally:
        os.close(descriptor)


async def watch_lifeline(environment: Mapping[str, str] = os.environ) -> None:
    """Return when the supervisor has died, however it died; never where there is none. To be awaited once.

    The supervisor holds the only writing end of a pipe and never writes: end of file means that it is gone.
    """
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    descriptor = _descriptor(LIFELINE_FD, environment)
    if descriptor is None:
        await gone
        return

    def readable() -> None:
        if not gone.done() and not os.read(descriptor, 1):
            gone.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def notify_systemd(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell systemd (sd_notify(3)) a state such as `READY=1`; nothing where it didn't ask."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.sendto(state.encode(), address)
        except OSError:
            # The notification is a courtesy: systemd's own time limit says when it is missed.
            return
