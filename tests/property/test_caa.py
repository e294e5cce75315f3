"""CAA: values are read as the grammar has them, and whatever a nameserver sends is an answer or a failure."""

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.acme.caa.checking import look_up
from protocols.acme.caa.evaluation import Applicant, CaaLookup, Verdict, evaluate
from protocols.acme.caa.records import CaaRecord, IssueValue, MalformedValueError, parse_issue_value
from protocols.acme.validation.resolver import CaaAnswer, DnsFailure, Resolver

US = Applicant(("ca.test",), "https://ca.test/acme/account/1", "http-01")
NOW = datetime.now(UTC)

LABEL = st.from_regex(r"[A-Za-z0-9](-{0,2}[A-Za-z0-9]){0,4}", fullmatch=True)
ISSUER = st.one_of(st.just(""), st.just("ca.test"), st.lists(LABEL, min_size=1, max_size=4).map(".".join))
VALUE = st.text(alphabet=[chr(c) for c in range(0x21, 0x7F) if c != 0x3B], max_size=20)
PARAMETERS = st.lists(
    st.tuples(st.one_of(LABEL, st.sampled_from(["accounturi", "validationmethods"])), VALUE), max_size=4
)
ODD = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="ca.test;= \t-_\x00\xe4\n", max_size=40).map(lambda text: text.encode("latin-1")),
)


@given(ISSUER, PARAMETERS, st.randoms(use_true_random=False))
def test_values_are_read_as_they_were_written(issuer, parameters, random):
    value = IssueValue(issuer.lower(), tuple(parameters))
    assert parse_issue_value(value.encode()) == value

    def white():
        return random.choice(["", "", " ", "\t "])

    text = white() + issuer + white()
    for tag, given_value in parameters:
        text += f";{white()}{tag}{white()}={white()}{given_value}{white()}"
    assert parse_issue_value(text.encode()) == value


def _white(text, at):
    while at < len(text) and text[at] in " \t":
        at += 1
    return at


def _label(text, at):
    """The end of a label that begins here, or None."""
    end = at
    while end < len(text) and text[end].isascii() and (text[end].isalnum() or text[end] == "-"):
        end += 1
    return end if end > at and text[at] != "-" and text[end - 1] != "-" else None


def _domain(text, at):
    """The end of a domain name and the white space behind it; `at` where there is none, None where it breaks."""
    end = _label(text, at)
    if end is None:
        return at
    while end < len(text) and text[end] == ".":
        end = _label(text, end + 1)
        if end is None:
            return None
    return _white(text, end)


def _parameter(text, at):
    """The end of a parameter with the white space behind it, or None."""
    end = _label(text, at)
    if end is None:
        return None
    at = _white(text, end)
    if at == len(text) or text[at] != "=":
        return None
    at = _white(text, at + 1)
    while at < len(text) and "\x21" <= text[at] <= "\x7e" and text[at] != ";":
        at += 1
    return _white(text, at)


def _is_issue_value(data):
    """The grammar of RFC 8659 section 4.2, production by production, a character at a time."""
    text = data.decode("latin-1")
    at = _domain(text, _white(text, 0))
    if at is None or at == len(text):
        return at is not None
    first = True
    while text[at] == ";":
        at = _white(text, at + 1)
        if first and at == len(text):
            return True
        first = False
        at = _parameter(text, at)
        if at is None or at == len(text):
            return at is not None
    return False


@settings(max_examples=400)
@given(st.one_of(ODD, st.builds(lambda first, rest: first.encode() + rest, ISSUER, ODD)))
def test_what_the_grammar_has_not_is_malformed(data):
    try:
        value = parse_issue_value(data)
    except MalformedValueError:
        assert not _is_issue_value(data)
        return
    assert _is_issue_value(data)
    assert parse_issue_value(value.encode()) == value


TAGS = st.sampled_from(["issue", "ISSUE", "issuewild", "iodef", "issuemail", "tbs"])
VALUES = st.one_of(
    ODD,
    st.builds(lambda issuer, parameters: IssueValue(issuer, tuple(parameters)).encode(), ISSUER, PARAMETERS),
)
RECORDS = st.lists(st.builds(CaaRecord, st.integers(0, 255), TAGS, VALUES), max_size=5).map(tuple)


@given(RECORDS, st.booleans())
def test_nothing_but_our_name_or_silence_lets_pass(records, wildcard):
    lookup = CaaLookup("a.test", NOW, "test" if records else "", records)
    verdict = evaluate(lookup, wildcard=wildcard, applicant=US)
    assert isinstance(verdict, Verdict)
    assert verdict.reason.isprintable()
    if verdict.allowed:
        issue = [each for each in records if each.tag.lower() in {"issue"} | ({"issuewild"} if wildcard else set())]
        assert not issue or any(b"ca.test" in each.value.lower() for each in issue)
        assert not any(each.tag == "tbs" and each.flags & 128 for each in records)
    nobody = Applicant((), US.account_url, US.method)
    restricts = any(each.tag.lower() == "issue" for each in records)
    assert not (restricts and evaluate(lookup, wildcard=wildcard, applicant=nobody).allowed)


# --- Answers of nameservers ---------------------------------------------------------------------------------------


class Scripted:
    """Sends what it is told, then, by UDP, an honest SERVFAIL: what is ignored is not waited for."""

    def __init__(self) -> None:
        self.answer = b""
        self.over_tcp = False

    def answers(self, query: bytes, *, tcp: bool) -> list[bytes]:
        honest = dns.message.make_response(dns.message.from_wire(query))
        if self.over_tcp and not tcp:
            honest.flags |= dns.flags.TC
            return [honest.to_wire()]
        told = query[:2] + self.answer[2:]
        honest.set_rcode(dns.rcode.SERVFAIL)
        return [told] if tcp else [told, honest.to_wire()]


@contextmanager
def serving(script: Scripted) -> Iterator[str]:
    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, connection = self.request
            for answer in script.answers(data, tcp=False):
                connection.sendto(answer, self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = int.from_bytes(self.rfile.read(2), "big")
            for answer in script.answers(self.rfile.read(length), tcp=True):
                self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tcp) as tcp,
        socketserver.ThreadingUDPServer(("127.0.0.1", tcp.server_address[1]), Udp) as udp,
    ):
        for server in (tcp, udp):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{tcp.server_address[1]}"
        tcp.shutdown()
        udp.shutdown()


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Scripted, str]]:
    script = Scripted()
    with serving(script) as address:
        yield script, address


def honest_answer(kind: str, *records: str) -> bytes:
    answer = dns.message.make_response(dns.message.make_query("a.test", kind))
    answer.answer.append(dns.rrset.from_text("a.test.", 1, "IN", "CNAME", "b.test."))
    answer.answer.append(dns.rrset.from_text("b.test.", 1, "IN", kind, *records))
    return answer.to_wire()


HONEST = {
    "CAA": honest_answer("CAA", '0 issue "ca.test; accounturi=x"', '128 tbs "x"', '0 iodef "mailto:x@y"'),
    "TXT": honest_answer("TXT", '"one" "piece"', '"\\200\\000\\""', '""'),
    "A": honest_answer("A", "192.0.2.1", "192.0.2.2"),
}


def spoiled(kind: str, changes: list[tuple[int, int]], cut: int) -> bytes:
    data = bytearray(HONEST[kind])
    for place, octet in changes:
        data[place % len(data)] = octet
    return bytes(data[: len(data) - cut])


KINDS = st.sampled_from(sorted(HONEST))
ANSWERS = st.one_of(
    st.builds(
        spoiled,
        KINDS,
        st.lists(st.tuples(st.integers(2, 200), st.integers(0, 255)), max_size=4),
        st.sampled_from([0, 0, 0, 1, 2, 40]),
    ),
    st.binary(min_size=2, max_size=80),
)


async def asked(address: str, kind: str) -> object:
    resolver = Resolver((address,), 2.0)
    try:
        match kind:
            case "CAA":
                return await resolver.caa("a.test")
            case "TXT":
                return await resolver.txt("a.test")
            case _:
                return await resolver.addresses("a.test")
    except DnsFailure as failure:
        return failure


@settings(max_examples=240, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=KINDS, answer=ANSWERS, over_tcp=st.booleans())
def test_whatever_a_nameserver_sends_is_an_answer_or_a_failure(scripted, kind, answer, over_tcp):
    script, address = scripted
    script.answer, script.over_tcp = answer, over_tcp
    found = asyncio.run(asked(address, kind))
    if isinstance(found, DnsFailure):
        assert found.detail.isprintable()
    elif kind == "CAA":
        assert isinstance(found, CaaAnswer)
        assert all(isinstance(record, CaaRecord) for record in found.records)
    else:
        assert isinstance(found, tuple)
        assert found
        assert all(isinstance(each, str if kind == "TXT" else IPv4Address | IPv6Address) for each in found)


def test_the_honest_answer_is_read(scripted):
    script, address = scripted
    script.answer, script.over_tcp = HONEST["CAA"], True
    found = asyncio.run(look_up(Resolver((address,), 2.0), ["a.test"]))["a.test"]
    assert isinstance(found, CaaLookup)
    assert {record.tag for record in found.records} == {"issue", "tbs", "iodef"}


def test_the_honest_answers_of_other_kinds_are_read(scripted):
    script, address = scripted
    script.answer = HONEST["TXT"]
    assert set(asyncio.run(asked(address, "TXT"))) >= {"onepiece", ""}
    script.answer = HONEST["A"]
    assert set(asyncio.run(asked(address, "A"))) == {IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")}
