"""A program that attacks one listener: `attacker.py NAME --port N [--tls] [--count N] ...`.

It prints `ready` when every connection has done its worst once, goes on until its standard input ends, then prints as
JSON how often what happened. A process of its own, so that what it uses is not what is measured.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

_HOST = "127.0.0.1"
_PAUSE = 0.05
"""Seconds between two attempts of one connection: the attack is on limits, not on this machine's processor."""
_RECEIVE_BUFFER = 4096
_PER_SOURCE = 25_000
"""Connections to one port of one source address: its ports end."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Attacker:
    """`done` counts statuses, `closed` and `refused`; owned by the event loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.done: Counter[str] = Counter()
        self._context: ssl.SSLContext | None = None
        if options.tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE
        self._opening = asyncio.Semaphore(64)

    async def connect(self, number: int) -> Stream:
        """Open a connection of the address that is this one's."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.setblocking(False)
        try:
            raw.bind((f"127.0.{self.options.network}.{1 + number % self.options.sources}", 0))
            await asyncio.get_running_loop().sock_connect(raw, (_HOST, self.options.port))
            return await asyncio.open_connection(
                sock=raw, ssl=self._context, server_hostname=_HOST if self._context else None
            )
        except BaseException:
            raw.close()
            raise

    async def run(
        self, number: int, attack: Callable[["Attacker", Stream, asyncio.Event], Awaitable[str]], ready: asyncio.Event
    ) -> None:
        """One connection after the other, or a single one."""
        while True:
            try:
                async with self._opening:
                    stream = await self.connect(number)
            except OSError:
                self.done["refused"] += 1
                ready.set()
            else:
                try:
                    outcome = await attack(self, stream, ready)
                except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                    outcome = "closed"
                finally:
                    stream[1].transport.abort()
                self.done[outcome] += 1
                ready.set()
            if self.options.once:
                return
            await asyncio.sleep(_PAUSE)


async def _outcome(reader: asyncio.StreamReader) -> str:
    """The status of the answer, or `closed`."""
    line = await reader.readline()
    return line.split()[1].decode() if line.startswith(b"HTTP/") else "closed"


async def idle(_attacker: Attacker, stream: Stream, ready: asyncio.Event) -> str:
    """Connect, and no more."""
    ready.set()
    return await _outcome(stream[0])


async def slow_headers(_attacker: Attacker, stream: Stream, ready: asyncio.Event) -> str:
    """A header field without an end, octet by octet."""
    reader, writer = stream
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
    answer = asyncio.ensure_future(_outcome(reader))
    ready.set()
    try:
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.25)
        return await answer
    finally:
        answer.cancel()


async def slow_body(attacker: Attacker, stream: Stream, ready: asyncio.Event) -> str:
    """A body of as much as is allowed, octet by octet."""
    reader, writer = stream
    writer.write(_head(attacker, b"Content-Length: 10000"))
    answer = asyncio.ensure_future(_outcome(reader))
    ready.set()
    try:
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.25)
        return await answer
    finally:
        answer.cancel()


async def many_headers(_attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """Thousands of header fields."""
    return await _pour(stream, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 4_000)


async def huge_header(_attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """A header field of a mebibyte."""
    return await _pour(stream, b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 20))


async def huge_body(attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """A body of a gigabyte, as its length says, of which a part comes."""
    return await _pour(stream, _head(attacker, b"Content-Length: 1000000000") + b"x" * (1 << 20))


async def endless_chunks(attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """Chunks of one octet each, for ever."""
    return await _pour(stream, _head(attacker, b"Transfer-Encoding: chunked"), b"1\r\nx\r\n" * 10_000)


async def endless_trailers(attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """Fields without an end behind the last chunk."""
    return await _pour(stream, _head(attacker, b"Transfer-Encoding: chunked"), b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * 1000)


async def endless_extensions(attacker: Attacker, stream: Stream, _ready: asyncio.Event) -> str:
    """One chunk's extension without an end."""
    return await _pour(stream, _head(attacker, b"Transfer-Encoding: chunked") + b"1;x=", b"x" * 65_536)


async def pipeline(attacker: Attacker, stream: Stream, ready: asyncio.Event) -> str:
    """Requests without an end, no answer taken."""
    path = attacker.options.path.encode()
    requests = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path * 100
    reader, writer = stream
    # asyncio's reader takes half of its limit, and then no more.
    reader.set_exception = lambda _error: None  # type: ignore[method-assign]
    stream[1].transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(2):
        writer.write(requests)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await writer.drain()
    ready.set()
    while not writer.transport.is_closing():
        writer.write(requests)
        await writer.drain()
        await asyncio.sleep(0)
    return "closed"


async def unread(attacker: Attacker, stream: Stream, ready: asyncio.Event) -> str:
    """One request, whose answer is not taken."""
    _reader, writer = stream
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % attacker.options.path.encode())
    await asyncio.sleep(0.2)
    ready.set()
    while not writer.transport.is_closing():
        # What is sent after the other side is gone tells that it is.
        await asyncio.sleep(0.5)
        writer.write(b"\r\n")
    return "closed"


def _head(attacker: Attacker, framing: bytes) -> bytes:
    fields = (b"Host: x", b"Content-Type: " + attacker.options.type.encode(), framing)
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n" % (attacker.options.path.encode(), b"\r\n".join(fields))


async def _pour(stream: Stream, first: bytes, rest: bytes = b"") -> str:
    """Send, and go on with `rest` until there is an answer; its status."""
    reader, writer = stream
    answer = asyncio.ensure_future(_outcome(reader))
    try:
        writer.write(first)
        while rest and not answer.done() and not writer.transport.is_closing():
            writer.write(rest)
            await writer.drain()
            await asyncio.sleep(0)
        return await answer
    finally:
        answer.cancel()


ATTACKS = {
    each.__name__.replace("_", "-"): each
    for each in (
        idle,
        slow_headers,
        slow_body,
        many_headers,
        huge_header,
        huge_body,
        endless_chunks,
        endless_trailers,
        endless_extensions,
        pipeline,
        unread,
    )
}


async def main(options: argparse.Namespace) -> None:
    """Attack until standard input ends."""
    attacker = Attacker(options)
    attack = ATTACKS[options.attack]
    signals = [asyncio.Event() for _ in range(options.count)]
    tasks = [asyncio.create_task(attacker.run(number, attack, each)) for number, each in enumerate(signals)]
    for each in signals:
        await each.wait()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    sys.stdout.write(json.dumps(attacker.done) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--count", type=int, default=100, help="connections at once")
    parser.add_argument("--sources", type=int, default=1, help="addresses that they come from")
    parser.add_argument("--network", type=int, default=66, help="the addresses are 127.0.NETWORK.1 and on")
    parser.add_argument("--once", action="store_true", help="what is closed is not opened again")
    parser.add_argument("--path", default="/livez")
    parser.add_argument("--type", default="application/jose+json", help="media type of bodies")
    return parser.parse_args()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(parse()))
