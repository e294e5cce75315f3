"""Answers over HTTP that end: a peer may send interim answers (1xx) without end before the one that is waited for.

To read each costs this process more than it costs the peer to send it, so that the octets of a connection are counted
below the parser.
"""

import asyncio
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

MAX_ANSWER: Final = 65_536
"""Octets of interim answers, header and what is read of the body."""


class EndlessAnswerError(aiohttp.ClientError):
    """There were more octets than any answer to a challenge has, and no final answer among them."""


class _Bounded(asyncio.Protocol):
    """Passes the first octets on and takes no more; a body that was begun can be read as far as it came."""

    def __init__(self, inner: ResponseHandler, transport: asyncio.Transport) -> None:
        self._inner = inner
        self._transport = transport
        self._room = MAX_ANSWER

    def data_received(self, data: bytes) -> None:
        if self._room >= 0:
            self._inner.data_received(data[: self._room])
            self._room -= len(data)
            if self._room < 0:
                self._inner.set_exception(EndlessAnswerError())
        if self._room < 0:
            # again each time: who reads of the body goes on with the connection
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class BoundedResponse(aiohttp.ClientResponse):
    """A response whose connection gives no more than `MAX_ANSWER` octets. `start` may raise EndlessAnswerError."""

    peer = ""
    """Address and port of who answers, once it started."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read up to the header of the final answer."""
        transport, handler = connection.transport, connection.protocol
        if transport is not None and handler is not None:
            transport.set_protocol(_Bounded(handler, transport))
            address, port = (transport.get_extra_info("peername") or ("", ""))[:2]
            self.peer = f"{address} port {port}"
        return await super().start(connection)


def peer_of(response: aiohttp.ClientResponse) -> str:
    """Address and port of who gave a bounded response."""
    return response.peer if isinstance(response, BoundedResponse) else ""
