"""Policy: each rule denies by its own name, and what is listed passes."""

from datetime import timedelta

import pytest

from ca_server.core.csr import parse_csr
from ca_server.core.policy import csr_identifiers, decide, decide_identifiers, decide_validity, glob_matches, refusal
from ca_server.domain.enrollment import Allow, Deny, Hold, Protocol, Requester
from ca_server.domain.errors import ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier, email_identifier, ip_identifier, uri_identifier
from ca_server.domain.profiles import load_profile

A, B = dns_identifier("a.test"), dns_identifier("b.test")
ACME = Requester(Protocol.ACME, "account-7", "account")

RICH_NAMES = """
[names]
dns = ["exact.corp.example", "*.apps.corp.example"]
dns_suffixes = ["test", "example.net"]
dns_patterns = ["web-?.*.dc.example", "*.pat.example"]
ip_networks = ["10.0.0.0/8", "fd00::/8"]
email_domains = ["mail.example", ".dept.example"]
uri_prefixes = ["spiffe://example.org/", "urn:uuid:"]
allow_wildcard = true
max = 5
"""


@pytest.fixture(scope="module")
def rich(support):
    text = (support.PROFILES / "default.toml").read_text()
    head, _, rest = text.partition("[names]")
    return load_profile("rich", head + RICH_NAMES + rest[rest.index("[subject]") :], where="f")


ALLOWED = [
    dns_identifier("exact.corp.example"),
    dns_identifier("*.apps.corp.example"),
    dns_identifier("test"),
    dns_identifier("a.b.c.test"),
    dns_identifier("*.a.test"),
    dns_identifier("*.example.net"),
    dns_identifier("web-1.rack7.dc.example"),
    dns_identifier("any.pat.example"),
    dns_identifier("*.pat.example"),
    ip_identifier("10.255.0.1"),
    ip_identifier("fd00::1"),
    email_identifier("u@mail.example"),
    email_identifier("u@a.b.dept.example"),
    uri_identifier("spiffe://example.org/ns/x"),
    uri_identifier("urn:uuid:0b0c"),
]
DENIED = [
    (dns_identifier("other.corp.example"), "names.dns"),
    (dns_identifier("x.apps.corp.example"), "names.dns"),
    (dns_identifier("atest"), "names.dns"),
    (dns_identifier("a.nottest"), "names.dns"),
    (dns_identifier("test.com"), "names.dns"),
    (dns_identifier("web-12.rack7.dc.example"), "names.dns"),
    (dns_identifier("web-1.a.b.dc.example"), "names.dns"),
    (dns_identifier("*.rack7.dc.example"), "names.dns"),
    (dns_identifier("pat.example"), "names.dns"),
    (dns_identifier("*.corp.example"), "names.dns"),
    (ip_identifier("11.0.0.1"), "names.ip"),
    (ip_identifier("::ffff:10.0.0.1"), "names.ip"),
    (email_identifier("u@x.mail.example"), "names.email"),
    (email_identifier("u@dept.example"), "names.email"),
    (uri_identifier("spiffe://example.org.evil/x"), "names.uri"),
    (uri_identifier("spiffe://example.org/../x"), "names.uri"),
    (uri_identifier("spiffe://example.org/a/%2E%2e/x"), "names.uri"),
    (uri_identifier("spiffe://example.org/a%2f..%2fx"), "names.uri"),
    (uri_identifier("spiffe://example.org/a\\..\\x"), "names.uri"),
    (uri_identifier("https://example.org/"), "names.uri"),
]


@pytest.mark.parametrize("name", ALLOWED, ids=str)
def test_allowed_names(rich, name):
    assert decide_identifiers(rich, [name], ACME) == ()


@pytest.mark.parametrize(("name", "rule"), DENIED, ids=str)
def test_denied_names(rich, name, rule):
    (denial,) = decide_identifiers(rich, [name], ACME)
    assert (denial.rule, denial.identifier) == (rule, name)


def test_quick_start_names(support):
    profile = support.profile_named("default")
    allowed = ["localhost", "x.internal", "h.home.arpa", "www.example.com", "*.dev.test"]
    names = [*map(dns_identifier, allowed), *map(ip_identifier, ["127.0.0.1", "192.168.1.1", "172.31.0.1", "::1"])]
    assert decide_identifiers(profile, names, ACME) == ()
    for name in (dns_identifier("www.example.org"), ip_identifier("172.32.0.1"), ip_identifier("8.8.8.8")):
        assert len(decide_identifiers(profile, [name], ACME)) == 1


def test_every_bad_name_is_told_of(rich):
    denials = decide_identifiers(rich, [A, dns_identifier("x.com"), ip_identifier("8.8.8.8")], ACME)
    assert [denial.rule for denial in denials] == ["names.dns", "names.ip"]
    error = refusal(denials)
    assert error.kind is ErrorKind.REJECTED_IDENTIFIER
    assert [str(item.identifier) for item in error.suberrors] == ["dns:x.com", "ip:8.8.8.8"]
    assert all(item.rule for item in error.suberrors)


def test_wildcard_needs_leave(support):
    (denial,) = decide_identifiers(support.profile_named("mutual"), [dns_identifier("*.a.test")], ACME)
    assert denial.rule == "names.wildcard"


def test_number_of_names(rich):
    names = [dns_identifier(f"h{n}.test") for n in range(6)]
    assert decide_identifiers(rich, names[:5], ACME) == ()
    assert decide_identifiers(rich, names, ACME)[0].rule == "names.max"
    assert decide_identifiers(rich, [], ACME)[0].rule == "names.empty"


def test_frontends(support):
    profile = support.profile_named("listener")
    assert decide_identifiers(profile, [A], ACME)[0].rule == "profile.frontends"
    assert decide_identifiers(profile, [A], Requester(Protocol.INTERNAL, "core", "core")) == ()


def test_requesters(support):
    text = (support.PROFILES / "default.toml").read_text()
    limited = load_profile("limited", 'requesters = ["account-?", "ci-*"]\n' + text, where="f")
    assert decide_identifiers(limited, [A], ACME) == ()
    denial = decide_identifiers(limited, [A], Requester(Protocol.ACME, "account-77", "account"))[0]
    assert denial.rule == "profile.requesters"
    assert "account-77" not in denial.detail


class TestDecide:
    def decide(self, support, small_ca, profile, csr_names, names, *, common_name=None, **changes):
        csr = support.make_csr(support.make_key(KeyAlgorithm.P256), csr_names, common_name=common_name)
        request = small_ca(KeyAlgorithm.P256).request(profile, csr, names, **changes)
        return decide(profile, request, parse_csr(csr), now=support.NOW)

    def test_allow(self, support, small_ca):
        profile = support.profile_named("default")
        assert self.decide(support, small_ca, profile, (A, B), (B, A)) == Allow()
        assert self.decide(support, small_ca, profile, (), (A,), common_name="A.test") == Allow()

    @pytest.mark.parametrize(
        ("csr_names", "common_name"),
        [((A, B), None), ((), None), ((A,), "b.test"), ((A,), "10.0.0.1"), ((B,), None)],
        ids=["one more", "none", "common name more", "address in common name", "another"],
    )
    def test_names_of_the_csr_are_those_of_the_request(self, support, small_ca, csr_names, common_name):
        decision = self.decide(
            support, small_ca, support.profile_named("default"), csr_names, (A,), common_name=common_name
        )
        assert isinstance(decision, Deny)
        assert decision.rule == "csr.names"
        assert refusal([decision]).kind is ErrorKind.BAD_CSR

    def test_names_are_checked_again_here(self, support, small_ca):
        evil = dns_identifier("www.example.org")
        decision = self.decide(support, small_ca, support.profile_named("default"), (evil,), (evil,))
        assert decision.rule == "names.dns"

    def test_hold(self, support, small_ca):
        text = (support.PROFILES / "default.toml").read_text()
        held = load_profile("held", 'approval = "hold"\n' + text, where="f")
        assert self.decide(support, small_ca, held, (A,), (A,)) == Hold("approval")
        assert isinstance(self.decide(support, small_ca, held, (A, B), (A,)), Deny)

    @pytest.mark.parametrize(
        ("begin", "end", "rule"),
        [
            (None, timedelta(days=90), None),
            (None, timedelta(days=90, seconds=4), None),
            (None, timedelta(days=90, minutes=1), "validity.maximum"),
            (None, timedelta(seconds=-1), "validity.not_after"),
            (timedelta(hours=-1), timedelta(days=90), "validity.maximum"),
            (timedelta(hours=-1), timedelta(days=89), None),
            (timedelta(days=-2), None, "validity.not_before"),
            (timedelta(days=2), None, "validity.not_before"),
            (timedelta(hours=5), timedelta(hours=4), "validity.not_after"),
        ],
    )
    def test_validity(self, support, small_ca, begin, end, rule):
        decision = self.decide(
            support,
            small_ca,
            support.profile_named("default"),
            (A,),
            (A,),
            not_before=support.NOW + begin if begin is not None else None,
            not_after=support.NOW + end if end is not None else None,
        )
        assert getattr(decision, "rule", None) == rule

    @pytest.mark.parametrize(
        ("begin", "end", "accepted"),
        [
            (timedelta(days=-2), None, [timedelta(days=-1, minutes=-59), timedelta(days=1)]),
            (timedelta(days=2), None, [timedelta(days=-1, minutes=-59), timedelta(days=1)]),
            (None, timedelta(days=91), [timedelta(days=90)]),
            (timedelta(hours=5), timedelta(hours=4), [timedelta(days=90, hours=5)]),
        ],
    )
    def test_a_denial_of_a_validity_says_what_would_be_accepted(self, support, begin, end, accepted):
        profile, now = support.profile_named("default"), support.NOW
        first, last = (None if moment is None else now + moment for moment in (begin, end))
        (denial,) = decide_validity(profile, first, last, now)
        told = [(now + moment).replace(microsecond=0) for moment in accepted]
        assert denial.detail.endswith(" to ".join(f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in told))
        for moment in told:
            assert decide_validity(profile, *((moment, None) if last is None else (first, moment)), now) == ()

    @pytest.mark.filterwarnings("ignore:Attribute's length")
    @pytest.mark.parametrize(
        ("common_name", "allowed"),
        [
            ("issuing OCSP responder", True),
            ("responder7", True),
            (None, False),
            ("x" * 65, False),
            ("a\x00b", False),
            ("www.example.com.", False),
            ("a_b.test", False),
            ("www.example.com", False),
            ("10.0.0.1", False),
        ],
    )
    def test_a_common_name_that_is_copied_is_a_title_or_an_authorized_name(
        self, support, small_ca, common_name, allowed
    ):
        key = support.make_key(KeyAlgorithm.P256)
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import NameOID

        attributes = []
        if common_name is not None:
            attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=False))
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes)).sign(key, SHA256())
        der = csr.public_bytes(Encoding.DER)
        profile = support.profile_named("ocsp-responder")
        request = small_ca(KeyAlgorithm.P256).request(profile, der, ())
        assert isinstance(decide(profile, request, parse_csr(der), now=support.NOW), Allow) is allowed


def test_single_label_common_name_is_a_name_unless_copied(support):
    parsed = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,), common_name="printer7"))
    assert csr_identifiers(support.profile_named("default"), parsed) == {A, dns_identifier("printer7")}
    assert csr_identifiers(support.profile_named("ocsp-responder"), parsed) == {A}


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("a*c", "abc", True),
        ("a*c", "abcd", False),
        ("a?c", "ac", False),
        ("**a", "a", True),
        ("a", "A", False),
        ("", "", True),
        ("", "a", False),
        ("*a*b*c*", "xxaxxbxxc", True),
        ("*a" * 30 + "b", "a" * 63, False),
        ("[ab]", "a", False),
    ],
)
def test_globs(pattern, text, matches):
    assert glob_matches(pattern, text) is matches
