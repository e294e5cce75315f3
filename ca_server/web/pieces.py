"""Large answers, handed to the transport piece by piece: who does not take one costs a piece, not all of it."""

from typing import Any

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

PIECE = 64 * 1024


class _Pieces(Payload):
    """Octets in memory that many answers share."""

    _autoclose = True

    def __init__(self, value: bytes | bytearray, **options: Any) -> None:
        super().__init__(value, **options)
        self._size = len(value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write, waiting for the client after each piece."""
        view = memoryview(self._value)
        for at in range(0, len(view), PIECE):
            await writer.write(view[at : at + PIECE])
            await writer.drain()


def in_pieces(response: web.StreamResponse) -> None:
    """Have a large body that is about to be sent written in pieces; to be called before the headers are out."""
    if not isinstance(response, web.Response) or hdrs.CONTENT_ENCODING in response.headers:
        return
    body = response.body
    if isinstance(body, bytes | bytearray) and len(body) > PIECE:
        response.body = _Pieces(body, content_type=response.content_type)
