"""CAA records over the wire: aliases, absence, sizes, and whose word it is that an answer is authentic."""

from typing import Any

import dns.flags
import dns.message
import pytest
from dnslib import RCODE

from protocols.acme.caa.records import CaaRecord
from protocols.acme.validation.model import Dnssec
from protocols.acme.validation.resolver import CaaAnswer, DnsFailure, Resolver

NONE = CaaAnswer((), authenticated=False)


@pytest.fixture
def resolver(nameserver: Any) -> Resolver:
    return Resolver((nameserver.address,), 2.0)


async def test_records_are_given_as_they_are(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "CAA"): ["0 issue ca.test; a=b", "128 TBS ", "7 iodef mailto:x@y"]}
    answer = await resolver.caa("a.test")
    assert set(answer.records) == {
        CaaRecord(0, "issue", b"ca.test; a=b"),
        CaaRecord(128, "TBS", b""),
        CaaRecord(7, "iodef", b"mailto:x@y"),
    }


async def test_aliases_are_followed_and_lead_to_nothing(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {
        ("a.test", "CNAME"): ["b.test"],
        ("b.test", "CNAME"): ["c.test"],
        ("c.test", "CAA"): ["0 issue ca.test"],
        ("d.test", "CNAME"): ["nowhere.test"],
        ("e.test", "CNAME"): ["a-only.test"],
        ("a-only.test", "A"): ["192.0.2.1"],
    }
    assert (await resolver.caa("a.test")).records == (CaaRecord(0, "issue", b"ca.test"),)
    for name in ("d.test", "e.test", "no-such-name.test", "a-only.test"):
        assert await resolver.caa(name) == NONE


async def test_endless_aliases_are_no_answer(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {(f"n{i}.test", "CNAME"): [f"n{(i + 1) % 30}.test"] for i in range(30)}
    with pytest.raises(DnsFailure) as failure:
        await resolver.caa("n0.test")
    assert not failure.value.retryable
    assert len(nameserver.queries) <= 10


@pytest.mark.parametrize(
    ("rcode", "said"),
    [
        (RCODE.SERVFAIL, "SERVFAIL"),
        (RCODE.REFUSED, "REFUSED"),
        (RCODE.NOTIMP, "NOTIMP"),
        (RCODE.FORMERR, "FORMERR"),
    ],
)
async def test_refusals_of_the_server_are_no_answer(nameserver: Any, resolver: Resolver, rcode: int, said: str) -> None:
    nameserver.rcodes = {"a.test": rcode}
    with pytest.raises(DnsFailure, match=said) as failure:
        await resolver.caa("a.test")
    assert failure.value.retryable


async def test_silence_is_no_answer(nameserver: Any) -> None:
    nameserver.silent = {"a.test"}
    with pytest.raises(DnsFailure, match=r"in 0\.2 s"):
        await Resolver((nameserver.address,), 0.2).caa("a.test")


async def test_what_is_too_long_for_a_datagram_comes_over_tcp(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "CAA"): [f"0 issue ca{i}.test; a={'x' * 60}" for i in range(100)]}
    assert len((await resolver.caa("a.test")).records) == 100
    assert nameserver.queries == [("a.test", "CAA")] * 2


async def test_more_records_than_are_looked_at_are_no_answer(nameserver: Any, resolver: Resolver) -> None:
    """One that is not looked at may be the one that forbids."""
    nameserver.records = {("a.test", "CAA"): [f"0 issue ca{i}.test" for i in range(101)]}
    with pytest.raises(DnsFailure, match="more than 100"):
        await resolver.caa("a.test")


# --- DNSSEC -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dnssec", "asks", "told"),
    [(Dnssec.OFF, False, False), (Dnssec.OPPORTUNISTIC, True, True), (Dnssec.REQUIRE, True, True)],
)
async def test_the_server_is_asked_whether_it_authenticated(
    nameserver: Any, dnssec: Dnssec, asks: bool, told: bool
) -> None:
    nameserver.records = {("a.test", "CAA"): ["0 issue ca.test"]}
    nameserver.authenticated = {"a.test", "none.test"}
    resolver = Resolver((nameserver.address,), 2.0, dnssec)
    assert (await resolver.caa("a.test")).authenticated is told
    assert (await resolver.caa("none.test")).authenticated is told, "absence is authenticated too"
    for wire in nameserver.wires:
        query = dns.message.from_wire(wire)
        assert bool(query.flags & dns.flags.AD) is asks
        assert bool(query.ednsflags & dns.flags.DO) is asks


async def test_an_answer_is_authentic_where_every_alias_is(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {
        ("a.test", "CNAME"): ["b.test"],
        ("b.test", "CAA"): ["0 issue ca.test"],
        ("c.test", "CNAME"): ["nowhere.test"],
    }
    nameserver.authenticated = {"b.test", "nowhere.test"}
    assert not (await resolver.caa("a.test")).authenticated
    assert not (await resolver.caa("c.test")).authenticated
    nameserver.authenticated |= {"a.test", "c.test"}
    assert (await resolver.caa("a.test")).authenticated
    assert (await resolver.caa("c.test")).authenticated


async def test_required_of_every_answer(nameserver: Any) -> None:
    resolver = Resolver((nameserver.address,), 2.0, Dnssec.REQUIRE)
    nameserver.records = {
        ("a.test", "CAA"): ["0 issue ca.test"],
        ("a.test", "A"): ["192.0.2.1"],
        ("a.test", "TXT"): ["text"],
    }
    for lookup in (
        resolver.caa("a.test"),
        resolver.caa("none.test"),
        resolver.addresses("a.test"),
        resolver.txt("a.test"),
    ):
        with pytest.raises(DnsFailure, match="not authenticated") as failure:
            await lookup
        assert not failure.value.retryable
    nameserver.authenticated = {"a.test", "none.test"}
    assert (await resolver.caa("none.test")).authenticated
    assert await resolver.txt("a.test") == ("text",)
    assert [str(each) for each in await resolver.addresses("a.test")] == ["192.0.2.1"]


async def test_validation_asks_as_ever_where_it_is_not_required(nameserver: Any, resolver: Resolver) -> None:
    nameserver.records = {("a.test", "TXT"): ["text"]}
    assert await resolver.txt("a.test") == ("text",)
    query = dns.message.from_wire(nameserver.wires[0])
    assert query.edns == -1
    assert not query.flags & dns.flags.AD


async def test_required_addresses_are_not_asked_of_the_system(nameserver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What getaddrinfo gives does not tell whether it was authenticated."""
    resolver = Resolver((), 0.2, Dnssec.REQUIRE)
    monkeypatch.setattr(resolver, "_system_addresses", None)

    async def query(name: str, _kind: object) -> Any:
        raise DnsFailure(f"{name} was asked of a nameserver", retryable=True)

    monkeypatch.setattr(resolver, "_query", query)
    with pytest.raises(DnsFailure, match="of a nameserver"):
        await resolver.addresses("a.test")
