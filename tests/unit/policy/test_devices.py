"""Devices in policy, CSR and certificate (draft-ietf-acme-device-attest sections 3 and 4)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from ca_server.core.csr import parse_csr
from ca_server.core.lint import LintError
from ca_server.core.policy import decide, decide_identifiers, unattested_key, unproven_identifier
from ca_server.core.tbs import build_tbs
from ca_server.domain.enrollment import Allow, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier, hardware_module, permanent_identifier
from ca_server.domain.profiles import load_profile

ACME = Requester(Protocol.ACME, "account-7", "account")
PHONE, MODULE, HOST = (
    permanent_identifier("C02XK1ZZJGH5"),
    hardware_module("HW1/2.23.133.1.2"),
    dns_identifier("a.test"),
)
TEXT = """
frontends = ["acme"]
[names]
dns_suffixes = ["test"]
permanent_identifiers = ["C02*", "PC-????"]
hardware_modules = ["*/2.23.133.1.2"]
{names}
[subject]
organization = "Corp"
{subject}
[keys]
allowed = ["ec-p256"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["client_auth"]
"""


def profile_of(names: str = "", subject: str = ""):
    return load_profile("devices", TEXT.format(names=names, subject=subject), where="f")


PLAIN = profile_of()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (PHONE, None),
        (MODULE, None),
        (permanent_identifier("PC-0001"), None),
        (permanent_identifier("PC-0001/1.2.3"), "names.permanent-identifier"),
        (permanent_identifier("c02xk1zzjgh5"), "names.permanent-identifier"),
        (permanent_identifier("PC-001"), "names.permanent-identifier"),
        (hardware_module("HW1/2.23.133.1.3"), "names.hardware-module"),
        (permanent_identifier("HW1/2.23.133.1.2"), "names.permanent-identifier"),
    ],
    ids=str,
)
def test_which_devices(name, rule):
    denials = decide_identifiers(PLAIN, (name,), ACME)
    assert [denial.rule for denial in denials] == ([rule] if rule else [])


def test_no_profile_has_devices_unless_it_says_so(support):
    for name in ("default", "short", "mutual"):
        (denial,) = decide_identifiers(support.profile_named(name), (PHONE,), ACME)
        assert denial.rule == "names.permanent-identifier"


def csr(support, names=(), **subject):
    return support.make_csr(support.make_key(KeyAlgorithm.P256), names, **subject)


def test_names_of_devices_in_a_csr(support):
    assert parse_csr(csr(support, (HOST, PHONE, MODULE))).alternative_names == (HOST, PHONE, MODULE)


def verdict(support, small_ca, profile, der, *names):
    request = small_ca(KeyAlgorithm.P256).request(profile, der, names)
    decision = decide(profile, request, parse_csr(der), now=support.NOW)
    return None if isinstance(decision, Allow) else decision.rule


@pytest.mark.parametrize(
    ("names", "subject", "asked", "rule"),
    [
        ((PHONE,), {}, (PHONE,), None),
        ((), {}, (PHONE,), None),
        ((), {}, (PHONE, MODULE), None),
        ((HOST,), {}, (PHONE, HOST), None),
        ((PHONE,), {}, (PHONE, HOST), "csr.names"),
        ((PHONE, HOST), {}, (PHONE,), "csr.names"),
        ((permanent_identifier("C02other"),), {}, (PHONE,), "csr.names"),
        ((permanent_identifier("C02XK1ZZJGH5/1.2.3"),), {}, (PHONE,), "csr.names"),
        ((PHONE,), {}, (HOST,), "csr.names"),
        # Devices say their number in the common name, where it looks like a DNS name.
        ((), {"common_name": "C02XK1ZZJGH5"}, (PHONE,), None),
        ((), {"common_name": "HW1"}, (MODULE,), None),
        ((), {"common_name": "c02xk1zzjgh5"}, (PHONE,), "csr.names"),
        ((), {"common_name": "other.test"}, (PHONE,), "csr.names"),
        ((), {"common_name": "My Phone"}, (PHONE,), None),
    ],
)
def test_what_a_csr_says(support, small_ca, names, subject, asked, rule):
    assert verdict(support, small_ca, PLAIN, csr(support, names, **subject), *asked) == rule


@pytest.mark.parametrize(
    ("subject", "rule"),
    [
        ({"common_name": "C02XK1ZZJGH5"}, None),
        ({"common_name": "C02XK1ZZJGH5", "SERIAL_NUMBER": "C02XK1ZZJGH5"}, None),
        ({"common_name": "C02XK1ZZJGH5", "SERIAL_NUMBER": "C02other"}, "subject.device"),
        ({"common_name": "My Phone"}, "subject.device"),
        ({}, "subject.common_name"),
    ],
)
def test_what_is_copied_is_the_device(support, small_ca, subject, rule):
    profile = profile_of(subject='common_name = "csr"\nfrom_csr = ["serial_number"]')
    assert verdict(support, small_ca, profile, csr(support, **subject), PHONE) == rule


async def test_certificates_say_what_was_authorized(support, small_ca, linter):
    names = (HOST, PHONE, permanent_identifier("PC-0001/1.2.3"), MODULE)
    profile = profile_of("# any\n")
    plan = small_ca(KeyAlgorithm.P256).leaf(profile, csr(support), names)
    unlinted = build_tbs(plan)
    await linter.lint(unlinted, plan, profile)
    found = x509.load_der_x509_certificate(unlinted.certificate_der)
    alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["a.test"]
    assert [(each.type_id.dotted_string, each.value) for each in alternative if isinstance(each, x509.OtherName)] == [
        ("1.3.6.1.5.5.7.8.3", b"\x30\x0e\x0c\x0cC02XK1ZZJGH5"),
        ("1.3.6.1.5.5.7.8.3", b"\x30\x0d\x0c\x07PC-0001\x06\x02\x2a\x03"),
        ("1.3.6.1.5.5.7.8.4", b"\x30\x0c\x06\x05\x67\x81\x05\x01\x02\x04\x03HW1"),
    ]


async def test_certificates_can_leave_devices_out(support, small_ca, linter):
    profile = profile_of('device_identifiers = "omit"')
    for asked, written in (((PHONE, MODULE), ()), ((PHONE, HOST), (HOST,))):
        plan = small_ca(KeyAlgorithm.P256).leaf(profile, csr(support, written), asked)
        assert plan.names == written
        await linter.lint(build_tbs(plan), plan, profile)
    told = small_ca(KeyAlgorithm.P256).leaf(PLAIN, csr(support), (PHONE,))
    with pytest.raises(LintError, match="leaves out"):
        await linter.lint(build_tbs(told), told, profile)
    nothing = replace(told, names=())
    with pytest.raises(LintError, match="neither subject nor names"):
        await linter.lint(build_tbs(nothing), nothing, PLAIN)


@pytest.mark.parametrize(
    ("names", "subject", "key"),
    [
        ('device_identifiers = "omit"', 'common_name = "csr"', "names.device_identifiers"),
        ('device_identifiers = "omit"', 'from_csr = ["serial_number"]', "names.device_identifiers"),
    ],
)
def test_profiles_that_would_tell_what_they_leave_out(names, subject, key):
    with pytest.raises(ConfigurationError) as caught:
        profile_of(names, subject)
    assert caught.value.key == key


@pytest.mark.parametrize("glob", ["", "a\n", "x" * 401])
def test_globs(glob):
    from msgspec.json import encode

    text = TEXT.replace('"PC-????"', encode(glob).decode()).format(names="", subject="")
    with pytest.raises(ConfigurationError) as caught:
        load_profile("devices", text, where="f")
    assert caught.value.key == "names.permanent_identifiers"


def evidence(support, name, method="device-attest-01", spki=b""):
    return ValidatedIdentifier(name, method, support.NOW, spki)


def test_a_device_is_shown_by_its_attestation_alone(support, small_ca):
    ca, before = small_ca(KeyAlgorithm.P256), support.NOW - timedelta(days=1)
    for found, rule in (
        ((), "names.evidence"),
        ((evidence(support, PHONE, "http-01"),), "names.evidence"),
        ((evidence(support, MODULE),), "names.evidence"),
        ((evidence(support, PHONE),), None),
    ):
        request = ca.request(PLAIN, csr(support), (PHONE,), evidence=found)
        denial = unproven_identifier(PLAIN, request, before)
        assert (denial and denial.rule) == rule


def test_the_key_is_the_one_that_was_attested(support, small_ca):
    parsed = parse_csr(csr(support))
    ca = small_ca(KeyAlgorithm.P256)
    for spki, rule in ((parsed.spki_sha256, None), (b"", "csr.attested_key"), (b"x" * 32, "csr.attested_key")):
        request = ca.request(PLAIN, parsed.der, (PHONE,), evidence=(evidence(support, PHONE, spki=spki),))
        denial = unattested_key(request, parsed)
        assert (denial and denial.rule) == rule
    named = ca.request(PLAIN, parsed.der, (HOST,), evidence=(evidence(support, HOST, "http-01"),))
    assert unattested_key(named, parsed) is None


def test_a_wrong_key_is_a_bad_csr(support, small_ca):
    from ca_server.core.policy import refusal

    request = small_ca(KeyAlgorithm.P256).request(PLAIN, csr(support), (PHONE,), evidence=(evidence(support, PHONE),))
    denial = unattested_key(request, parse_csr(request.csr_der))
    with pytest.raises(CaError) as caught:
        raise refusal((denial,))
    assert caught.value.kind is ErrorKind.BAD_CSR
