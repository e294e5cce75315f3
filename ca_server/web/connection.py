"""One HTTP connection with the limits that aiohttp's own lacks, and errors of the parser without stack traces."""

import asyncio
import ssl
from typing import Any, Protocol

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from ca_server.web.middleware import SERVER, ListenerState, plain_response
from ca_server.web.options import WebOptions

_WRITE_BUFFER = 64 * 1024
"""Octets of an answer that wait in this process for a client to take them, before its sender waits too."""
_MAX_LINES = 4096
"""Ends of lines in one body, or in what comes at once: two of each chunk, and chunks are what a body costs."""
_LINE_END = b"\r\n"


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

    __slots__ = ("_header_timer", "_lines", "_made", "_partial", "_payload", "_state", "_watcher", "_write_timer")

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
        self._lines = 0
        self._payload: StreamReader | None = None
        """Of the last request that came."""
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
        # Where an answer is out and its request's body was still coming, the task would wait on for the rest.
        task = None if self._request_in_progress else self._task_handler
        super().connection_lost(exc)
        if task is not None:
            task.cancel()
        self._payload = None
        self._watcher.on_closed(self)

    def data_received(self, data: bytes) -> None:
        if data and not self._count_lines(data):
            self._cut("lines")
            return
        before = self._request_count
        waited = self._waits
        super().data_received(data)
        if self._request_count != before:
            self._partial = False
            self._take_note()
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
            self._watcher.on_working(self)
        elif data and waited:
            self._partial = True
            self._start_header_timer()

    def _take_note(self) -> None:
        """Keep the newest request's payload; what is no HTTP within a body ends that, which the parser does not."""
        if not self._messages:
            return
        message, payload = self._messages[-1]
        if not isinstance(message, RawRequestMessage) and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(web.RequestPayloadError("no HTTP within the body"))
            self._lingering_time = 0.0  # there is no rest of it to be read
        self._payload = payload

    def _count_lines(self, data: bytes) -> bool:
        """Whether what came is cheap enough to be parsed."""
        if self._payload is None or self._payload.is_eof():
            self._lines = 0
        self._lines += data.count(_LINE_END)
        return self._lines <= _MAX_LINES

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
        if isinstance(exc, ConnectionError):
            # The client is gone: there is nobody to answer, and nothing to look into.
            raise exc
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
