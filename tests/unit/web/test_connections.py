"""Too many connections: who holds many idle ones loses them, and nobody else is kept out."""

import asyncio
import errno
import os
import socket

import pytest
import structlog
from aiohttp import web

from ca_server import telemetry
from ca_server.web.tls import server_context


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)


class Gate:
    """A handler that answers when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.entered = 0

    async def handle(self, _request: web.Request) -> web.Response:
        self.entered += 1
        await self.opened.wait()
        return web.Response(text="hello")


def refused(reason: str) -> float:
    return telemetry.HTTP_REFUSED.labels("http", reason)._value.get()


def is_open(client) -> bool:
    return not client.reader.at_eof() and client.reader.exception() is None


class TestFull:
    async def test_the_one_that_waited_longest_goes(self, site):
        served = await site({"/": hello}, max_connections=2)
        first, second = await served.connect(), await served.connect()
        assert (await first.get("/"))[0] == 200
        assert (await second.get("/"))[0] == 200
        assert (await first.get("/"))[0] == 200
        third = await served.connect()
        assert (await third.get("/"))[0] == 200
        assert await second.closed()
        assert (await first.get("/"))[0] == 200
        assert served.runner.connection_count == 2

    async def test_the_address_with_the_most_pays(self, site):
        served = await site({"/": hello}, max_connections=6)
        one = await served.connect(source="127.0.0.2")
        assert (await one.get("/"))[0] == 200
        many = [await served.connect() for _ in range(5)]
        await until(lambda: served.runner.connection_count == 6)
        before = refused("evicted")
        for number in range(3):
            newcomer = await served.connect(source=f"127.0.0.{10 + number}")
            assert (await newcomer.get("/"))[0] == 200
        assert [await each.closed() for each in many[:3]] == [True] * 3
        assert (await one.get("/"))[0] == 200, "it waited longer than any of the many"
        assert [(await each.get("/"))[0] for each in many[3:]] == [200, 200]
        assert refused("evicted") == before + 3

    async def test_what_is_answered_is_not_cut_and_who_comes_waits(self, site):
        gate = Gate()
        served = await site({"/": gate.handle}, max_connections=2)
        working = [await served.connect() for _ in range(2)]
        answers = [asyncio.create_task(each.get("/")) for each in working]
        await until(lambda: gate.entered == 2)
        third = await served.connect()
        waiting = asyncio.create_task(third.get("/none"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert served.runner.connection_count == 2
        gate.opened.set()
        assert [(await each)[0] for each in answers] == [200, 200]
        assert (await waiting)[0] == 404, "one of them idles now, and goes"

    async def test_who_works_leaves_and_another_comes(self, site):
        gate = Gate()
        served = await site({"/": gate.handle}, max_connections=1)
        first = await served.connect()
        await first.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: gate.entered)
        second = await served.connect()
        waiting = asyncio.create_task(second.get("/none"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        first.writer.transport.abort()
        assert (await waiting)[0] == 404

    async def test_half_a_header_and_a_handshake_wait_too(self, site):
        served = await site({"/": hello}, max_connections=1)
        half = await served.connect()
        await half.send(b"GET / HTTP/1.1\r\n")
        await until(lambda: served.runner.connection_count == 1)
        newcomer = await served.connect()
        assert (await newcomer.get("/"))[0] == 200
        assert await half.closed()

    async def test_handshakes_that_never_end(self, site, memory_ca, tmp_path):
        from ca_server.domain.names import Identifier, IdentifierType
        from ca_server.web.tls import ListenerTls

        tls = ListenerTls(tmp_path / "pair.pem", (Identifier(IdentifierType.DNS, "localhost"),))
        await tls.ensure(memory_ca.issue)
        served = await site({"/": hello}, ssl_context=tls.context, max_connections=3)
        mute = [await served.connect() for _ in range(3)]
        await until(lambda: served.runner.connection_count == 3)
        newcomer = await served.connect(memory_ca.client_context())
        assert (await newcomer.get("/"))[0] == 200
        assert await mute[0].closed()
        assert [is_open(each) for each in mute[1:]] == [True, True]
        assert served.runner.connection_count == 3

    async def test_an_idle_connection_that_is_used_again_is_the_last_to_go(self, site):
        served = await site({"/": hello}, max_connections=3)
        clients = [await served.connect() for _ in range(3)]
        for each in (*clients, clients[0]):
            assert (await each.get("/"))[0] == 200
        for expected in (clients[1], clients[2]):
            newcomer = await served.connect()
            assert (await newcomer.get("/"))[0] == 200
            assert await expected.closed()
        assert (await clients[0].get("/"))[0] == 200


class TestOfOneAddress:
    async def test_its_own_go_for_its_own(self, site):
        served = await site({"/": hello}, max_connections_per_address=2)
        other = await served.connect(source="127.0.0.2")
        first, second = await served.connect(), await served.connect()
        await until(lambda: served.runner.connection_count == 3)
        third = await served.connect()
        assert (await third.get("/"))[0] == 200
        assert await first.closed()
        assert (await second.get("/"))[0] == 200
        assert (await other.get("/"))[0] == 200

    async def test_where_all_of_them_work_no_more_come_in(self, site):
        gate = Gate()
        served = await site({"/": gate.handle}, max_connections_per_address=1)
        first = await served.connect()
        answer = asyncio.create_task(first.get("/"))
        await until(lambda: gate.entered)
        before = refused("address")
        second = await served.connect()
        assert await second.closed()
        assert refused("address") == before + 1
        other = await served.connect(source="127.0.0.2")
        assert (await other.get("/none"))[0] == 404
        gate.opened.set()
        assert (await answer)[0] == 200


class _Dry:
    """A listening socket in a process whose descriptors are used up."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.dry = True
        self.attempts = 0

    def accept(self):
        self.attempts += 1
        if self.dry:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._listening.accept()

    def __getattr__(self, name):
        return getattr(self._listening, name)


async def test_no_descriptors_left(site):
    """It tries again once a second, gives an idle connection up for them, and serves when there are some."""
    served = await site({"/": hello})
    first = await served.connect()
    assert (await first.get("/"))[0] == 200
    runner = served.runner
    (listening,) = runner._sockets
    dry = _Dry(listening)
    runner._pause()
    runner._sockets[:] = [dry]
    runner._resume()
    waiting = await served.connect()
    task = asyncio.create_task(waiting.get("/"))
    assert await first.closed()
    await asyncio.sleep(0.4)
    assert dry.attempts <= 3
    dry.dry = False
    assert (await task)[0] == 200
    runner._pause()
    runner._sockets[:] = [listening]


async def test_a_flood_does_not_fill_the_log(site):
    served = await site({"/": hello}, max_connections=1)
    with structlog.testing.capture_logs() as logs:
        for _ in range(50):
            newcomer = await served.connect()
            assert (await newcomer.get("/none"))[0] == 404
    assert len([each for each in logs if each.get("reason") == "evicted"]) == 5


@pytest.mark.parametrize("ssl_context", [None, server_context()], ids=["plain", "tls"])
async def test_the_gauge_comes_back(site, ssl_context):
    gauge = telemetry.HTTP_CONNECTIONS.labels("gauge")
    served = await site({"/": hello}, ssl_context=ssl_context, name="gauge", max_connections=2)
    for _ in range(20):
        await served.connect()
    await until(lambda: served.runner.connection_count == 2)
    assert gauge._value.get() == 2
    for each in served.clients:
        each.writer.transport.abort()
    await until(lambda: served.runner.connection_count == 0)
    assert gauge._value.get() == 0
    assert len(served.runner._crowd) == 0
