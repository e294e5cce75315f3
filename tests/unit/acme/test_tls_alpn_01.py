"""tls-alpn-01 against TLS servers that behave, and that do not (RFC 8737 section 3, RFC 8738 section 6)."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_responder import ACME_IDENTIFIER, DRAFT_IDENTIFIER, PROTOCOL, challenge_pair, responder

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation import ValidationPolicy, ValidationTarget, key_authorization, validators

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
AUTHORIZATION = key_authorization(TOKEN, "nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ")
OTHER = ec.generate_private_key(ec.SECP256R1())
Seen = tuple[str, str, bool] | None


@pytest.fixture
def policy(nameserver: Any) -> ValidationPolicy:
    nameserver.records = {
        ("a.test", "A"): ["127.0.0.1"],
        ("xn--bcher-kva.test", "A"): ["127.0.0.1"],
        ("two.test", "A"): ["127.0.0.3", "127.0.0.1"],
    }
    return ValidationPolicy(nameservers=(nameserver.address,), timeout=5.0, dns_timeout=1.0)


async def validate(policy: ValidationPolicy, port: int, name: str = "a.test") -> Seen:
    """What tls-alpn-01 says, as (type, detail, retryable)."""
    kind = IdentifierType.IP if name[-1].isdigit() else IdentifierType.DNS
    validator = validators(replace(policy, tls_alpn_01_port=port))["tls-alpn-01"]
    seen = await validator.validate(ValidationTarget(Identifier(kind, name), TOKEN, AUTHORIZATION, ""))
    if seen is None:
        return None
    assert len(seen.detail) <= 500
    assert seen.detail.isascii()
    assert seen.detail.isprintable()
    return seen.type, seen.detail, seen.retryable


@asynccontextmanager
async def raw(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Any:
    """A TCP server that says what it is told; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("protocols", [(PROTOCOL,), ("http/1.1", PROTOCOL)])
async def test_good(policy: ValidationPolicy, newest: ssl.TLSVersion, protocols: tuple[str, ...]) -> None:
    async with responder(challenge_pair(["a.test"], AUTHORIZATION), newest=newest, protocols=protocols) as peer:
        assert await validate(policy, peer.port) is None
    assert peer.names == ["a.test"]


@pytest.mark.parametrize(
    ("name", "in_certificate", "sni"),
    [
        ("a.test", "A.Test", "a.test"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("127.0.0.1", "127.0.0.1", "1.0.0.127.in-addr.arpa"),
        ("::1", "::1", "1." + "0." * 31 + "ip6.arpa"),
    ],
)
async def test_fact_20_what_is_sent_as_server_name(
    policy: ValidationPolicy, name: str, in_certificate: str, sni: str
) -> None:
    host = "::1" if ":" in name else "127.0.0.1"
    async with responder(challenge_pair([in_certificate], AUTHORIZATION), host=host) as peer:
        assert await validate(policy, peer.port, name) is None
    assert peer.names == [sni]


async def test_an_rsa_key(policy: ValidationPolicy) -> None:
    pair = challenge_pair(["a.test"], AUTHORIZATION, key=rsa.generate_private_key(65_537, 2048))
    async with responder(pair) as peer:
        assert await validate(policy, peer.port) is None


@pytest.mark.parametrize(
    ("names", "differs", "said"),
    [
        (["a.test"], {"value": b"\x04\x20" + bytes(32)}, "expected 0420"),
        (["a.test"], {"value": b"\x04\x00"}, "expected 0420"),
        (["a.test"], {"value": bytes(32)}, "expected 0420"),
        (["a.test"], {"critical": False}, "not critical"),
        (["a.test"], {"oid": None}, f"no acmeIdentifier extension ({ACME_IDENTIFIER})"),
        (["a.test"], {"oid": DRAFT_IDENTIFIER}, "no acmeIdentifier"),
        (["a.test", "b.test"], {}, "not exactly one entry"),
        (["a.test", "a.test"], {}, "not exactly one entry"),
        (["a.test", "127.0.0.1"], {}, "not exactly one entry"),
        ([], {}, "no subjectAltName"),
        (["b.test"], {}, "dNSName 'b.test', not for a.test"),
        (["*.test"], {}, "dNSName '*.test', not for a.test"),
        (["127.0.0.1"], {}, "iPAddress '7f000001', not for a.test"),
        (["a.test"], {"signer": OTHER}, "not signed by its own key"),
        (["a.test"], {"issuer": "another"}, "not signed by its own key"),
    ],
)
async def test_a_wrong_certificate(
    policy: ValidationPolicy, names: list[str], differs: dict[str, Any], said: str
) -> None:
    async with responder(challenge_pair(names, AUTHORIZATION, **differs)) as peer:
        seen = await validate(policy, peer.port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", False)
    assert said in seen[1]
    assert "127.0.0.1" in seen[1]


@pytest.mark.parametrize("names", [["127.0.0.2"], ["a.test"], ["::ffff:127.0.0.1"]])
async def test_a_certificate_that_is_not_for_the_address(policy: ValidationPolicy, names: list[str]) -> None:
    async with responder(challenge_pair(names, AUTHORIZATION)) as peer:
        seen = await validate(policy, peer.port, "127.0.0.1")
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", False)
    assert "not for 127.0.0.1" in seen[1]


@pytest.mark.parametrize("protocols", [(), ("http/1.1",), ("acme-tls/2", "h2")])
async def test_without_the_protocol(policy: ValidationPolicy, protocols: tuple[str, ...]) -> None:
    """Its certificate, which is somebody's, is not quoted."""
    async with responder(challenge_pair(["secret.test"], AUTHORIZATION), protocols=protocols) as peer:
        seen = await validate(policy, peer.port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("tls", True)
    assert "secret" not in seen[1]


async def test_a_right_certificate_without_the_protocol(policy: ValidationPolicy) -> None:
    async with responder(challenge_pair(["a.test"], AUTHORIZATION), protocols=()) as peer:
        seen = await validate(policy, peer.port)
    assert seen is not None
    assert seen[0] == "tls"
    assert "did not negotiate 'acme-tls/1'" in seen[1]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_1_only(policy: ValidationPolicy) -> None:
    old = ssl.create_default_context()
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.set_alpn_protocols([PROTOCOL])
    pair = challenge_pair(["a.test"], AUTHORIZATION)
    async with responder(pair, oldest=ssl.TLSVersion.TLSv1, newest=ssl.TLSVersion.TLSv1_1) as peer:
        seen = await validate(policy, peer.port)
        assert not peer.done
        _, writer = await asyncio.open_connection("127.0.0.1", peer.port, ssl=old, server_hostname="a.test")
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.1"
        writer.close()
    assert seen is not None
    assert (seen[0], seen[2]) == ("tls", True)


async def test_a_huge_chain(policy: ValidationPolicy) -> None:
    pair = challenge_pair(["a.test"], AUTHORIZATION)
    other = challenge_pair([f"{number}.{'x' * 60}.test" for number in range(100)], AUTHORIZATION)
    async with responder(pair, *[other] * 12) as peer:
        seen = await validate(policy, peer.port)
        assert await validate(replace(policy, max_handshake=200_000), peer.port) is None
    assert seen is not None
    assert (seen[0], seen[2]) == ("tls", False)
    assert "more than 65536 octets" in seen[1]


async def test_no_more_is_read_than_is_allowed(policy: ValidationPolicy) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(10)
        while sent < 100_000_000:
            # HelloRequest, which a client passes over while it waits for ServerHello
            writer.write(b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 7_000)
            await writer.drain()
            sent += 63_000

    async with raw(endless) as port:
        seen = await validate(policy, port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("tls", False)
    assert "more than 65536 octets" in seen[1]
    assert sent < 50_000_000


@pytest.mark.parametrize("drip", [False, True])
async def test_a_peer_that_hangs(policy: ValidationPolicy, drip: bool) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\x3f\xff")
        while not reader.at_eof():
            if drip:
                writer.write(b"\x02")
            await asyncio.sleep(0.02)

    async with raw(slow) as port, asyncio.timeout(20):
        seen = await validate(replace(policy, timeout=0.4), port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)
    assert "0.4 s" in seen[1]


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_no_tls(policy: ValidationPolicy, said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(said)

    async with raw(answer) as port:
        seen = await validate(policy, port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("tls", True)


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"\x16\x03\x03" + rest)))
def test_whatever_a_peer_says_has_a_typed_outcome(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(said)

    async def run() -> Seen:
        async with raw(answer) as port:
            return await validate(ValidationPolicy(), port, "127.0.0.1")

    seen = asyncio.run(run())
    assert seen is not None
    assert seen[0] in {"tls", "connection"}


async def test_nobody_there(policy: ValidationPolicy) -> None:
    seen = await validate(policy, 1)
    assert seen is not None
    assert (seen[0], seen[2]) == ("connection", True)
    assert "a.test port 1 at 127.0.0.1" in seen[1]


async def test_the_next_address_is_tried(policy: ValidationPolicy) -> None:
    async with responder(challenge_pair(["two.test"], AUTHORIZATION)) as peer:
        assert await validate(policy, peer.port, "two.test") is None


async def test_without_the_name(policy: ValidationPolicy) -> None:
    seen = await validate(policy, 1, "nowhere.test")
    assert seen is not None
    assert (seen[0], seen[2]) == ("dns", True)
    assert "NXDOMAIN" in seen[1]


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
@pytest.mark.parametrize("name", ["a.test", "127.0.0.1"])
async def test_networks(
    policy: ValidationPolicy, name: str, allowed: tuple[str, ...], denied: tuple[str, ...], reached: bool
) -> None:
    bounded = replace(
        policy, allowed_networks=tuple(map(ip_network, allowed)), denied_networks=tuple(map(ip_network, denied))
    )
    async with responder(challenge_pair([name], AUTHORIZATION)) as peer:
        seen = await validate(bounded, peer.port, name)
    assert (seen is None) == reached
    assert bool(peer.names) == reached
    if seen is not None:
        assert (seen[0], seen[2]) == ("connection", False)
        assert "policy forbids" in seen[1]


async def test_denied_addresses_are_left_out(policy: ValidationPolicy) -> None:
    async with responder(challenge_pair(["two.test"], AUTHORIZATION)) as peer:
        bounded = replace(policy, denied_networks=(ip_network("127.0.0.3/32"),))
        assert await validate(bounded, peer.port, "two.test") is None
        bounded = replace(policy, denied_networks=(ip_network("127.0.0.1/32"),))
        seen = await validate(bounded, peer.port, "two.test")
    assert seen is not None
    assert peer.names == ["two.test"]


async def test_a_handshake_holds_nobody_up(policy: ValidationPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that OpenSSL computes ends only when the event loop has had its turn."""
    turned = threading.Event()
    had_its_turn = []

    def compute(_peer: ssl.SSLObject) -> bool:
        had_its_turn.append(turned.wait(20))
        raise ssl.SSLError

    monkeypatch.setattr("protocols.acme.validation.tls_alpn_01._step", compute)
    asyncio.get_running_loop().call_later(0.1, turned.set)
    async with responder(challenge_pair(["a.test"], AUTHORIZATION)) as peer:
        await validate(replace(policy, timeout=30), peer.port)
    assert had_its_turn == [True]


async def test_what_nobody_foresaw_is_a_failed_attempt(
    policy: ValidationPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise IndexError("inside a library")

    monkeypatch.setattr("protocols.acme.validation.tls_alpn_01.check_certificate", fail)
    async with responder(challenge_pair(["a.test"], AUTHORIZATION)) as peer:
        seen = await validate(policy, peer.port)
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", False)
    assert "library" not in seen[1]
