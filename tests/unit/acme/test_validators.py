"""http-01 against a web server and a nameserver that behave, and that do not (RFC 8555 section 8.3)."""

import asyncio
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from tls_responder import challenge_pair

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation import ValidationPolicy, ValidationTarget, key_authorization, validators
from protocols.acme.validation.peers import client_context

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
AUTHORIZATION = key_authorization(TOKEN, "nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ")
Handler = Callable[[web.Request], Any]


def target(value: str = "a.test", kind: IdentifierType = IdentifierType.DNS) -> ValidationTarget:
    return ValidationTarget(Identifier(kind, value), TOKEN, AUTHORIZATION, "https://ca.test/acme/account/1")


def says(text: str | bytes, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        body = text if isinstance(text, bytes) else text.encode()
        return web.Response(status=status, body=body)

    return handler


def moves(location: str, status: int = 302) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": location})

    return handler


@pytest.fixture
def policy(peer: Any, nameserver: Any) -> ValidationPolicy:
    nameserver.records = {("a.test", "A"): ["127.0.0.1"], ("b.test", "A"): ["127.0.0.1"]}
    return ValidationPolicy(
        http_01_port=peer.port, redirect_ports=(), nameservers=(nameserver.address,), timeout=3.0, dns_timeout=1.0
    )


async def http(policy: ValidationPolicy, wanted: ValidationTarget | None = None) -> tuple[str, str, bool] | None:
    """What http-01 says, as (type, detail, retryable)."""
    seen = await validators(policy)["http-01"].validate(wanted or target())
    if seen is None:
        return None
    assert len(seen.detail) <= 500
    assert seen.detail.isascii()
    assert seen.detail.isprintable()
    return seen.type, seen.detail, seen.retryable


def test_what_applies() -> None:
    known = validators(ValidationPolicy())
    name, address = Identifier(IdentifierType.DNS, "a.test"), Identifier(IdentifierType.IP, "192.0.2.1")
    offered = {
        (kind, identifier.type.value, wildcard)
        for kind, validator in known.items()
        for identifier, wildcard in ((name, False), (name, True), (address, False))
        if validator.applies(identifier, wildcard)
    }
    assert offered == {
        ("http-01", "dns", False),
        ("http-01", "ip", False),
        ("dns-01", "dns", False),
        ("dns-01", "dns", True),
        ("dns-account-01", "dns", False),
        ("dns-account-01", "dns", True),
        ("tls-alpn-01", "dns", False),
        ("tls-alpn-01", "ip", False),
    }


@pytest.mark.parametrize("body", [AUTHORIZATION, AUTHORIZATION + "\r\n", AUTHORIZATION + "  \n\n"])
async def test_http(policy: ValidationPolicy, peer: Any, body: str) -> None:
    peer.handler = says(body)
    assert await http(policy) is None
    request = peer.requests[0]
    assert (request.method, request.path) == ("GET", f"/.well-known/acme-challenge/{TOKEN}")
    assert request.host == f"a.test:{peer.port}"
    assert "ca-server" in request.headers["User-Agent"]
    assert "Cookie" not in request.headers


async def test_http_for_an_address(policy: ValidationPolicy, peer: Any) -> None:
    peer.handler = says(AUTHORIZATION)
    assert await http(policy, target("127.0.0.1", IdentifierType.IP)) is None
    assert peer.requests[0].host == f"127.0.0.1:{peer.port}"


async def test_http_for_a_name_of_another_script(policy: ValidationPolicy, peer: Any, nameserver: Any) -> None:
    nameserver.records["xn--bcher-kva.test", "A"] = ["127.0.0.1"]
    peer.handler = says(AUTHORIZATION)
    assert await http(policy, target("xn--bcher-kva.test")) is None
    assert peer.requests[0].host == f"xn--bcher-kva.test:{peer.port}"


@pytest.mark.parametrize("name", ["b\u00fccher.test", "xn--bcher-kva.test"])
async def test_redirects_to_a_name_of_another_script(
    policy: ValidationPolicy, peer: Any, nameserver: Any, name: str
) -> None:
    nameserver.records["xn--bcher-kva.test", "A"] = ["127.0.0.1"]

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/here":
            return web.Response(text=AUTHORIZATION)
        return web.Response(status=302, headers={"Location": f"http://{name}:{peer.port}/here"})

    peer.handler = handler
    assert await http(policy) is None


async def test_what_nobody_foresaw_is_a_failed_attempt(
    policy: ValidationPolicy, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise IndexError("inside a library")

    peer.handler = moves("/here")
    monkeypatch.setattr("protocols.acme.validation.http_01.Http01Validator._redirect", fail)
    seen = await http(policy)
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", False)
    assert "library" not in seen[1]


async def test_http_for_an_ipv6_address_says_where_it_went(policy: ValidationPolicy) -> None:
    seen = await http(policy, target("::1", IdentifierType.IP))
    assert seen is not None
    assert seen[0] == "connection"
    assert "http://[::1]:" in seen[1]


async def test_http_tries_every_address(policy: ValidationPolicy, peer: Any, nameserver: Any) -> None:
    nameserver.records = {("a.test", "AAAA"): ["::1"], ("a.test", "A"): ["127.0.0.3", "127.0.0.1"]}
    peer.handler = says(AUTHORIZATION)
    assert await http(policy) is None


@pytest.mark.parametrize(
    ("handler", "said", "retryable"),
    [
        (says("wrong"), "'wrong'", False),
        (says(""), "not the key authorization", False),
        (says(" " + AUTHORIZATION), "not the key authorization", False),
        (says(AUTHORIZATION + "x"), "not the key authorization", False),
        (says(AUTHORIZATION, 404), "status 404", False),
        (says(AUTHORIZATION, 201), "status 201", False),
        (says("later", 503), "status 503", True),
        (says(b"\x1b[31m\xff\r\nred"), "?[31m???red", False),
        (says(AUTHORIZATION + " " * 5000), "more than 1024 octets", False),
    ],
)
async def test_http_with_a_wrong_answer(
    policy: ValidationPolicy, peer: Any, handler: Handler, said: str, retryable: bool
) -> None:
    peer.handler = handler
    seen = await http(policy)
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", retryable)
    assert said in seen[1]


async def test_http_reads_no_more_than_it_needs(policy: ValidationPolicy, peer: Any) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        while sent < 100_000_000:
            await answer.write(b"x" * 65_536)
            sent += 65_536
        return answer

    peer.handler = endless
    seen = await http(policy)
    assert seen is not None
    assert "more than 1024 octets" in seen[1]
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "again",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n" + b"Link: </x>; rel=preload\r\n" * 50 + b"\r\n",
    ],
)
async def test_http_with_answers_before_the_answer_without_end(policy: ValidationPolicy, again: bytes) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        try:
            while sent < 200_000_000:
                writer.write(again * (65_536 // len(again)))
                await writer.drain()
                sent += 65_536
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        seen = await http(replace(policy, http_01_port=server.sockets[0].getsockname()[1]))
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", False)
    assert "no answer in 65536 octets" in seen[1]


async def test_http_with_little_in_much(policy: ValidationPolicy) -> None:
    """Chunks of one octet, each with a long extension: no more is read than the answer may have in all."""
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while sent < 100_000_000:
                writer.write((b"1;" + b"x" * 4000 + b"\r\nx\r\n") * 16)
                await writer.drain()
                sent += 64_000
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        bounded = replace(policy, http_01_port=server.sockets[0].getsockname()[1], timeout=1.0)
        seen = await http(bounded)
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)
    assert sent < 50_000_000


@pytest.mark.parametrize("interim", [1, 100])
async def test_http_with_answers_before_the_answer(policy: ValidationPolicy, interim: int) -> None:
    said = f"HTTP/1.1 200 OK\r\nContent-Length: {len(AUTHORIZATION)}\r\n\r\n{AUTHORIZATION}".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * interim + said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        assert await http(replace(policy, http_01_port=server.sockets[0].getsockname()[1])) is None


async def test_http_unpacks_nothing(policy: ValidationPolicy, peer: Any) -> None:
    import gzip

    async def packed(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(AUTHORIZATION.encode()), headers={"Content-Encoding": "gzip"})

    peer.handler = packed
    seen = await http(policy)
    assert seen is not None
    assert seen[0] == "incorrectResponse"


@pytest.mark.parametrize("drip", [False, True])
async def test_http_with_a_slow_peer(policy: ValidationPolicy, peer: Any, drip: bool) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if drip:
            await answer.prepare(request)
        for _ in range(600):
            if drip:
                await answer.write(b"x")
            await asyncio.sleep(0.05)
        return answer

    peer.handler = slow
    seen = await http(replace(policy, timeout=0.4))
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)
    assert "0.4 s" in seen[1]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    ],
    ids=["nothing", "another protocol", "endless header", "cut off"],
)
async def test_http_with_no_http(policy: ValidationPolicy, raw: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        seen = await http(replace(policy, http_01_port=server.sockets[0].getsockname()[1]))
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)


async def test_http_with_nobody_there(policy: ValidationPolicy) -> None:
    seen = await http(replace(policy, http_01_port=1))
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)
    assert "127.0.0.1" in seen[1]


async def test_http_without_the_name(policy: ValidationPolicy, nameserver: Any) -> None:
    seen = await http(policy, target("nowhere.test"))
    assert seen is not None
    assert (seen[0], seen[2]) == ("dns", True)
    assert "NXDOMAIN" in seen[1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(policy: ValidationPolicy, peer: Any, other_peer: Any, status: int) -> None:
    peer.handler = moves(f"http://b.test:{other_peer.port}/elsewhere?a=b#c", status)
    other_peer.handler = says(AUTHORIZATION)
    assert await http(replace(policy, redirect_ports=(other_peer.port,))) is None
    assert other_peer.requests[0].path_qs == "/elsewhere?a=b"
    assert other_peer.requests[0].host == f"b.test:{other_peer.port}"


async def test_redirects_to_https(policy: ValidationPolicy, peer: Any) -> None:
    """Whoever's certificate it is (RFC 8555 section 8.3)."""
    application = web.Application()
    application.router.add_get("/right", says(AUTHORIZATION))
    application.router.add_get("/wrong", says("wrong"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(challenge_pair(["another.test"], "").pem)
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file.name)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    bounded = replace(policy, redirect_ports=(port,))
    peer.handler = moves(f"https://b.test:{port}/right")
    assert await http(bounded) is None
    peer.handler = moves(f"https://b.test:{port}/wrong")
    seen = await http(bounded)
    await runner.cleanup()
    assert seen is not None
    assert seen[0] == "incorrectResponse"


def test_tls_with_peers_is_of_a_cost_that_they_do_not_choose() -> None:
    context = client_context()
    assert {cipher["kea"] for cipher in context.get_ciphers()} <= {"kx-ecdhe", "kx-any"}
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_relative_redirects(policy: ValidationPolicy, peer: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/here":
            return web.Response(text=AUTHORIZATION)
        return web.Response(status=302, headers={"Location": "/here"})

    peer.handler = handler
    assert await http(policy) is None


async def test_redirects_are_counted(policy: ValidationPolicy, peer: Any) -> None:
    peer.handler = moves("/again")
    seen = await http(replace(policy, max_redirects=3))
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", False)
    assert "more than 3 redirects" in seen[1]
    assert len(peer.requests) == 4


@pytest.mark.parametrize(
    ("location", "kind", "said"),
    [
        ("http://b.test:22/", "connection", "port 22"),
        ("http://b.test/", "connection", "port 80"),
        ("https://b.test/", "connection", "port 443"),
        ("ftp://b.test/", "connection", "not http or https"),
        ("file:///etc/passwd", "connection", "not http or https"),
        ("gopher://b.test:PORT/", "connection", "not http or https"),
        ("http://user:secret@b.test:PORT/", "connection", "credentials"),
        ("http://b.test:PORT", "incorrectResponse", "status 404"),
        ("http://b_b.test:PORT/", "connection", "letters, digits and hyphens"),
        ("http://127.1:PORT/", "connection", "not an IPv4 or IPv6 address"),
        ("http://2130706433:PORT/", "connection", "not an IPv4 or IPv6 address"),
        ("http://b.test:99999/", "incorrectResponse", "no URL"),
        ("http://[::1/", "incorrectResponse", "no URL"),
        ("http://xn--a:PORT/", "connection", "no valid IDNA"),
        ("http://xn--a.test:PORT/", "connection", "no valid IDNA"),
        ("http://\u3002[::ffff:127.0.0.1]/", "incorrectResponse", "no URL"),
        ("", "incorrectResponse", "Location"),
        ("/" + "x" * 2048, "incorrectResponse", "Location"),
        ("http://nowhere.test:PORT/", "dns", "NXDOMAIN"),
    ],
)
async def test_redirects_that_are_not_followed(
    policy: ValidationPolicy, peer: Any, location: str, kind: str, said: str
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            return web.Response(status=404)
        return web.Response(status=302, headers={"Location": location.replace("PORT", str(peer.port))})

    peer.handler = handler
    seen = await http(policy)
    assert seen is not None
    assert seen[0] == kind
    assert said in seen[1]
    assert "secret" not in seen[1]


async def test_what_a_redirect_led_to_is_not_quoted(policy: ValidationPolicy, peer: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/internal":
            return web.Response(text="the secret page")
        return web.Response(status=302, headers={"Location": "/internal"})

    peer.handler = handler
    seen = await http(policy)
    assert seen is not None
    assert seen[0] == "incorrectResponse"
    assert "secret" not in seen[1]


@pytest.mark.parametrize(
    ("allowed", "denied", "reached"),
    [
        ((), (), True),
        ((), ("127.0.0.0/8",), False),
        (("127.0.0.0/8",), (), True),
        (("192.0.2.0/24", "::/0"), (), False),
        (("127.0.0.0/8",), ("127.0.0.1/32",), False),
    ],
)
async def test_networks(
    policy: ValidationPolicy, peer: Any, allowed: tuple[str, ...], denied: tuple[str, ...], reached: bool
) -> None:
    peer.handler = says(AUTHORIZATION)
    bounded = replace(
        policy, allowed_networks=tuple(map(ip_network, allowed)), denied_networks=tuple(map(ip_network, denied))
    )
    for wanted in (target(), target("127.0.0.1", IdentifierType.IP)):
        seen = await http(bounded, wanted)
        assert (seen is None) == reached
        if seen is not None:
            assert (seen[0], seen[2]) == ("connection", False)
            assert "policy forbids" in seen[1]
    assert bool(peer.requests) == reached


@pytest.mark.parametrize("host", ["internal.test", "127.0.0.2", "[::ffff:127.0.0.2]"])
async def test_networks_count_on_every_hop(policy: ValidationPolicy, peer: Any, nameserver: Any, host: str) -> None:
    nameserver.records["internal.test", "A"] = ["127.0.0.2"]
    peer.handler = moves(f"http://{host}:{peer.port}/")
    seen = await http(replace(policy, denied_networks=(ip_network("127.0.0.2/32"),)))
    assert seen is not None
    assert "policy forbids" in seen[1]
    assert len(peer.requests) == 1


async def test_denied_addresses_are_left_out(policy: ValidationPolicy, peer: Any, nameserver: Any) -> None:
    nameserver.records["a.test", "A"] = ["127.0.0.2", "127.0.0.1"]
    peer.handler = says(AUTHORIZATION)
    assert await http(replace(policy, denied_networks=(ip_network("127.0.0.2/32"),))) is None


async def test_a_second_lookup_is_never_made(policy: ValidationPolicy, peer: Any, nameserver: Any) -> None:
    """Rebinding: the address that was checked is the one connected to."""
    peer.handler = says(AUTHORIZATION)
    assert await http(policy) is None
    assert sorted(nameserver.queries) == [("a.test", "A"), ("a.test", "AAAA")]


async def test_proxies_of_the_environment_are_not_used(
    policy: ValidationPolicy, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    peer.handler = says(AUTHORIZATION)
    assert await http(policy) is None
