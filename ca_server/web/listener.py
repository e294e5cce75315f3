"""Serving an application on sockets bound elsewhere: bounded connections, TLS, and a drain that loses nobody."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence

from aiohttp import web

from ca_server import telemetry
from ca_server.web.connection import GuardedConnection, describe_handshake_error
from ca_server.web.crowd import Crowd, origin
from ca_server.web.middleware import STATE
from ca_server.web.options import WebOptions

_ACCEPT_BATCH = 64
_RECEIVE_BUFFER = 32 * 1024
"""Octets that the kernel keeps of one client (twice as many, by its own count): one turn of the event loop for one
client is no longer than it takes to parse them, and thousands of clients can't fill the kernel's memory."""
_SEND_BUFFER = 128 * 1024
_FRESH_GRACE = 1.0
"""Seconds that a connection without a request yet is given for one when the listener drains."""
_LAST_GRACE = 0.5
"""Seconds for what is still there after the drain, before it is cancelled."""
_POLL = 0.02


class ListenerRunner:
    """A served listener. All fields are owned by the event loop.

    Connections are counted from accept on, TLS handshakes included. When there are too many, `Crowd` says which go;
    where all of them work, nobody is accepted: who comes waits in the kernel's queue, from which the other fronts of
    the same socket take.
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
        self._handshakes: dict[GuardedConnection, asyncio.Task[None]] = {}
        self._open: set[GuardedConnection] = set()
        self._crowd: Crowd[GuardedConnection] = Crowd(options.max_connections, options.max_connections_per_address)
        """Those of `_open` that were not told to go."""
        self._accepting = False
        self._closed = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each socket."""
        return [each.getsockname()[:2] for each in self._sockets]

    @property
    def connection_count(self) -> int:
        """Open connections, those in their handshake included."""
        return len(self._open)

    async def start(self) -> None:
        """Start the application and accept."""
        await self._runner.setup()
        for each in self._sockets:
            each.setblocking(False)
            # What is accepted has these too.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._resume()

    # --- Coming -------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        if not self._accepting and not self._state.draining and self._crowd.can_grow:
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
            if not self._crowd.can_grow:
                self._state.refused("full", "too many connections that all work", limit=self._options.max_connections)
                self._pause()
                return
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors or memory left: to try again at once would only spin.
                self._state.refused("descriptors", "can't accept", error=error.strerror)
                self._evict(None)
                self._pause()
                self._loop.call_later(1.0, self._resume)
                return
            accepted.setblocking(False)
            address = origin(peer[0])
            if self._make_room(address):
                self._admit(accepted, address)
            else:
                accepted.close()

    def _make_room(self, address: str) -> bool:
        """Let go whoever has to for one more of an address; false where it has its share, and all of that works."""
        if self._crowd.has_share(address):
            if not self._evict(address):
                self._state.refused("address", "too many connections of one address", remote=address)
                return False
        elif self._crowd.is_full:
            self._evict(None)
        return True

    def _evict(self, address: str | None) -> bool:
        """Let go who has waited longest, of an address or of the one with the most that wait."""
        connection = self._crowd.longest_waiting(address)
        if connection is None:
            return False
        self._state.refused("evicted", "connection closed for another", remote=self._crowd.address_of(connection))
        self._crowd.leave(connection)
        handshake = self._handshakes.get(connection)
        if handshake is not None:
            handshake.cancel()
        else:
            connection.evict()
        return True

    def _admit(self, accepted: socket.socket, address: str) -> None:
        server = self._runner.server
        if server is None or self._closed:
            accepted.close()
            return
        connection = GuardedConnection(server, self._state, self, loop=self._loop)
        telemetry.HTTP_CONNECTIONS.labels(self._state.name).inc()
        self._open.add(connection)
        self._crowd.enter(connection, address)
        task = self._loop.create_task(self._begin(connection, accepted))
        self._handshakes[connection] = task
        task.add_done_callback(lambda _task: self._handshakes.pop(connection, None))

    async def _begin(self, connection: GuardedConnection, accepted: socket.socket) -> None:
        """Make a connection of an accepted socket, TLS handshake included."""
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
        except (OSError, asyncio.CancelledError) as error:
            if connection.made:
                connection.evict()
                return
            if not isinstance(error, asyncio.CancelledError):
                self._state.refused("handshake", "handshake failed", why=describe_handshake_error(error))
            accepted.close()
            self.on_closed(connection)

    # --- Staying and going --------------------------------------------------------------------------------------

    def on_working(self, connection: GuardedConnection) -> None:
        """It has a request."""
        self._crowd.work(connection)

    def on_waiting(self, connection: GuardedConnection) -> None:
        """It waits for a request, and can go for another."""
        self._crowd.wait(connection)
        self._resume()

    def on_closed(self, connection: GuardedConnection) -> None:
        """It is no more, and another may come."""
        if connection in self._open:
            telemetry.HTTP_CONNECTIONS.labels(self._state.name).dec()
            self._open.discard(connection)
            self._crowd.leave(connection)
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
            for connection in list(self._open):
                # A client that has begun to send a request is let finish; every answer closes its connection now.
                if connection.idle and (connection.used or fresh_too):
                    connection.force_close()
            if not self._open:
                break
            await asyncio.sleep(_POLL)
        self._closed = True
        for task in list(self._handshakes.values()):
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
