"""Checks of what runs: the core, the listeners, the token."""

import ipaddress
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from ca_server.bootstrap.checkup.model import Check, bad, good, warning
from ca_server.bootstrap.checkup.records import valid_responders
from ca_server.bootstrap.descriptors import needed
from ca_server.bootstrap.operator import is_running
from ca_server.bootstrap.stores import Stores
from ca_server.bootstrap.token import LOG_LABEL, open_token
from ca_server.bootstrap.users import become_core, resolve_users
from ca_server.core.ports import KeyStore, Ping
from ca_server.domain.certificates import IssuerKind
from ca_server.domain.errors import CaError, ConfigurationError
from ca_server.rpc.admin import RpcAdminPort
from ca_server.settings import Home, Settings

_CONNECT_SECONDS = 3.0
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group of SO_PEERCRED."""


async def server(home: Home) -> Check:
    """What the running core says of itself."""
    try:
        if not is_running(home):
            return warning("server", "not running; ca-server serve")
        port = RpcAdminPort.at(home.admin_socket)
        try:
            health = await port.ping(Ping())
        finally:
            await port.close()
    except PermissionError:
        return warning("server", "not visible to this user; run as root")
    except FileNotFoundError:
        return bad("server", f"{home.core} is missing; restore it from a backup")
    except (CaError, OSError) as error:
        return bad("server", str(error))
    if health.problems:
        return bad("server", "; ".join(health.problems))
    return good("server", f"ready; audit log {health.audit_lag_seconds:.1f} s behind")


def listeners(settings: Settings) -> Iterator[Check]:
    """Somebody accepts connections at every listener."""
    for name, listener in settings.listeners.items():
        address = ipaddress.ip_address(listener.address)
        host = ("::1" if address.version == 6 else "127.0.0.1") if address.is_unspecified else str(address)  # noqa: PLR2004 - IPv6
        place = f"{host} port {listener.port}"
        try:
            socket.create_connection((host, listener.port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            yield bad(f"listener {name}", f"nobody accepts connections at {place}: {error.strerror or error}")
        else:
            yield good(f"listener {name}", f"accepts connections at {place}")


def descriptors(home: Home, settings: Settings) -> Check:
    """A front may open as many files as it may have connections, and some more."""
    name, wanted = "open files", needed(settings)
    limit = _running_limit(home)
    whose = "the running server"
    if limit is None:
        limit, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "a server started from here"
    if limit == resource.RLIM_INFINITY:
        return good(name, f"unlimited for {whose}")
    found = f"{whose} may open {limit}, the listeners' max_connections need {wanted}"
    if limit >= wanted:
        return good(name, found)
    return warning(name, f"{found}; raise LimitNOFILE= or ulimit -Hn, or lower max_connections")


def _running_limit(home: Home) -> int | None:
    """The soft limit of the running core, which is that of the fronts; None where it does not run or can't be seen."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(str(home.admin_socket))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(credentials)[0]
        lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("Max open files")), [])
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None  # noqa: PLR2004 - "Max open files SOFT HARD"


async def token(home: Home, settings: Settings, stores: Stores) -> list[Check]:
    """Log in, as the core's user, and look for every key that is needed."""
    wanted, responders = [LOG_LABEL], []
    for issuer in await stores.issuers.issuers():
        wanted.append(issuer.key.label)
        if issuer.kind is IssuerKind.ISSUING:
            # Where nodes have a token each, the keys of some responders are in another node's.
            responders.append([record.transaction_key for record in await valid_responders(stores, issuer.name)])
    try:
        become_core(resolve_users(settings.processes, str(home.configuration)))
        if not os.access(home.core, os.X_OK):
            return [warning("token", "not visible to this user; run as root")]
        keys: KeyStore = await open_token(home, settings)
    except (CaError, ConfigurationError) as error:
        return [bad("token", str(error))]
    try:
        found = set(await keys.labels())
    except CaError as error:
        return [bad("token", error.detail)]
    finally:
        await keys.close()
    missing = sorted(set(wanted) - found)
    missing += [labels[0] for labels in responders if labels and not found.intersection(labels)]
    if missing:
        return [bad("token", f"keys are missing: {', '.join(missing)}; restore the token from a backup")]
    return [good("token", f"{settings.token.label}: {len(wanted) + sum(map(bool, responders))} keys found")]
