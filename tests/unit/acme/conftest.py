"""A web server and a nameserver on the loopback, both scripted by the test."""

import socketserver
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from dnslib import AAAA, CAA, CNAME, RCODE, RR, TXT, A, DNSRecord

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Peer:
    """A web server whose every path is answered by `handler`; it remembers the requests."""

    port: int = 0
    handler: Handler | None = None
    requests: list[web.Request] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        assert self.handler is not None
        return await self.handler(request)


async def _serve(peer: Peer, host: str) -> AsyncIterator[Peer]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", peer.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    peer.port = runner.addresses[0][1]
    yield peer
    await runner.cleanup()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async for served in _serve(Peer(), "127.0.0.1"):
        yield served


@pytest.fixture
async def other_peer() -> AsyncIterator[Peer]:
    async for served in _serve(Peer(), "127.0.0.1"):
        yield served


def caa(text: str) -> CAA:
    flags, tag, value = text.split(" ", 2)
    return CAA(int(flags), tag, value)


@dataclass
class Nameserver:
    """Records by (name, type); a name without records is NXDOMAIN, and one in `silent` gets no answer.

    Answers about names in `authenticated` have the AD bit where it was asked for; `raw` are sent as they are, under
    the query's id.
    """

    address: str = ""
    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    rcodes: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    authenticated: set[str] = field(default_factory=set)
    raw: dict[str, bytes] = field(default_factory=dict)
    wires: list[bytes] = field(default_factory=list)
    queries: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, data: bytes, limit: int) -> bytes | None:
        query = DNSRecord.parse(data)
        name, kind = str(query.q.qname).rstrip(".").lower(), query.q.qtype
        kind_name = {1: "A", 28: "AAAA", 16: "TXT", 257: "CAA"}[kind]
        self.queries.append((name, kind_name))
        self.wires.append(data)
        if name in self.silent:
            return None
        if name in self.raw:
            return data[:2] + self.raw[name]
        reply = query.reply()
        reply.header.ad = int(name in self.authenticated and query.header.ad)  # dnslib repeats the query's
        if name in self.rcodes:
            reply.header.rcode = self.rcodes[name]
            return bytes(reply.pack())
        makers = {
            "A": A,
            "AAAA": AAAA,
            "TXT": lambda text: TXT([text[i : i + 200] for i in range(0, len(text), 200)]),
            "CAA": caa,
        }
        for text in self.records.get((name, kind_name), []):
            reply.add_answer(RR(query.q.qname, kind, rdata=makers[kind_name](text), ttl=1))
        for alias in self.records.get((name, "CNAME"), []):
            reply.add_answer(RR(query.q.qname, 5, rdata=CNAME(alias), ttl=1))
        if not any(known == name for known, _ in self.records):
            reply.header.rcode = RCODE.NXDOMAIN
        packed = bytes(reply.pack())
        if len(packed) > limit:
            cut = query.reply()
            cut.header.tc = 1
            return bytes(cut.pack())
        return packed


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    served = Nameserver()

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, connection = self.request
            if (answer := served.answer(data, 1232)) is not None:
                connection.sendto(answer, self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = int.from_bytes(self.rfile.read(2), "big")
            if (answer := served.answer(self.rfile.read(length), 65_535)) is not None:
                self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    # TCP chooses the port: a port free for it is as good as always free for UDP too
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tcp) as tcp,
        socketserver.ThreadingUDPServer(("127.0.0.1", tcp.server_address[1]), Udp) as udp,
    ):
        served.address = f"127.0.0.1:{tcp.server_address[1]}"
        threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in (tcp, udp)]
        for thread in threads:
            thread.start()
        yield served
        tcp.shutdown()
        udp.shutdown()
