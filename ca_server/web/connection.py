"""One HTTP connection with the limits that aiohttp's own lacks, and errors of the parser without stack traces."""

import asyncio
import ssl
from typing import Any, Protocol

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong

from ca_server.web.middleware import SERVER, ListenerState, plain_response
from ca_server.web.options import WebOptions

_WRITE_BUFFER = 64 * 1024
"""Octets of an answer that wait in this process for a client to take them, before its sender waits too."""


class Watcher(Protocol):
    """Who is told what becomes of a connection."""

    def on_waiting(self, connection: "GuardedConnection") -> None:
        """It has answered, and waits for a request."""

    def on_working(self, connection: "GuardedConnection") -> None:
        """It has a request."""

    def on_closed(self, connection: "GuardedConnection") -> None:
        """It is no more."""


class GuardedConnection(web.RequestHandler):
    """aiohttp's connection, cut off when headers come too slowly or answers are not taken.

    aiohttp 3.14 closes a connection that idles `keepalive_timeout` after its start or its last answer, even while
    part of a request is there; headers have a stricter limit here, from their first octet on.
    """

    __slots__ = ("_header_timer", "_made", "_partial", "_state", "_watcher", "_write_timer")

    def __init__(
        self,
        server: web.Server,
        state: ListenerState,
        watcher: Watcher,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        options = state.options
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=options.keepalive_seconds,
            max_line_size=options.max_line,
            max_field_size=options.max_header,
            max_headers=options.max_headers,
            lingering_time=2.0,
            # A body is what was sent: nothing that we speak has a content coding, and none can be a bomb.
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._state = state
        self._watcher = watcher
        self._made = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._partial = False

    @property
    def made(self) -> bool:
        """Whether its handshake is over; it may be closed again."""
        return self._made

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._waits and not self._partial

    @property
    def used(self) -> bool:
        """Whether it ever had a request."""
        return self._request_count > 0

    @property
    def _waits(self) -> bool:
        return not self._messages and self._waiter is not None and not self._waiter.done()

    @property
    def _options(self) -> WebOptions:
        return self._state.options

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = True
        super().connection_made(transport)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(_WRITE_BUFFER)
        self._start_header_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._watcher.on_closed(self)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        waited = self._waits
        super().data_received(data)
        if self._request_count != before:
            self._partial = False
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
            self._watcher.on_working(self)
        elif data and waited:
            self._partial = True
            self._start_header_timer()

    def log_access(self, *_args: Any) -> None:
        """Called when an answer is out; the line in the log is the middleware's."""
        if not self._messages and self.transport is not None:
            self._watcher.on_waiting(self)

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self._loop.call_later(self._options.header_seconds, self._cut, "slow_headers")

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self._loop.call_later(self._options.write_seconds, self._cut, "slow_client")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cut(self, reason: str) -> None:
        self._state.refused(reason, "connection cut off", remote=_address(self.peername))
        self.evict()

    def evict(self) -> None:
        """Close without a word, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed: a line in the log, not a stack; what came is not repeated."""
        del message
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out")
        if isinstance(exc, LineTooLong):
            status = 431
        if status >= 500:  # noqa: PLR2004 - server errors
            self.log_exception("connection failed", exc_info=exc)
        what = type(exc).__name__ if exc is not None else ""
        self._state.refused(
            "malformed", "request could not be read", status=status, what=what, remote=_address(self.peername)
        )
        response = plain_response(status, "the request could not be read", close=True)
        response.headers[hdrs.SERVER] = SERVER
        return response


def _address(peername: object) -> str | None:
    return str(peername[0]) if isinstance(peername, tuple) and peername else None


def describe_handshake_error(error: BaseException) -> str:
    """The reason of a failed handshake in OpenSSL's words, without addresses of memory or files."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason
    return type(error).__name__
