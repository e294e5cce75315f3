"""What CAA records allow: the examples of RFC 8659 and RFC 8657, and what their texts say besides."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ca_server.domain.names import dns_identifier
from protocols.acme.caa import checking, climbing
from protocols.acme.caa.checking import look_up, shown_by
from protocols.acme.caa.climbing import Climb
from protocols.acme.caa.evaluation import Applicant, CaaLookup, evaluate
from protocols.acme.caa.records import CaaRecord, IssueValue, MalformedValueError, parse_issue_value
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, ChallengeStatus
from protocols.acme.validation.resolver import CaaAnswer, DnsFailure

NOW = datetime.now(UTC)
ACCOUNT = "https://example.net/account/1234"
US = Applicant(("ca1.example.net", "ca2.example.org"), ACCOUNT, "http-01")


def record(text: str) -> CaaRecord:
    flags, tag, value = text.split(" ", 2)
    return CaaRecord(int(flags), tag, value.strip('"').encode("latin-1"))


def lookup(*texts: str) -> CaaLookup:
    return CaaLookup("certs.example.com", NOW, "example.com" if texts else "", tuple(map(record, texts)))


@pytest.mark.parametrize(
    ("text", "issuer", "parameters"),
    [
        ("ca1.example.net", "ca1.example.net", ()),
        ("CA1.Example.NET", "ca1.example.net", ()),
        ("  ca1.example.net\t", "ca1.example.net", ()),
        (";", "", ()),
        ("", "", ()),
        (" ", "", ()),
        (" ; ", "", ()),
        ("ca1.example.net; account=230123", "ca1.example.net", (("account", "230123"),)),
        ("ca1.example.net;account=230123 ", "ca1.example.net", (("account", "230123"),)),
        ("ca1.example.net ;", "ca1.example.net", ()),
        ("; policy=ev", "", (("policy", "ev"),)),
        ("a-b--c.x; t-a = v=1 ;\tu=", "a-b--c.x", (("t-a", "v=1"), ("u", ""))),
    ],
)
def test_values(text: str, issuer: str, parameters: tuple[tuple[str, str], ...]) -> None:
    assert parse_issue_value(text.encode()) == IssueValue(issuer, parameters)


@pytest.mark.parametrize(
    "text",
    [
        "%%%%%",
        "ca1.example.net.",
        ".example.net",
        "-ca.example.net",
        "ca-.example.net",
        "ca_1.example.net",
        "ca1.example.net account=1",
        "ca1.example.net ca2.example.org",
        "ca1.example.net; account",
        "ca1.example.net; account=1;",
        "ca1.example.net; ; a=1",
        "ca1.example.net; a=1 2",
        "ca1.example.net; =1",
        "ca1.example.net; a_b=1",
        "ca1.example.net\n",
        "ca1.example.net; a=\x7f",
        "c\xe4.example.net",
    ],
)
def test_malformed_values(text: str) -> None:
    with pytest.raises(MalformedValueError):
        parse_issue_value(text.encode("latin-1"))


# --- RFC 8659 -----------------------------------------------------------------------------------------------------

ALLOWED, REFUSED = True, False


@pytest.mark.parametrize(
    ("records", "wildcard", "allowed", "said"),
    [
        ((), False, ALLOWED, "no CAA record at certs.example.com or above it"),
        # section 4.2
        (('0 issue "ca1.example.net"', '0 issue "ca2.example.org"'), False, ALLOWED, "ca1.example.net"),
        (('0 issue "ca1.example.net; account=230123"',), False, ALLOWED, "section 4.2"),
        (('0 issue "%%%%%"',), False, REFUSED, "section 4.2"),
        (('0 issue ";"',), False, REFUSED, "names no CA"),
        (('0 issue ""',), False, REFUSED, "names no CA"),
        (('0 issue ";"', '0 issue "CA2.example.org"'), False, ALLOWED, "names this CA"),
        (('0 issue "other.example"',), False, REFUSED, 'example.com has CAA 0 issue "other.example"'),
        (('0 ISSUE "other.example"',), False, REFUSED, "names another CA"),
        (('0 issue "ca1.example.net.evil"',), False, REFUSED, "names another CA"),
        (('0 issue "ca1.example.net."',), False, REFUSED, "forbids issuance"),
        (('0 issue "ca1.example.net; account=1;"',), False, REFUSED, "not written as tag=value"),
        # section 4.3
        (('0 issue "ca1.example.net"', '0 issuewild ";"'), True, REFUSED, 'issuewild ";"'),
        (('0 issue "ca1.example.net"', '0 issuewild ";"'), False, ALLOWED, "section 4.2"),
        (('0 issue "ca1.example.net"',), True, ALLOWED, "section 4.2"),
        (('0 issue ";"', '0 issuewild "ca1.example.net"'), True, ALLOWED, "section 4.3"),
        (('0 issue ";"', '0 issuewild "ca1.example.net"'), False, REFUSED, 'issue ";"'),
        (('0 issuewild "ca1.example.net"',), False, ALLOWED, "is about the name"),
        (('0 issuewild ";"',), False, ALLOWED, "section 4"),
        (('0 IssueWild "other.example"',), True, REFUSED, "names another CA"),
        # section 4.4, and tags that say nothing of names (RFC 9495)
        (('0 iodef "mailto:security@example.com"',), False, ALLOWED, "is about the name"),
        (('128 iodef "mailto:security@example.com"',), True, ALLOWED, "about wildcard names"),
        (('0 issuemail ";"', '128 issuemail "other.example"'), False, ALLOWED, "is about the name"),
        # section 4.5
        (('0 issue "ca1.example.net"', '128 tbs "Unknown"'), False, REFUSED, '128 tbs "Unknown", which is critical'),
        (('128 TBS "Unknown"',), False, REFUSED, "section 4.1"),
        (('0 tbs "Unknown"',), False, ALLOWED, "is about the name"),
        (('127 tbs "Unknown"',), False, ALLOWED, "is about the name"),
        (('255 issue "ca1.example.net"',), False, ALLOWED, "names this CA"),
    ],
)
def test_rfc_8659(records: tuple[str, ...], wildcard: bool, allowed: bool, said: str) -> None:
    verdict = evaluate(lookup(*records), wildcard=wildcard, applicant=US)
    assert verdict.allowed is allowed
    assert said in verdict.reason
    backwards = evaluate(lookup(*reversed(records)), wildcard=wildcard, applicant=US)
    assert backwards.allowed is allowed, "records have no order"


# --- RFC 8657 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "account", "method", "allowed", "said"),
    [
        (f"ca1.example.net; accounturi={ACCOUNT}", ACCOUNT, "http-01", ALLOWED, "names this CA"),
        (f"ca1.example.net; accounturi={ACCOUNT}", ACCOUNT + "5", "http-01", REFUSED, "another account"),
        (f"ca1.example.net; accounturi={ACCOUNT}", "", "http-01", REFUSED, "for one account"),
        (f"ca1.example.net; AccountURI={ACCOUNT}5", ACCOUNT, "http-01", REFUSED, "another account"),
        ("ca1.example.net; accounturi=", "", "http-01", ALLOWED, "names this CA"),
        ("ca1.example.net; accounturi=", ACCOUNT, "http-01", REFUSED, "another account"),
        (
            "ca1.example.net; accounturi=HTTPS://example.net/account/1234",
            ACCOUNT,
            "http-01",
            REFUSED,
            "another account",
        ),
        (f"ca1.example.net; accounturi={ACCOUNT}; accounturi={ACCOUNT}", ACCOUNT, "http-01", REFUSED, "more than one"),
        ("ca1.example.net; validationmethods=dns-01,xyz-01", ACCOUNT, "dns-01", ALLOWED, "names this CA"),
        ("ca1.example.net; validationmethods=dns-01,xyz-01", ACCOUNT, "http-01", REFUSED, "does not list http-01"),
        ("ca1.example.net; validationmethods=dns-01", ACCOUNT, "DNS-01", REFUSED, "does not list DNS-01"),
        ("ca1.example.net; validationmethods=dns-01", ACCOUNT, "", REFUSED, "does not list every method"),
        ("ca1.example.net; validationmethods=", ACCOUNT, "", REFUSED, "no list of methods"),
        ("ca1.example.net; validationmethods=,http-01", ACCOUNT, "http-01", REFUSED, "no list of methods"),
        ("ca1.example.net; validationmethods=http_01,http-01", ACCOUNT, "http-01", REFUSED, "no list of methods"),
        (
            "ca1.example.net; validationmethods=http-01; VALIDATIONMETHODS=http-01",
            ACCOUNT,
            "http-01",
            REFUSED,
            "more than one validationmethods",
        ),
        (f"ca1.example.net; accounturi={ACCOUNT}; validationmethods=dns-01", ACCOUNT, "http-01", REFUSED, "section 4"),
        (f"ca1.example.net; accounturi={ACCOUNT}; validationmethods=dns-01", ACCOUNT, "dns-01", ALLOWED, "names this"),
        (f"other.example; accounturi={ACCOUNT}", ACCOUNT, "http-01", REFUSED, "another CA"),
    ],
)
def test_rfc_8657(value: str, account: str, method: str, allowed: bool, said: str) -> None:
    applicant = replace(US, account_url=account, method=method)
    for tag, wildcard in (("issue", False), ("issue", True), ("issuewild", True)):
        verdict = evaluate(lookup(f'0 {tag} "{value}"'), wildcard=wildcard, applicant=applicant)
        assert verdict.allowed is allowed
        assert said in verdict.reason


def test_of_several_records_any_may_allow_and_the_nearest_is_told() -> None:
    """A refusal names the record that comes closest."""
    near = '0 issue "ca1.example.net; accounturi=https://example.net/account/9"'
    records = ['0 issue "%%%"', '0 issue "other.example"', near]
    assert "another account" in evaluate(lookup(*records), wildcard=False, applicant=US).reason
    assert "another CA" in evaluate(lookup(*records[:2]), wildcard=False, applicant=US).reason
    allowing = f'0 issue "ca2.example.org; accounturi={ACCOUNT}"'
    assert evaluate(lookup(*records, allowing), wildcard=False, applicant=US).allowed


def test_what_peers_wrote_is_shown_cut_and_printable() -> None:
    shown = str(CaaRecord(0, "issue", b"\x1b[2J\n" + b"x" * 1000))
    assert len(shown) < 140
    assert shown.isprintable()


# --- RFC 8659 section 3 -------------------------------------------------------------------------------------------


class Zone:
    """CAA records by name; names in `failing` fail so often first, those in `hanging` never answer."""

    def __init__(self, **records: str) -> None:
        self.records = {name.replace("_", "."): text for name, text in records.items()}
        self.failing: dict[str, int] = {}
        self.hanging: set[str] = set()
        self.signed: set[str] = set()
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    async def caa(self, name: str) -> CaaAnswer:
        self.asked.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if name in self.hanging:
            await asyncio.Event().wait()
        if self.failing.get(name, 0):
            self.failing[name] -= 1
            raise DnsFailure(f"{name}: SERVFAIL", retryable=True)
        text = self.records.get(name)
        return CaaAnswer((record(text),) if text else (), name in self.signed)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climbing, "_PAUSE", 0)


async def climbed(zone: Zone, name: str) -> CaaLookup:
    found = (await look_up(zone, [name]))[name]
    assert isinstance(found, CaaLookup)
    return found


async def test_climbing_ends_at_the_first_name_with_records() -> None:
    zone = Zone(example_com='0 issue "a"', com='0 issue "b"')
    found = await climbed(zone, "x.certs.example.com")
    assert zone.asked == ["x.certs.example.com", "certs.example.com", "example.com"]
    assert (found.found_at, [str(each) for each in found.records]) == ("example.com", ['0 issue "a"'])


async def test_climbing_asks_the_top_level_domain_and_not_the_root() -> None:
    zone = Zone()
    found = await climbed(zone, "a.b.test")
    assert zone.asked == ["a.b.test", "b.test", "test"]
    assert (found.found_at, found.records) == ("", ())
    assert (await climbed(Zone(test='0 issue "a"'), "a.b.test")).found_at == "test"


async def test_records_that_restrict_nothing_end_the_climb_too() -> None:
    zone = Zone(a_test='0 iodef "mailto:x@y"', test='0 issue "other.example"')
    assert evaluate(await climbed(zone, "a.test"), wildcard=False, applicant=US).allowed


async def test_names_of_one_check_share_what_is_above_them() -> None:
    zone = Zone()
    await look_up(zone, [f"n{number}.example.com" for number in range(100)])
    assert sorted(set(zone.asked)) == sorted(zone.asked)
    assert len(zone.asked) == 102
    assert 1 < zone.most_at_once <= 8


@pytest.mark.parametrize(
    ("signed", "authenticated"), [({"a.test", "test"}, True), ({"a.test"}, False), ({"test"}, False)]
)
async def test_authenticated_is_what_all_answers_are(signed: set[str], authenticated: bool) -> None:
    zone = Zone()
    zone.signed = signed
    assert (await climbed(zone, "a.test")).authenticated is authenticated


async def test_what_fails_for_a_moment_is_asked_again_once() -> None:
    zone = Zone(test='0 issue "a"')
    zone.failing = {"a.test": 1}
    assert (await climbed(zone, "a.test")).found_at == "test"
    zone.failing = {"b.test": 2}
    found = await look_up(zone, ["b.test", "c.test"])
    assert isinstance(found["b.test"], DnsFailure)
    assert isinstance(found["c.test"], CaaLookup), "the others have their answer"


async def test_failures_below_records_are_not_passed_over() -> None:
    zone = Zone(test='0 issue "ca1.example.net"')
    zone.failing = {"a.test": 9}
    assert isinstance((await look_up(zone, ["a.test"]))["a.test"], DnsFailure)


async def test_queries_are_bounded() -> None:
    zone = Zone()
    long = ".".join(["a"] * 120) + ".test"
    found = (await look_up(zone, [long]))[long]
    assert isinstance(found, DnsFailure)
    assert "too many lookups" in found.detail
    assert len(zone.asked) == climbing.QUERIES_PER_CHECK + climbing.QUERIES_PER_NAME


async def test_time_is_bounded_and_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "CHECK_SECONDS", 0.5)
    zone = Zone()
    zone.hanging = {"a.test"}
    found = await look_up(zone, ["a.test", "b.test"])
    assert isinstance(found["a.test"], DnsFailure)
    assert "no answer within 0.5 s" in found["a.test"].detail
    assert isinstance(found["b.test"], CaaLookup)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("caa ")]


async def test_a_climb_that_is_given_up_takes_its_queries_with_it() -> None:
    zone = Zone()
    zone.hanging = {"a.test"}
    climb = Climb(zone, 1)
    task = asyncio.create_task(climb.relevant("a.test"))
    await asyncio.sleep(0.01)
    task.cancel()
    await climb.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("caa ")]


# --- The method by which control was shown ------------------------------------------------------------------------


def authorization(name: str, method: str, *, wildcard: bool = False, subdomains: bool = False) -> Authorization:
    def challenge(kind: str, status: ChallengeStatus) -> Challenge:
        return Challenge(f"{name}/{kind}", name, kind, "token", status, NOW)

    challenges = (challenge("another-01", ChallengeStatus.PENDING), challenge(method, ChallengeStatus.VALID))
    identifier = dns_identifier(name)
    valid = AuthorizationStatus.VALID
    return Authorization(name, "a", identifier, wildcard, valid, NOW, NOW, challenges, subdomains)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("a.test", "http-01"),
        ("*.a.test", "dns-01"),
        ("b.a.test", ""),
        ("c.test", "dns-persist-01"),
        ("c.c.test", "dns-persist-01"),
        ("c.d.c.test", "dns-account-01"),
        ("*.c.c.test", ""),
        ("xa.test", ""),
        ("test", ""),
    ],
)
def test_the_method_of_a_name(name: str, method: str) -> None:
    authorizations = (
        authorization("c.test", "dns-persist-01", subdomains=True),
        authorization("d.c.test", "dns-account-01", subdomains=True),
        authorization("a.test", "http-01"),
        authorization("a.test", "dns-01", wildcard=True),
    )
    assert shown_by(dns_identifier(name), authorizations) == method
