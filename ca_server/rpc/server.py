"""The serving end of a port: a Unix socket, peers known by the kernel's word, bounded work, coalesced replies."""

import asyncio
import contextlib
import functools
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from ca_server import telemetry
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.rpc.messages import (
    FrameError,
    FrameReader,
    Operation,
    OperationTable,
    RequestEnvelope,
    decode_argument,
    decode_request,
    encode_error,
    encode_result,
)

_log = structlog.get_logger(__name__)
# Finding a child by its labels costs as much as counting.
_in_flight = functools.cache(telemetry.RPC_IN_FLIGHT.labels)
_requests = functools.cache(telemetry.RPC_REQUESTS.labels)
_CREDENTIALS = struct.Struct("3i")
MAX_SOCKET_PATH = 107
"""sun_path has 108 octets, the last of them zero (unix(7))."""

_Handler = Callable[[object], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the socket, by the kernel's word (SO_PEERCRED, unix(7))."""

    uid: int
    gid: int
    pid: int


PEER: ContextVar[Peer | None] = ContextVar("peer", default=None)
"""The peer whose request is being handled; None outside of a port's handler."""


class UnixServer:
    """A port that is being served. Made by `serve_unix`."""

    def __init__(
        self,
        path: Path,
        table: OperationTable,
        handlers: dict[str, _Handler],
        *,
        allowed_uids: frozenset[int],
        max_connections: int,
        max_in_flight: int,
        handler_seconds: float,
    ) -> None:
        self.path = path
        self.table = table
        self.handlers = handlers
        self.allowed_uids = allowed_uids
        self.max_connections = max_connections
        self.max_in_flight = max_in_flight
        self.handler_seconds = handler_seconds
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self._inode: tuple[int, int] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept peers on a bound socket."""
        status = self.path.stat()
        self._inode = (status.st_dev, status.st_ino)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), sock=listener, backlog=self.max_connections
        )

    async def close(self, drain_seconds: float = 10.0) -> None:
        """Stop accepting and reading, finish what was begun within `drain_seconds`, send its replies, then close."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(OSError):
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()
        for connection in list(self.connections):
            connection.stop_reading()
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=drain_seconds)
            for task in late:
                task.cancel()
            if late:
                _log.warning("port requests cut off", port=self.table.name, count=len(late))
                await asyncio.wait(late, timeout=1.0)
        for connection in list(self.connections):
            connection.finish()

    def refused(self, reason: str, **details: object) -> None:
        """Count and log what was refused."""
        telemetry.RPC_REFUSED.labels(self.table.name, reason).inc()
        _log.warning("port refused", port=self.table.name, reason=reason, **details)


class _Connection(asyncio.Protocol):
    """One peer. Owned by the event loop: `in_flight` and `outgoing` change in its callbacks alone."""

    def __init__(self, server: UnixServer) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.peer = Peer(-1, -1, -1)
        self.reader = FrameReader()
        self.in_flight = 0
        self.outgoing: list[bytes] = []
        self.flushing = False
        self.paused = False
        self.write_paused = False
        self.closing = False
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        credentials = transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        pid, uid, gid = _CREDENTIALS.unpack(credentials)
        self.peer = Peer(uid, gid, pid)
        if uid not in self.server.allowed_uids:
            self.server.refused("peer", uid=uid, pid=pid)
            self._abort()
        elif len(self.server.connections) >= self.server.max_connections:
            self.server.refused("connections", uid=uid, pid=pid)
            self._abort()
        else:
            self.server.connections.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        # What is in flight runs on: operations are idempotent, and the peer will ask again.
        self.closing = True
        self.server.connections.discard(self)

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self.reader.feed(data)
        self._take_frames()

    def _take_frames(self) -> None:
        try:
            while not self.closing and not self.write_paused and self.in_flight < self.server.max_in_flight:
                payload = self.reader.next_frame()
                if payload is None:
                    break
                self._begin(decode_request(payload))
        except FrameError as error:
            self.server.refused(error.reason, uid=self.peer.uid, pid=self.peer.pid, detail=str(error))
            self.closing = True
            # Replies to what came before the bad frame are still sent.
            self._flush()
            if self.transport is not None:
                self.transport.close()
        self._throttle()

    def _throttle(self) -> None:
        """Read only while the peer takes its replies and has not too much in flight: back-pressure by the kernel."""
        if self.transport is None or self.transport.is_closing():
            return
        full = self.closing or self.write_paused or self.in_flight >= self.server.max_in_flight
        if full and not self.paused:
            self.paused = True
            self.transport.pause_reading()
        elif self.paused and not full:
            self.paused = False
            self.transport.resume_reading()

    def _begin(self, request: RequestEnvelope) -> None:
        server = self.server
        operation = server.table.operations.get(request.op)
        if request.v != server.table.version:
            server.refused("version", uid=self.peer.uid, version=request.v)
            text = f"this port speaks version {server.table.version}"
            self._reply(encode_error(request.id, CaError(ErrorKind.MALFORMED, text)))
        elif operation is None:
            server.refused("operation", uid=self.peer.uid, operation=request.op)
            self._reply(encode_error(request.id, CaError(ErrorKind.MALFORMED, "no such operation on this port")))
        else:
            try:
                argument = decode_argument(operation, request.body)
            except CaError as error:
                server.refused("argument", uid=self.peer.uid, operation=operation.name)
                self._reply(encode_error(request.id, error))
                return
            self.in_flight += 1
            task = self.loop.create_task(self._handle(operation, request.id, request.rid, argument))
            server.tasks.add(task)
            task.add_done_callback(server.tasks.discard)

    async def _handle(self, operation: Operation, number: int, rid: str, argument: object) -> None:
        """Run one request in a task, and so in a context, of its own."""
        port = self.server.table.name
        PEER.set(self.peer)
        if rid:
            structlog.contextvars.bind_contextvars(request_id=rid)
        _in_flight(port).inc()
        outcome = "ok"
        error: CaError | None = None
        frame = b""
        try:
            async with asyncio.timeout(self.server.handler_seconds):
                result = await self.server.handlers[operation.name](argument)
            frame = encode_result(number, result)
        except CaError as refusal:
            error = refusal
        except TimeoutError:
            _log.error("port request took too long", port=port, operation=operation.name)
            error = CaError(ErrorKind.UNAVAILABLE, "the server took too long")
        except asyncio.CancelledError:
            # Only the drain's limit cancels.
            error = CaError(ErrorKind.UNAVAILABLE, "the server is shutting down", retry_after=2)
        except Exception:  # noqa: BLE001 - logged with its stack; one request must not end the connection of all
            _log.exception("port request failed", port=port, operation=operation.name)
            error = CaError(ErrorKind.INTERNAL, "internal error")
        finally:
            _in_flight(port).dec()
            self.in_flight -= 1
        if error is not None:
            outcome = error.kind.value
            frame = encode_error(number, error)
        _requests(port, operation.name, outcome).inc()
        self._reply(frame)
        if self.paused and not self.closing:
            self._take_frames()

    def _reply(self, frame: bytes) -> None:
        """Queue a reply: all replies of one pass of the event loop leave in one send."""
        self.outgoing.append(frame)
        if not self.flushing:
            self.flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flushing = False
        if self.outgoing and self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self.outgoing))
        self.outgoing.clear()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._throttle()

    def resume_writing(self) -> None:
        self.write_paused = False
        if not self.closing:
            self._take_frames()

    def stop_reading(self) -> None:
        """Begin nothing more."""
        self.closing = True
        self._throttle()

    def finish(self) -> None:
        """Send what is queued and close."""
        self._flush()
        if self.transport is not None:
            self.transport.close()

    def _abort(self) -> None:
        self.closing = True
        if self.transport is not None:
            self.transport.abort()


def bind_unix(path: Path, *, mode: int, group: int | None = None) -> socket.socket:
    """Bind a Unix socket that only its owner and `group` reach from the first moment on.

    Takes the place of a socket that a dead process left. Raises ConfigurationError where the path is too long, is no
    socket, is served by a living process, or can't be written.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigurationError("socket", "path", str(path), f"has more than {MAX_SOCKET_PATH} octets: shorten it")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigurationError("socket", "path", str(path), f"can't be bound: {error.strerror}") from error
    finally:
        os.umask(previous)
    if group is not None:
        os.chown(path, -1, group)
    path.chmod(mode)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError("socket", "path", str(path), f"can't be read: {error.strerror}") from error
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError("socket", "path", str(path), "is there and is no socket: remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigurationError("socket", "path", str(path), f"can't be probed: {error.strerror}") from error
    raise ConfigurationError("socket", "path", str(path), "another process is serving here: stop it first")


async def serve_unix(
    path: Path,
    table: OperationTable,
    handler: object,
    *,
    allowed_uids: frozenset[int],
    mode: int = 0o660,
    group: int | None = None,
    max_connections: int = 64,
    max_in_flight_per_connection: int = 256,
    handler_seconds: float = 60.0,
) -> UnixServer:
    """Serve the operations of `table` on a Unix socket with the methods of `handler` that bear their names.

    Only peers whose uid is in `allowed_uids` are heard; an empty set hears nobody. Handlers find the peer in `PEER`
    and the front-end's request id in structlog's context. Raises ConfigurationError where the socket can't be made,
    TypeError where `handler` lacks a method.
    """
    handlers: dict[str, _Handler] = {}
    for name in table.operations:
        method = getattr(handler, name, None)
        if not callable(method):
            raise TypeError(f"the handler of port {table.name} lacks {name}()")
        handlers[name] = method
    server = UnixServer(
        path,
        table,
        handlers,
        allowed_uids=allowed_uids,
        max_connections=max_connections,
        max_in_flight=max_in_flight_per_connection,
        handler_seconds=handler_seconds,
    )
    await server.start(bind_unix(path, mode=mode, group=group))
    return server
