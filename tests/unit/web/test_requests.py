"""Every request: id, log line, headers, and an answer when all else failed."""

import asyncio

import pytest
import structlog
from aiohttp import web

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.web.middleware import FRONT_END, request_id
from ca_server.web.options import LOOPBACK, Network, address_in


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=request_id(request))


async def raw(request: web.Request) -> web.Response:
    return web.Response(text=request.raw_path)


def raising(error: BaseException):
    async def handler(_request: web.Request) -> web.Response:
        raise error

    return handler


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as lines:
        yield lines


class TestRequestId:
    async def test_is_made_here_and_told(self, site):
        served = await site({"/": hello})
        client = await served.connect()
        _, headers, body = await client.get("/", "X-Request-Id: mine\r\n")
        assert headers["x-request-id"] == body.decode() != "mine"
        _, again, _ = await client.get("/")
        assert again["x-request-id"] != headers["x-request-id"]

    async def test_is_taken_over_from_a_trusted_proxy(self, site):
        served = await site({"/": hello}, trusted_proxies=LOOPBACK)
        client = await served.connect()
        assert (await client.get("/", "X-Request-Id: proxy-1.a_b\r\n"))[2] == b"proxy-1.a_b"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "<script>", "\u00e9"])
    async def test_a_bad_one_is_not_taken_even_from_a_proxy(self, site, given):
        served = await site({"/": hello}, trusted_proxies=LOOPBACK)
        client = await served.connect()
        assert (await client.get("/", f"X-Request-Id: {given}\r\n"))[2] != given.encode()

    async def test_is_bound_in_the_handler_s_log_and_there_alone(self, site):
        seen = []

        async def handler(request: web.Request) -> web.Response:
            seen.append((structlog.contextvars.get_contextvars().get("request_id"), request_id(request)))
            return web.Response()

        served = await site({"/": handler})
        client = await served.connect()
        await client.get("/")
        await client.get("/")
        assert all(bound == own for bound, own in seen)
        assert len({own for _, own in seen}) == 2
        assert "request_id" not in structlog.contextvars.get_contextvars()


class TestLogLine:
    async def test_one_canonical_line_without_the_query(self, site, logged):
        async def handler(request: web.Request) -> web.Response:
            request[FRONT_END] = "scep"
            return web.Response(body=b"12345")

        served = await site({"/scep/x": handler}, name="edge")
        client = await served.connect()
        await client.get("/scep/x?message=s3cret")
        (line,) = [line for line in logged if line["event"] == "request"]
        assert line["duration_ms"] >= 0
        expected = {
            "listener": "edge",
            "frontend": "scep",
            "method": "GET",
            "path": "/scep/x",
            "status": 200,
            "bytes": 5,
            "remote": "127.0.0.1",
        }
        assert {key: line[key] for key in expected} == expected
        assert "s3cret" not in str(logged)

    @pytest.mark.parametrize(
        ("module", "expected"),
        [("protocols.acme.views", "acme"), ("ca_server.admin.api", "admin"), ("ca_server.web.health", "health")],
    )
    async def test_the_front_end_is_that_of_the_handler_s_module(self, site, logged, module, expected):
        async def handler(_request: web.Request) -> web.Response:
            return web.Response()

        handler.__module__ = module
        served = await site({"/": handler})
        client = await served.connect()
        await client.get("/")
        assert [line["frontend"] for line in logged if line["event"] == "request"] == [expected]

    async def test_a_path_without_route(self, site, logged):
        served = await site({})
        client = await served.connect()
        status, headers, _ = await client.get("/" + "x" * 2000)
        assert status == 404
        assert headers["x-request-id"]
        (line,) = [line for line in logged if line["event"] == "request"]
        assert (line["frontend"], line["status"]) == ("none", 404)
        assert len(line["path"]) == 512


class TestFallback:
    async def test_a_bug_is_a_plain_500_with_the_id_and_nothing_else(self, site, logged):
        served = await site({"/": raising(RuntimeError("pin=1234 at /home/x"))})
        client = await served.connect()
        status, headers, body = await client.get("/")
        assert (status, headers["retry-after"]) == (500, "2")
        assert headers["x-request-id"] in body.decode()
        assert b"1234" not in body
        assert [line["log_level"] for line in logged if line["event"] == "request failed"] == ["error"]
        assert (await client.get("/none"))[0] == 404

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            (ErrorKind.UNAVAILABLE, 503),
            (ErrorKind.RATE_LIMITED, 429),
            (ErrorKind.NOT_FOUND, 404),
            (ErrorKind.POLICY_DENIED, 500),
        ],
    )
    async def test_an_error_that_no_protocol_mapped(self, site, kind, status):
        served = await site({"/": raising(CaError(kind, "what it is", retry_after=7))})
        client = await served.connect()
        got, headers, body = await client.get("/")
        assert (got, headers["retry-after"]) == (status, "7")
        assert b"what it is" in body

    async def test_a_broken_answer_breaks_the_connection(self, site):
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "10"})
            await response.prepare(request)
            await response.write(b"12345")
            raise RuntimeError

        served = await site({"/": handler})
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.response()


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/none", "/bug"])
    async def test_on_every_answer(self, site, path):
        served = await site({"/": hello, "/bug": raising(RuntimeError())})
        client = await served.connect()
        _, headers, _ = await client.get(path)
        assert headers["server"] == "ca-server"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "strict-transport-security" not in headers

    async def test_a_handler_s_own_policy_stands(self, site):
        async def handler(_request: web.Request) -> web.Response:
            return web.Response(headers={"Content-Security-Policy": "default-src 'self'"})

        served = await site({"/": handler})
        client = await served.connect()
        assert (await client.get("/"))[1]["content-security-policy"] == "default-src 'self'"

    @pytest.mark.parametrize("path", ["/ocsp/MEM//wQTAJ%2B/AQ%3D%3D", "/ocsp/a//b/../c%2Fd", "/ocsp/MEM+/x=="])
    async def test_the_path_arrives_as_it_was_sent(self, site, path):
        served = await site({"/ocsp/{request:.*}": raw})
        client = await served.connect()
        assert (await client.get(path))[2].decode() == path


class TestNetworks:
    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("127.0.0.1", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            ("::ffff:10.0.0.1", False),
            ("10.0.0.1", False),
            ("fe80::1%eth0", False),
            ("not an address", False),
            ("", False),
            (None, False),
        ],
    )
    def test_loopback(self, address, expected):
        networks: tuple[Network, ...] = LOOPBACK
        assert address_in(address, networks) is expected
