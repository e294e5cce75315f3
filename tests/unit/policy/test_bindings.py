"""What is bound to an external account key: patterns of names, and what they cover."""

from datetime import UTC, datetime

import pytest

from ca_server.core.bindings import decide_binding
from ca_server.domain.bindings import EabKey, EabPolicy, NamePatterns
from ca_server.domain.names import dns_identifier, email_identifier, ip_identifier

PATTERNS = NamePatterns.parse(("Host.Corp.example", "*.web.example", "10.0.0.0/8", "192.0.2.7", "fd00::/8"))


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("host.corp.example", True),
        ("a.host.corp.example", False),
        ("*.host.corp.example", False),
        ("corp.example", False),
        ("xhost.corp.example", False),
        ("a.web.example", True),
        ("a.b.web.example", True),
        ("web.example", False),
        ("xweb.example", False),
        ("a.xweb.example", False),
        ("*.web.example", True),
        ("*.a.web.example", True),
        ("*.corp.example", False),
        ("web.example.other", False),
    ],
)
def test_dns_names(name: str, covered: bool) -> None:
    assert PATTERNS.covers(dns_identifier(name)) is covered


@pytest.mark.parametrize(
    ("address", "covered"),
    [
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("fd00::1", True),
        ("::1", False),
    ],
)
def test_addresses(address: str, covered: bool) -> None:
    assert PATTERNS.covers(ip_identifier(address)) is covered


def test_other_kinds_of_names_are_never_covered() -> None:
    assert not PATTERNS.covers(email_identifier("a@host.corp.example"))


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "*.", "a.*.example", "a..b", "-a.example", "*.*.example", "10.0.0.1/8", "1.2.3", "fe80::%eth0", "a b"],
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"no IP address or network|none of"):
        NamePatterns.parse((pattern,))


def test_nothing_is_bound_by_an_empty_policy() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    key = EabKey("kid", now, None, reusable=False, disabled_at=now, owner=None, uses=1, last_used_at=now)
    assert decide_binding(key, "default", (dns_identifier("a.example"),)) == ()
    assert not EabPolicy().counts
    assert EabPolicy(live=0).counts
