"""Serving an application on sockets bound elsewhere: bounded connections, TLS, and a drain that loses nobody."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence

import structlog
from aiohttp import web

from ca_server import telemetry
from ca_server.web.connection import GuardedConnection, describe_handshake_error
from ca_server.web.middleware import STATE
from ca_server.web.options import WebOptions

_log = structlog.get_logger(__name__)
_ACCEPT_BATCH = 64
_FRESH_GRACE = 1.0
"""Seconds that a connection without a request yet is given for one when the listener drains."""
_LAST_GRACE = 0.5
"""Seconds for what is still there after the drain, before it is cancelled."""
_POLL = 0.02


class ListenerRunner:
    """A served listener. All fields are owned by the event loop.

    Connections are counted from accept on, TLS handshakes included. At the limit nobody is accepted: who comes waits
    in the kernel's queue, from which the other fronts of the same socket take.
    """

    def __init__(
        self,
        application: web.Application,
        sockets: Sequence[socket.socket],
        ssl_context: ssl.SSLContext | None,
        options: WebOptions,
    ) -> None:
        self._application = application
        self._state = application[STATE]
        self._sockets = list(sockets)
        self._ssl_context = ssl_context
        self._options = options
        self._runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=_LAST_GRACE)
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[GuardedConnection] = set()
        self._accepting = False
        self._closed = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each socket."""
        return [each.getsockname()[:2] for each in self._sockets]

    @property
    def connection_count(self) -> int:
        """Open connections, those in their handshake included."""
        return len(self._handshakes) + len(self._connections)

    async def start(self) -> None:
        """Start the application and accept."""
        await self._runner.setup()
        for each in self._sockets:
            each.setblocking(False)
        self._resume()

    def _resume(self) -> None:
        if not self._accepting and not self._state.draining and self.connection_count < self._options.max_connections:
            self._accepting = True
            for each in self._sockets:
                self._loop.add_reader(each.fileno(), self._accept, each)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for each in self._sockets:
                self._loop.remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            if self.connection_count >= self._options.max_connections:
                _log.warning("too many connections", listener=self._state.name, limit=self._options.max_connections)
                self._pause()
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors or memory left: to try again at once would only spin.
                _log.error("can't accept", listener=self._state.name, reason=error.strerror)
                self._pause()
                self._loop.call_later(1.0, self._resume)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._begin(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._on_begun)

    async def _begin(self, accepted: socket.socket) -> None:
        """Make a connection of an accepted socket, TLS handshake included."""
        server = self._runner.server
        if server is None or self._closed:
            accepted.close()
            return
        telemetry.HTTP_CONNECTIONS.labels(self._state.name).inc()
        connection = GuardedConnection(server, self._state, self._on_closed, loop=self._loop)
        try:
            if self._ssl_context is None:
                await self._loop.connect_accepted_socket(lambda: connection, accepted)
            else:
                await self._loop.connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._ssl_context,
                    ssl_handshake_timeout=self._options.header_seconds,
                    ssl_shutdown_timeout=2.0,
                )
            if connection.transport is not None:
                self._connections.add(connection)
        except (OSError, asyncio.CancelledError) as error:
            telemetry.HTTP_CONNECTIONS.labels(self._state.name).dec()
            telemetry.HTTP_REFUSED.labels(self._state.name, "handshake").inc()
            _log.debug("handshake failed", listener=self._state.name, reason=describe_handshake_error(error))
            accepted.close()

    def _on_begun(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._resume()

    def _on_closed(self, connection: GuardedConnection) -> None:
        telemetry.HTTP_CONNECTIONS.labels(self._state.name).dec()
        self._connections.discard(connection)
        self._resume()

    async def close(self) -> None:
        """Stop accepting, answer what was begun or was accepted, then close; at most `drain_seconds`.

        The sockets are closed in this process alone: who has connected meanwhile waits for another front.
        """
        if self._closed:
            return
        self._pause()
        self._state.draining = True
        started = self._loop.time()
        end = started + self._options.drain_seconds
        fresh_end = min(end, started + _FRESH_GRACE)
        while self._loop.time() < end:
            fresh_too = self._loop.time() >= fresh_end
            for connection in list(self._connections):
                # A client that has begun to send a request is let finish; every answer closes its connection now.
                if connection.idle and (connection.used or fresh_too):
                    connection.force_close()
            if not self._handshakes and not self._connections:
                break
            await asyncio.sleep(_POLL)
        self._closed = True
        for task in list(self._handshakes):
            task.cancel()
        await self._runner.cleanup()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.close()


async def serve_listener(
    application: web.Application,
    sockets: Sequence[socket.socket],
    ssl_context: ssl.SSLContext | None,
    options: WebOptions,
) -> ListenerRunner:
    """Serve an application made by `create_application` on bound, listening sockets; with TLS if a context is given."""
    runner = ListenerRunner(application, sockets, ssl_context, options)
    await runner.start()
    return runner
