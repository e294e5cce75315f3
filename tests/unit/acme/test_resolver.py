"""Lookups against a nameserver on the loopback, and by the system."""

import socket
from ipaddress import ip_address
from typing import Any

import pytest
from dnslib import RCODE

from protocols.acme.validation.resolver import DnsFailure, Nameserver, Resolver, parse_nameserver

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


@pytest.fixture
def resolver(nameserver: Any) -> Resolver:
    return Resolver((nameserver.address,), 2.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Nameserver("192.0.2.1")),
        ("192.0.2.1:8053", Nameserver("192.0.2.1", 8053)),
        ("2001:db8::1", Nameserver("2001:db8::1")),
        ("[2001:db8::1]", Nameserver("2001:db8::1")),
        ("[2001:db8::1]:8053", Nameserver("2001:db8::1", 8053)),
    ],
)
def test_nameserver_addresses(text: str, expected: Nameserver) -> None:
    assert parse_nameserver(text) == expected


@pytest.mark.parametrize("text", ["", "ns.test", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", "[::1", "[::1]53"])
def test_no_nameserver_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Resolver((text,))


async def test_both_families(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "A"): [str(V4), str(V4)], ("a.test", "AAAA"): [str(V6)]}
    assert set(await resolver.addresses("A.test.")) == {V4, V6}


async def test_one_family_is_enough(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "A"): [str(V4)]}
    assert await resolver.addresses("a.test") == (V4,)


async def test_addresses_are_bounded(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "A"): [f"192.0.2.{i}" for i in range(1, 60)]}
    assert len(await resolver.addresses("a.test")) == 16


async def test_aliases_are_followed(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "CNAME"): ["b.test"], ("b.test", "CNAME"): ["c.test"], ("c.test", "A"): [str(V4)]}
    assert await resolver.addresses("a.test") == (V4,)


async def test_endless_aliases(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {(f"n{i}.test", "CNAME"): [f"n{i + 1}.test"] for i in range(30)}
    with pytest.raises(DnsFailure) as failure:
        await resolver.txt("n0.test")
    assert not failure.value.retryable
    assert len(nameserver.queries) <= 10


async def test_txt_strings_are_joined_also_over_tcp(nameserver: Any, resolver: Resolver) -> None:
    texts = [f"{i}" + "x" * 250 for i in range(10)]
    nameserver.records = {("a.test", "TXT"): texts}
    assert set(await resolver.txt("a.test")) == set(texts)


@pytest.mark.parametrize(
    ("rcode", "said"), [(RCODE.NXDOMAIN, "NXDOMAIN"), (RCODE.SERVFAIL, "SERVFAIL"), (RCODE.REFUSED, "REFUSED")]
)
async def test_refusals_of_the_server(nameserver: Any, resolver: Resolver, rcode: int, said: str) -> None:
    nameserver.rcodes = {"a.test": rcode}
    for lookup in (resolver.addresses("a.test"), resolver.txt("a.test")):
        with pytest.raises(DnsFailure, match=said) as failure:
            await lookup
        assert failure.value.retryable


async def test_no_record_of_the_type(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "TXT"): ["x"], ("b.test", "A"): [str(V4)]}
    assert await resolver.txt("b.test") == ()
    with pytest.raises(DnsFailure, match="no A or AAAA"):
        await resolver.addresses("a.test")


async def test_silence(nameserver: Any) -> None:
    nameserver.silent = {"a.test"}
    with pytest.raises(DnsFailure, match=r"in 0\.3 s") as failure:
        await Resolver((nameserver.address,), 0.3).txt("a.test")
    assert failure.value.retryable


async def test_name_that_is_too_long(resolver: Resolver) -> None:
    with pytest.raises(DnsFailure) as failure:
        await resolver.txt(".".join(["a" * 63] * 4))
    assert not failure.value.retryable


async def test_localhost_without_a_record(resolver: Resolver) -> None:
    loopback = (ip_address("127.0.0.1"), ip_address("::1"))
    assert await resolver.addresses("localhost") == loopback
    assert await resolver.addresses("a.b.localhost") == loopback
    with pytest.raises(DnsFailure):
        await resolver.addresses("notlocalhost")


async def test_a_server_may_know_localhost_better(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.localhost", "A"): [str(V4)]}
    assert await resolver.addresses("a.localhost") == (V4,)


async def test_the_system_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(name: str, *_: object, **__: object) -> list[Any]:
        if name != "a.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6, 1, 6, "", (f"{V6}%eth0", 0, 0, 0)), (socket.AF_INET, 1, 6, "", (str(V4), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = Resolver()
    assert await resolver.addresses("a.test") == (V6, V4)
    assert ip_address("127.0.0.1") in await resolver.addresses("a.localhost")
    with pytest.raises(DnsFailure, match="not known"):
        await resolver.addresses("b.test")


@pytest.mark.parametrize("name", ["0x7f000001", "1.0x7f", "127.1"])
async def test_numbers_are_no_names_for_the_system(name: str) -> None:
    with pytest.raises(DnsFailure, match="not a host name"):
        await Resolver().addresses(name)
