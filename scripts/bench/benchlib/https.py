"""A raw HTTP/1.1 client over one kept TLS connection: as little work as a client can do."""

import asyncio
import ssl
from dataclasses import dataclass

_END = b"\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """An answer; `head` is the status line with the header fields, as received."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> str:
        """A header field's value by its name in lower case; empty where there is none."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip().decode()
        return ""


def insecure_context() -> ssl.SSLContext:
    """TLS without checking the server's certificate: it is not what is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiter: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self.host = b""

    @classmethod
    async def open(cls, host: str, port: int, context: ssl.SSLContext) -> "Connection":
        """Connect and shake hands."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, port, ssl=context)
        connection.host = f"{host}:{port}".encode()
        return connection

    async def request(self, method: bytes, path: bytes, body: bytes = b"") -> Answer:
        """Send and wait for the whole answer. ConnectionError where it was closed."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"%b %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/jose+json\r\nContent-Length: %d\r\n\r\n%b"
            % (method, path, self.host, len(body), body)
        )
        return await self._waiter

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(_END)
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        lowered = head.lower()
        if b"\r\ntransfer-encoding: chunked" in lowered:
            body = _unchunked(self._buffer, end + 4)
            if body is None:
                return
        else:
            at = lowered.find(b"\r\ncontent-length:")
            length = int(lowered[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if head.startswith(b"HTTP/1.1 204") or len(self._buffer) >= end + 4 + length:
                body = bytes(self._buffer[end + 4 : end + 4 + length])
            else:
                return
        self._buffer.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(int(head[9:12]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError(str(error or "closed by the server")))


def _unchunked(buffer: bytearray, at: int) -> bytes | None:
    """The body of a chunked answer, or None while it is not whole."""
    body = bytearray()
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(buffer[at:line].split(b";", 1)[0], 16)
        if len(buffer) < line + 2 + size + 2:
            return None
        if size == 0:
            return bytes(body)
        body += buffer[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
