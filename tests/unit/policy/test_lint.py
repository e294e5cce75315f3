"""The gate: what our own lints catch, and that only a linted TBSCertificate can be taken, once."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_server.core import lint_rules
from ca_server.core.der import SEQUENCE, assemble, children, encode, whole
from ca_server.core.lint import LintedTbs, Linter, LintError
from ca_server.core.tbs import UnlintedTbs, build_tbs
from ca_server.domain.errors import ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType, dns_identifier

A, B = dns_identifier("a.test"), dns_identifier("b.test")
KEY = KeyAlgorithm.P256


def without(plan, kind):
    return tuple(item for item in plan.extensions if not isinstance(item[0], kind))


def with_(plan, value, critical):
    return replace(plan, extensions=(*without(plan, type(value)), (value, critical)))


def san(*names):
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


def usage(**changes):
    bits = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**bits | changes)


def name(**attributes):
    return x509.Name([x509.NameAttribute(getattr(NameOID, oid), text) for oid, text in attributes.items()])


BUILT_WRONG = {
    "one name more": (lambda p: with_(p, san("a.test", "evil.test"), False), "2.5.29.17 has another value"),
    "another name": (lambda p: with_(p, san("b.test"), False), "2.5.29.17 has another value"),
    "no names": (lambda p: replace(p, extensions=without(p, x509.SubjectAlternativeName)), "2.5.29.17 is missing"),
    "names critical": (lambda p: with_(p, san("a.test"), True), "2.5.29.17 has another criticality"),
    "CA true": (lambda p: with_(p, x509.BasicConstraints(True, None), True), "2.5.29.19 was not called for"),
    "CA false": (lambda p: with_(p, x509.BasicConstraints(False, None), True), "2.5.29.19 was not called for"),
    "signs certificates": (
        lambda p: with_(p, usage(digital_signature=True, key_cert_sign=True), True),
        "2.5.29.15 has another value",
    ),
    "usage not critical": (lambda p: with_(p, usage(digital_signature=True), False), "2.5.29.15 has another crit"),
    "EKU": (
        lambda p: with_(p, x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.OCSP_SIGNING]), False),
        "2.5.29.37 has another value",
    ),
    "no EKU": (lambda p: replace(p, extensions=without(p, x509.ExtendedKeyUsage)), "2.5.29.37 is missing"),
    "AKI": (lambda p: with_(p, x509.AuthorityKeyIdentifier(b"x" * 20, None, None), False), "2.5.29.35 has another"),
    "SKI": (lambda p: with_(p, x509.SubjectKeyIdentifier(b"x" * 20), False), "2.5.29.14 has another value"),
    "no CRLDP": (lambda p: replace(p, extensions=without(p, x509.CRLDistributionPoints)), "2.5.29.31 is missing"),
    "no AIA": (
        lambda p: replace(p, extensions=without(p, x509.AuthorityInformationAccess)),
        "1.3.6.1.5.5.7.1.1 is missing",
    ),
    "unknown extension": (
        lambda p: with_(p, x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False),
        "1.2.3.4 was not called for",
    ),
}


@pytest.mark.parametrize(("change", "finding"), BUILT_WRONG.values(), ids=BUILT_WRONG.keys())
def test_a_builder_that_adds_or_forgets(plan, profile, change, finding):
    with pytest.raises(LintError) as caught:
        lint_rules.check(build_tbs(change(plan)), plan, profile)
    assert caught.value.kind is ErrorKind.INTERNAL
    assert any(finding in line for line in caught.value.findings)
    assert finding not in caught.value.detail


PLANNED_OTHERWISE = {
    "serial": (lambda p: replace(p, serial=p.serial ^ 1), "serial"),
    "key": (lambda p: replace(p, spki_der=p.spki_der[:-1] + bytes((p.spki_der[-1] ^ 1,))), "public_key"),
    "not before": (lambda p: replace(p, not_before=p.not_before + timedelta(seconds=1)), "validity"),
    "not after": (lambda p: replace(p, not_after=p.not_after + timedelta(seconds=1)), "validity"),
    "subject": (lambda p: replace(p, subject=name(COMMON_NAME="b.test")), "subject"),
    "issuer": (lambda p: replace(p, authority=replace(p.authority, name_der=b"\x30\x00")), "issuer"),
    "algorithm": (
        lambda p: replace(p, authority=replace(p.authority, algorithm=KeyAlgorithm.P384)),
        "signature_algorithm",
    ),
}


@pytest.mark.parametrize(("change", "code"), PLANNED_OTHERWISE.values(), ids=PLANNED_OTHERWISE.keys())
def test_a_certificate_other_than_planned(plan, profile, change, code):
    with pytest.raises(LintError, match=f"checks: {code}"):
        lint_rules.check(build_tbs(plan), change(plan), profile)


NEVER_RIGHT = {
    "63-bit serial": (lambda p: replace(p, serial=(1 << 63) - 1), "serial: fewer than 64"),
    "backwards": (lambda p: replace(p, not_before=p.not_after, not_after=p.not_before), "validity"),
    "outside the issuer": (
        lambda p: replace(p, authority=replace(p.authority, not_after=p.not_after - timedelta(seconds=1))),
        "validity: not in order, or not inside",
    ),
    "longer than the profile": (
        lambda p: replace(p, not_after=p.not_before + timedelta(days=90, seconds=1)),
        "validity: longer",
    ),
    "common name not authorized": (lambda p: replace(p, subject=name(COMMON_NAME="b.test")), "common_name"),
    "attribute twice": (
        lambda p: replace(p, subject=x509.Name(list(name(ORGANIZATION_NAME="a")) * 2)),
        "subject: an attribute",
    ),
    "attribute unknown": (lambda p: replace(p, subject=name(PSEUDONYM="a")), "subject: an attribute"),
    "control characters": (lambda p: replace(p, subject=name(ORGANIZATION_NAME="a\nb")), "subject: organization"),
}


@pytest.mark.parametrize(("change", "finding"), NEVER_RIGHT.values(), ids=NEVER_RIGHT.keys())
def test_plans_that_must_not_pass(plan, profile, change, finding):
    wrong = change(plan)
    unlinted = build_tbs(plan) if wrong.not_before > wrong.not_after else build_tbs(wrong)
    with pytest.raises(LintError, match=finding):
        lint_rules.check(unlinted, wrong, profile)


def test_serial_of_160_bits(plan, profile):
    with pytest.raises(LintError, match="longer than 20 octets"):
        lint_rules.check(build_tbs(plan), replace(plan, serial=1 << 159), profile)


def test_names_twice(plan, profile):
    with pytest.raises(LintError, match="names: a name twice"):
        lint_rules.check(build_tbs(plan), replace(plan, names=(A, A)), profile)


def test_an_end_entity_plan_is_no_ca(plan):
    with pytest.raises(LintError, match="needs its profile"):
        lint_rules.check(build_tbs(plan), plan, None)


def test_a_ca_plan_is_no_end_entity(small_ca, profile):
    plan = small_ca(KEY).plans["issuing"]
    with pytest.raises(LintError):
        lint_rules.check(build_tbs(plan), plan, profile)


def test_bytes_of_the_certificate_looked_at_are_the_ones_to_be_signed(plan, make_plan, profile):
    one, other = build_tbs(plan), build_tbs(make_plan(B))
    with pytest.raises(LintError, match="tbs:"):
        lint_rules.check(UnlintedTbs(one.tbs_der, other.certificate_der), plan, profile)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\x00", lambda _d: b"", lambda _d: b"\x30\x80"])
def test_bytes_that_are_no_tbs_certificate(plan, profile, change):
    unlinted = build_tbs(plan)
    with pytest.raises(LintError):
        lint_rules.check(UnlintedTbs(change(unlinted.tbs_der), unlinted.certificate_der), plan, profile)


def around(tbs: bytes, algorithm=KEY) -> UnlintedTbs:
    return UnlintedTbs(tbs, assemble(tbs, algorithm, b"\x30\x00"))


def test_outer_signature_algorithm(plan, profile):
    with pytest.raises(LintError, match="signature_algorithm"):
        lint_rules.check(around(build_tbs(plan).tbs_der, KeyAlgorithm.P384), plan, profile)


def test_version(plan, profile):
    tbs = build_tbs(plan).tbs_der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
    with pytest.raises(LintError, match="version: not version 3"):
        lint_rules.check(around(tbs), plan, profile)


def test_extension_twice(plan, profile):
    data = build_tbs(plan).tbs_der
    fields = [data[offset:stop] for _, offset, _, stop in children(data, *whole(data, SEQUENCE))]
    listed = fields[7][whole(fields[7], 0xA3)[0] :]
    every = [listed[offset:stop] for _, offset, _, stop in children(listed, *whole(listed, SEQUENCE))]
    same = encode(SEQUENCE, *fields[:7], encode(0xA3, encode(SEQUENCE, *every)))
    assert same == data
    twice = encode(SEQUENCE, *fields[:7], encode(0xA3, encode(SEQUENCE, *every, every[-1])))
    with pytest.raises(LintError, match="is there twice"):
        lint_rules.check(around(twice), plan, profile)


def test_size(make_plan, support):
    long = tuple(dns_identifier(f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{n}.test") for n in range(100))
    plan = make_plan(*long)
    lint_rules.check(build_tbs(plan), plan, support.profile_named("default"))
    bloated = with_(plan, x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x" * 50_000), False)
    with pytest.raises(LintError, match="size"):
        lint_rules.check(build_tbs(bloated), plan, support.profile_named("default"))


class TestLintedTbs:
    async def test_can_be_taken_once(self, plan, profile):
        linter = Linter(pkilint=False)
        unlinted = build_tbs(plan)
        linted = await linter.lint(unlinted, plan, profile)
        assert linted.take() == unlinted.tbs_der
        with pytest.raises(RuntimeError, match="taken already"):
            linted.take()

    def test_nobody_else_makes_one(self, plan):
        with pytest.raises(TypeError, match="only the Linter"):
            LintedTbs(object(), build_tbs(plan).tbs_der)


def test_identifier_kinds_have_an_encoding():
    for kind, value in (("dns", "a.test"), ("ip", "::1"), ("email", "a@b.test"), ("uri", "urn:x:y")):
        assert lint_rules._general_name(Identifier(IdentifierType(kind), value))
