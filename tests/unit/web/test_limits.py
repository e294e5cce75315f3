"""What a peer may use up has an end: octets, headers, time, connections; and a drain that loses nobody."""

import asyncio
import socket
import ssl
import struct

import pytest
import structlog
from aiohttp import web

from ca_server.web.middleware import render_refusals
from ca_server.web.tls import server_context

SLOW = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc"


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


def gated(gate: asyncio.Event, entered: list[int]):
    async def handler(request: web.Request) -> web.Response:
        entered.append(1)
        await gate.wait()
        return web.Response(body=await request.read())

    return handler


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)


class TestSize:
    @pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
    async def test_announced_body(self, site, size, status):
        served = await site({"/": echo}, max_body=100)
        client = await served.connect()
        await client.send(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + b"x" * size)
        assert (await client.response())[0] == status

    async def test_a_huge_body_is_refused_before_it_comes(self, site):
        served = await site({"/": echo}, max_body=100)
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (413, "close")

    async def test_chunked_body(self, site):
        served = await site({"/": echo}, max_body=100)
        client = await served.connect()
        chunk = b"32\r\n" + b"x" * 50 + b"\r\n"
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3)
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (413, "close")

    async def test_a_compressed_body_is_not_expanded(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        body = b"\x1f\x8b not really"
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        await client.send(head.encode() + body)
        assert (await client.response())[2] == body

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            pytest.param("GET /" + "x" * 600 + " HTTP/1.1\r\nHost: x\r\n\r\n", 431, id="line"),
            pytest.param("GET / HTTP/1.1\r\nHost: x\r\nA: " + "x" * 600 + "\r\n\r\n", 431, id="field"),
            pytest.param("GET / HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 20 + "\r\n", 400, id="number of fields"),
            pytest.param("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS on a plain listener"),
            pytest.param("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, id="negative length"),
            pytest.param(
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
                id="two framings",
            ),
        ],
    )
    async def test_headers(self, site, head, status):
        served = await site({"/": echo}, max_line=512, max_header=512, max_headers=10)
        client = await served.connect()
        await client.send(head.encode("latin-1"))
        got, headers, body = await client.response()
        assert (got, headers["server"]) == (status, "ca-server")
        assert b"xxx" not in body
        assert await client.closed()


class TestTime:
    @pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
    async def test_slow_headers_on_a_new_connection(self, site, sent):
        served = await site({"/": echo}, header_seconds=0.1)
        client = await served.connect()
        await client.send(sent)
        assert await client.closed()

    async def test_slow_headers_of_a_later_request(self, site):
        served = await site({"/": echo}, header_seconds=0.15)
        client = await served.connect()
        assert (await client.get("/"))[0] == 200
        # Idling is not slowness.
        await asyncio.sleep(0.3)
        assert (await client.get("/"))[0] == 200
        await client.send(b"GET / HTTP/1.1\r\n")
        assert await client.closed()

    async def test_headers_octet_by_octet_do_not_buy_time(self, site):
        served = await site({"/": echo}, header_seconds=0.2)
        client = await served.connect()

        async def drip() -> None:
            await client.send(b"GET / HTTP/1.1\r\nA: ")
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(drip())
        assert await client.closed()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_idle_connections_are_closed(self, site):
        served = await site({"/": echo}, keepalive_seconds=0.1)
        client = await served.connect()
        assert (await client.get("/"))[0] == 200
        assert await client.closed()

    async def test_a_slow_body(self, site):
        served = await site({"/": echo}, body_seconds=0.1)
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (408, "close")

    async def test_a_slow_body_is_not_cut_by_the_limit_of_headers(self, site):
        served = await site({"/": echo}, header_seconds=0.1)
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
        await asyncio.sleep(0.3)
        await client.send(b"def")
        assert (await client.response())[2] == b"abcdef"

    async def test_a_slow_handler(self, site):
        served = await site({"/": gated(asyncio.Event(), [])}, request_seconds=0.1)
        client = await served.connect()
        status, headers, _ = await client.get("/")
        assert (status, headers["retry-after"]) == (503, "2")
        assert (await client.get("/none"))[0] == 404

    async def test_a_handler_s_own_timeout_is_not_the_limit(self, site):
        async def handler(_request: web.Request) -> web.Response:
            raise TimeoutError

        served = await site({"/": handler})
        client = await served.connect()
        assert (await client.get("/"))[0] == 500

    async def test_a_client_that_does_not_take_its_answer(self, site):
        body = b"x" * 50_000_000

        async def handler(_request: web.Request) -> web.Response:
            return web.Response(body=body)

        served = await site({"/": handler}, write_seconds=0.2)
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: served.runner.connection_count == 1)
        await until(lambda: served.runner.connection_count == 0)

    async def test_a_handshake_that_never_comes(self, site):
        served = await site({"/": echo}, ssl_context=server_context(), header_seconds=0.1)
        client = await served.connect()
        await until(lambda: served.runner.connection_count == 1)
        assert await client.closed()
        await until(lambda: served.runner.connection_count == 0)


class TestAnswers:
    @pytest.mark.parametrize("size", [1, 65_536, 65_537, 131_072, 1_000_000])
    async def test_large_ones_come_whole(self, site, size):
        async def handler(_request: web.Request) -> web.Response:
            return web.Response(body=bytes(range(256)) * (size // 256) + b"e" * (size % 256), content_type="text/x")

        served = await site({"/": handler})
        client = await served.connect()
        for _ in range(2):
            status, headers, body = await client.get("/")
            assert (status, headers["content-length"], headers["content-type"]) == (200, str(size), "text/x")
            assert body == bytes(range(256)) * (size // 256) + b"e" * (size % 256)
        await client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (b"content-length: %d" % size) in (await client.reader.readuntil(b"\r\n\r\n")).lower()
        assert (await client.get("/none"))[0] == 404

    async def test_who_does_not_take_one_costs_a_piece(self, site):
        body = b"x" * 50_000_000

        async def handler(_request: web.Request) -> web.Response:
            return web.Response(body=body)

        served = await site({"/": handler})
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        (connection,) = served.runner._open
        await until(lambda: connection.writing_paused)
        assert 0 < connection.transport.get_write_buffer_size() <= 3 * 65_536


class TestNumber:
    async def test_requests_beyond_the_limit_are_told_to_come_again(self, site):
        gate, entered = asyncio.Event(), []
        served = await site({"/": gated(gate, entered)}, max_concurrent=1)
        first, second = await served.connect(), await served.connect()
        waiting = asyncio.create_task(first.get("/"))
        await until(lambda: entered)
        status, headers, _ = await second.get("/")
        assert (status, headers["retry-after"]) == (503, "2")
        gate.set()
        assert (await waiting)[0] == 200
        assert (await second.get("/"))[0] == 200

    async def test_who_sends_slowly_takes_nobodys_place(self, site):
        served = await site({"/": echo}, max_concurrent=2)
        slow = [await served.connect() for _ in range(2)]
        for each in slow:
            await each.send(SLOW)
        await until(lambda: served.state.bodies.total() == 2)
        quick = await served.connect()
        assert (await quick.get("/"))[0] == 200
        await quick.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
        assert (await quick.response())[2] == b"ab", "its body came with its headers"
        late = await served.connect()
        await late.send(SLOW)
        status, headers, _ = await late.response()
        assert (status, headers["retry-after"], headers["connection"]) == (503, "2", "close")
        for each in slow:
            await each.send(b"def")
            assert (await each.response())[2] == b"abcdef"
        assert not served.state.bodies

    async def test_bodies_of_one_address(self, site):
        served = await site({"/": echo}, max_bodies_per_address=1)
        first, second = await served.connect(), await served.connect()
        await first.send(SLOW)
        await until(lambda: served.state.bodies == {"127.0.0.1": 1})
        await second.send(SLOW)
        assert (await second.response())[0] == 503
        await first.send(b"def")
        assert (await first.response())[0] == 200

    async def test_requests_of_one_address(self, site):
        gate, entered = asyncio.Event(), []
        served = await site({"/": gated(gate, entered)}, max_concurrent_per_address=1)
        first, second = await served.connect(), await served.connect()
        waiting = asyncio.create_task(first.get("/"))
        await until(lambda: served.state.answering == {"127.0.0.1": 1})
        assert (await second.get("/"))[0] == 503
        other = await served.connect(source="127.0.0.2")
        others = asyncio.create_task(other.get("/"))
        await until(lambda: len(entered) == 2)
        gate.set()
        assert ((await waiting)[0], (await others)[0]) == (200, 200)
        assert not served.state.answering

    async def test_a_client_that_goes_away_in_its_body(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(SLOW)
        await until(lambda: served.state.bodies)
        client.writer.transport.abort()
        await until(lambda: served.runner.connection_count == 0 and not served.state.bodies)
        with structlog.testing.capture_logs() as logs:
            second = await served.connect()
            await second.send(SLOW)
            await until(lambda: served.state.bodies)
            second.writer.transport.abort()
            await until(lambda: [each for each in logs if each["event"] == "request"])
        assert {each["log_level"] for each in logs} == {"info"}
        assert not [each for each in logs if "exc_info" in each]

    async def test_a_client_that_resets_in_its_body(self, site, caplog):
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(SLOW)
        await until(lambda: served.state.bodies)
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await until(lambda: served.runner.connection_count == 0 and not served.state.bodies)
        assert caplog.records == [], "no stack of what is no fault of ours"

    async def test_refusals_fill_no_log(self, site):
        served = await site({"/": echo}, max_body=100)
        with structlog.testing.capture_logs() as logs:
            for _ in range(30):
                client = await served.connect()
                await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
                assert (await client.response())[0] == 413
            assert (await (await served.connect()).get("/"))[0] == 200
        assert [each["status"] for each in logs if each["event"] == "request"] == [413] * 5 + [200]
        assert len([each for each in logs if each.get("reason") == "body"]) == 5

    async def test_a_body_that_is_no_http(self, site):
        """aiohttp's parser gives up without a word."""
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await until(lambda: served.state.bodies)
        await client.send(b"ZZ\r\nabc\r\n0\r\n\r\n")
        assert (await client.response())[0] == 400
        assert await client.closed()

    async def test_endless_trailers(self, site, caplog):
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        await until(lambda: served.state.bodies)
        await client.send(b"X: y\r\n" * 1000)
        assert (await client.response())[0] == 400
        assert await client.closed()
        assert not served.state.bodies
        assert caplog.records == []

    async def test_chunks_of_one_octet(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            await client.send(b"1\r\nx\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.response())[2] == b"x" * 1000
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"1\r\nx\r\n" * 2100)
        assert await client.closed()

    async def test_who_is_gone_is_not_waited_for(self, site):
        """The rest of a body that was refused is read for a while, but not from a client that has left."""
        served = await site({"/": echo}, max_body=100)
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000)
        assert (await client.response())[0] == 413
        (connection,) = served.runner._open
        task = connection._task_handler
        client.writer.transport.abort()
        await until(lambda: served.runner.connection_count == 0)
        await asyncio.wait([task], timeout=1.0)
        assert task.done()

    async def test_a_front_end_says_no_in_its_own_way(self, site):
        def render(_request, status, text, retry_after):
            return web.Response(status=status, text=f"own: {text}", headers={"Retry-After": str(retry_after)})

        def register(application):
            application.router.add_route("*", "/own/x", echo)
            render_refusals(application, "/own/", render)

        served = await site({"/": echo}, registrars=[register], max_body=100, body_seconds=0.1)
        huge = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        slow = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
        for data, expected in ((huge, 413), (slow, 408)):
            for path, own in ((b"/own/x", True), (b"/", False)):
                client = await served.connect()
                await client.send(data % path)
                status, headers, body = await client.response()
                assert (status, headers["connection"], body.startswith(b"own: ")) == (expected, "close", own)


class TestDrain:
    async def test_what_was_begun_is_answered_and_nobody_new_comes(self, site):
        gate, entered = asyncio.Event(), []
        served = await site({"/": gated(gate, entered)})
        client, idle = await served.connect(), await served.connect()
        assert (await idle.get("/none"))[0] == 404
        waiting = asyncio.create_task(client.get("/"))
        await until(lambda: entered)
        closing = asyncio.create_task(served.runner.close())
        assert await idle.closed()
        assert not closing.done()
        gate.set()
        status, headers, _ = await waiting
        assert (status, headers["connection"]) == (200, "close")
        await closing
        with pytest.raises(ConnectionRefusedError):
            await served.connect()

    async def test_a_body_that_is_still_coming_is_waited_for(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(served.runner.close())
        await asyncio.sleep(0.1)
        await client.send(b"def")
        assert (await client.response())[2] == b"abcdef"
        await closing

    async def test_a_connection_that_was_accepted_may_still_ask(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        await until(lambda: served.runner.connection_count == 1)
        closing = asyncio.create_task(served.runner.close())
        await asyncio.sleep(0.1)
        status, headers, _ = await client.get("/")
        assert (status, headers["connection"]) == (200, "close")
        await closing

    async def test_headers_that_are_still_coming_are_waited_for(self, site):
        served = await site({"/": echo})
        client = await served.connect()
        assert (await client.get("/"))[0] == 200
        await client.send(b"GET / HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(served.runner.close())
        await asyncio.sleep(0.1)
        await client.send(b"Host: x\r\n\r\n")
        assert (await client.response())[0] == 200
        await closing

    async def test_it_has_a_limit(self, site):
        served = await site({"/": gated(asyncio.Event(), [])}, drain_seconds=0.2)
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await served.runner.close()
        assert await client.closed()


class TestTlsSettings:
    @pytest.mark.parametrize(
        ("setting", "value"),
        [("maximum_version", ssl.TLSVersion.TLSv1_1), ("ciphers", "AES128-SHA"), ("ciphers", "ECDHE-ECDSA-AES128-SHA")],
    )
    async def test_what_is_weak_is_refused(self, site, memory_ca, tmp_path, setting, value):
        from ca_server.domain.names import dns_identifier
        from ca_server.web.tls import ListenerTls

        tls = ListenerTls(tmp_path / "tls.pem", (dns_identifier("localhost"),))
        await tls.ensure(memory_ca.issue)
        served = await site({"/": echo}, ssl_context=tls.context)
        context = memory_ca.client_context()
        if setting == "ciphers":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(value)
        else:
            with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
                context.minimum_version = ssl.TLSVersion.TLSv1
            with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
                context.maximum_version = value
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await served.connect(context)
        context = memory_ca.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = await served.connect(context)
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await client.get("/"))[0] == 200
