"""The operator's way in: the admin socket of a running core, or the core itself while the server is stopped."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ca_server.bootstrap.users import become_core, resolve_users
from ca_server.core.ports import AdminPort
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.rpc.admin import RpcAdminPort
from ca_server.settings import Home, Settings


def is_running(home: Home) -> bool:
    """Whether a core listens on the admin socket of this home. PermissionError for other users than its owner."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(home.admin_socket))
        except (FileNotFoundError, ConnectionRefusedError):
            home.core.stat()  # a closed folder raises here
            return False
    return True


async def accept_database(home: Home, settings: Settings, reason: str) -> str:
    """Take the database as it is where it does not extend the anchor; what was done, in a line.

    CONFLICT while the server runs.
    """
    from ca_server.bootstrap.core import AnchorAcceptance, CoreRuntime  # noqa: PLC0415 - a tenth of every command's start

    if is_running(home):
        raise CaError(ErrorKind.CONFLICT, "the server runs; stop it first")
    actor = f"uid:{os.getuid()}"
    become_core(resolve_users(settings.processes, str(home.configuration)))
    async with CoreRuntime.open(home, settings, process="cli", accept_anchor=AnchorAcceptance(reason, actor)) as core:
        return core.accepted or "nothing to accept: the database extends the anchor"


@asynccontextmanager
async def open_admin(home: Home, settings: Settings) -> AsyncIterator[AdminPort]:
    """Reach the running core, or take the home's lock and be the core for one command."""
    if is_running(home):
        port = RpcAdminPort.at(home.admin_socket)
        try:
            yield port
        finally:
            await port.close()
        return
    from ca_server.bootstrap.core import CoreRuntime  # noqa: PLC0415 - a tenth of every command's start

    actor = f"uid:{os.getuid()}"
    become_core(resolve_users(settings.processes, str(home.configuration)))
    async with CoreRuntime.open(home, settings, process="cli") as core:
        await core.settle_in()
        yield core.admin(lambda: actor)
