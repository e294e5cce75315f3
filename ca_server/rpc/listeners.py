"""TCP listeners: bound once by the supervisor, inherited by every front, so that a restart refuses nobody."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ca_server.domain.errors import ConfigurationError

LISTENER_FDS = "CA_SERVER_LISTENER_FDS"
_BACKLOG = 1024
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A named listener. `host` is an address or a name; `*` or nothing is every address of both families."""

    name: str
    host: str
    port: int
    backlog: int = _BACKLOG


def bind_listeners(specs: Iterable[ListenerSpec]) -> dict[str, tuple[socket.socket, ...]]:
    """Bind and listen: all, or none and ConfigurationError with the listener, the address and what to do.

    The sockets do not block and are not inherited until they are handed to a child.
    """
    bound: dict[str, tuple[socket.socket, ...]] = {}
    wanted = tuple(specs)
    for spec in wanted:
        if sum(other.name == spec.name for other in wanted) > 1:
            raise ConfigurationError("listeners", spec.name, None, "is there twice")
    try:
        for spec in wanted:
            bound[spec.name] = _bind(spec)
    except BaseException:
        for sockets in bound.values():
            for opened in sockets:
                opened.close()
        raise
    return bound


def _bind(spec: ListenerSpec) -> tuple[socket.socket, ...]:
    if not 0 <= spec.port <= _LAST_PORT:
        raise ConfigurationError(f"listeners.{spec.name}", "port", spec.port, f"is no port: choose 0 to {_LAST_PORT}")
    if spec.host in {"", "*"}:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(_NoFamilyError):
                return (_listen(spec, socket.AF_INET6, ("::", spec.port), dual=True),)
        return (_listen(spec, socket.AF_INET, ("0.0.0.0", spec.port)),)  # noqa: S104 - what the operator asked for
    addresses = _resolve(spec)
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            # With port 0 all addresses of one name share the port that the first was given.
            wanted = sockets[0].getsockname()[1] if sockets and spec.port == 0 else address[1]
            # localhost resolves to ::1 on machines that have no IPv6 too.
            with contextlib.suppress(_NoFamilyError):
                sockets.append(_listen(spec, family, (address[0], wanted, *address[2:])))
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    if not sockets:
        raise ConfigurationError(f"listeners.{spec.name}", "address", spec.host, "is not an address of this machine")
    return tuple(sockets)


def _resolve(spec: ListenerSpec) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(spec.host, spec.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigurationError(
            f"listeners.{spec.name}", "address", spec.host, "is neither address nor name"
        ) from error
    return sorted({(int(family), address) for family, _, _, _, address in found}, key=repr)


class _NoFamilyError(Exception):
    """The machine has no such address."""


def _listen(spec: ListenerSpec, family: int, address: tuple[object, ...], *, dual: bool = False) -> socket.socket:
    shown = f"{spec.host or '*'} port {spec.port}"
    where = f"listeners.{spec.name}"
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _NoFamilyError from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        listener.bind(address)
        listener.listen(spec.backlog)
    except OSError as error:
        listener.close()
        if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise _NoFamilyError from error
        if error.errno == errno.EADDRINUSE:
            remedy = "is in use: stop what listens there, or choose another port"
        elif error.errno in {errno.EACCES, errno.EPERM}:
            remedy = "is not permitted: choose a port from 1024 on, start as root or grant CAP_NET_BIND_SERVICE"
        else:
            remedy = f"can't be bound: {error.strerror}"
        raise ConfigurationError(where, "address", shown, remedy) from error
    return listener


def listener_environment(sockets: Mapping[str, tuple[socket.socket, ...]]) -> dict[str, str]:
    """What tells a child which descriptors are which listener's: `https=5,http=6`."""
    return {LISTENER_FDS: ",".join(f"{name}={s.fileno()}" for name, group in sockets.items() for s in group)}


def inherited_sockets(environment: Mapping[str, str] = os.environ) -> dict[str, tuple[socket.socket, ...]]:
    """The listeners that the supervisor handed to this process, by name; a name may have several sockets.

    To be called once: the returned objects own the descriptors. Raises ConfigurationError where what the environment
    tells is not so.
    """
    text = environment.get(LISTENER_FDS, "")
    sockets: dict[str, tuple[socket.socket, ...]] = {}
    for entry in filter(None, text.split(",")):
        name, _, number = entry.partition("=")
        try:
            inherited = socket.socket(fileno=int(number))
            inherited.set_inheritable(False)
        except (OSError, ValueError) as error:
            raise ConfigurationError("environment", LISTENER_FDS, entry, "is no inherited listener") from error
        inherited.setblocking(False)
        sockets[name] = (*sockets.get(name, ()), inherited)
    return sockets
