"""Identifiers as clients write them: what is read, and what is told of those that can't be had."""

import pytest

from ca_server.core.policy import decide_identifiers
from ca_server.domain.enrollment import Protocol, Requester
from ca_server.domain.names import InvalidNameError, dns_identifier
from ca_server.domain.profiles import load_profile
from protocols.acme.identifiers import read_identifiers, refused
from protocols.acme.objects import OrderIdentifier as Wanted

ANY = """
frontends = ["internal"]
[names]
any = true
allow_wildcard = true
[keys]
allowed = ["ec-p256"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["server_auth"]
"""


@pytest.mark.parametrize(
    "name",
    ["xn--bcher-kva.test", "*.xn--bcher-kva.test", "xn--strae-oqa.test", "WWW.xn--fiqs8s.Test", "a.xn--hxajbheg2az3al"],
)
def test_a_labels(name: str) -> None:
    assert dns_identifier(name).value == name.lower()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b\u00fccher.test", "A-labels; send xn--bcher-kva.test"),
        ("*.B\u00fccher.test", "A-labels; send *.xn--bcher-kva.test"),
        ("xn--bcher-kva.b\u00fccher.test", "send xn--bcher-kva.xn--bcher-kva.test"),
        ("stra\u00dfe.test", "send xn--strae-oqa.test"),
        ("\u2603.test", "no valid IDNA name"),
        ("a\u0300.test", "no valid IDNA name"),
        ("\uff41.test", "no valid IDNA name"),
        ("*.*.\u00fc.test", "no valid IDNA name"),
        ("XN--bcher-kva.test", "in lower case"),
        ("xn--Bcher-kva.test", "in lower case"),
        ("xn--.test", "hyphen"),
        ("xn--abc-.test", "hyphen"),
        ("xn--a.test", "no valid IDNA A-label"),
        ("xn--1ch.test", "no valid IDNA A-label"),
        ("xn--ls8h.test", "no valid IDNA A-label"),
        ("xn--a-0hc.test", "no valid IDNA A-label"),
        ("xn--ab-m1t.test", "no valid IDNA A-label"),
        ("xn--strasse-ohb.test", "no valid IDNA A-label"),
        ("xn--99zzzzzzzzzz.test", "no valid IDNA A-label"),
        ("ab--cd.test", "reserved"),
    ],
)
def test_names_that_are_not_in_a_labels(name: str, said: str) -> None:
    with pytest.raises(InvalidNameError) as refused_:
        dns_identifier(name)
    assert said in str(refused_.value)
    assert str(refused_.value).isascii()


@pytest.mark.parametrize(
    "name", ["onion", "a.onion", "*.a.onion", "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"]
)
def test_onion_names_are_refused_by_any_profile(name: str) -> None:
    profile = load_profile("any", ANY, where="any")
    requester = Requester(Protocol.INTERNAL, "core", "core")
    (denial,) = decide_identifiers(profile, [dns_identifier(name)], requester)
    assert denial.rule == "names.onion"
    assert "RFC 7686" in denial.detail
    assert "RFC 9799" in denial.detail
    assert decide_identifiers(profile, [dns_identifier("onion.test"), dns_identifier("xonion")], requester) == ()


def test_fact_19_each_bad_identifier_is_named() -> None:
    wanted = [
        Wanted("dns", "a.test"),
        Wanted("dns", "A.TEST"),
        Wanted("dns", "b..test"),
        Wanted("ip", "300.0.0.1"),
        Wanted("email", "a@b.test"),
        Wanted("x" * 256, "y" * 1000),
    ]
    found, wrong = read_identifiers(wanted)
    assert [(str(item.identifier), item.sent) for item in found] == [("dns:a.test", "a.test")]
    document = refused(wrong, len(wanted)).problem.json()
    assert document["type"] == "urn:ietf:params:acme:error:compound"
    assert "identifier" not in document, "RFC 8555 section 6.7.1: subproblems alone name one"
    assert [sub["identifier"] for sub in document["subproblems"]] == [
        {"type": "dns", "value": "b..test"},
        {"type": "ip", "value": "300.0.0.1"},
        {"type": "email", "value": "a@b.test"},
        {"type": "x" * 255, "value": "y" * 255},
    ]
    kinds = [sub["type"].rpartition(":")[2] for sub in document["subproblems"]]
    assert kinds == ["rejectedIdentifier"] * 2 + ["unsupportedIdentifier"] * 2
    same = refused(wrong[:2], 3).problem
    assert (same.type, len(same.subproblems)) == ("rejectedIdentifier", 2)
    alone = refused(wrong[:1], 1).problem
    assert (alone.type, alone.subproblems, alone.rule) == ("rejectedIdentifier", (), "names.syntax")
