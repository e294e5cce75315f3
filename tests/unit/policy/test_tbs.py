"""Plans and TBSCertificates: what a certificate holds, when it is valid, and that signed bytes are the built ones."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha1

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from ca_server.core.capture import capture
from ca_server.core.csr import parse_csr
from ca_server.core.der import assemble, assemble_ocsp_response, hash_for, key_algorithm, verify
from ca_server.core.tbs import CaSubject, IssuerUrls, build_tbs, ca_plan, leaf_plan, new_serial
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier, email_identifier, ip_identifier, uri_identifier
from ca_server.domain.profiles import load_profile

A = dns_identifier("a.test")
EVERY_KIND = (A, dns_identifier("*.b.test"), ip_identifier("10.0.0.1"), ip_identifier("fd00::1"))


def leaf(support, ca, profile, names=(A,), algorithm=KeyAlgorithm.P256, *, common_name=None, **changes):
    csr = support.make_csr(support.make_key(algorithm), names, common_name=common_name)
    plan = ca.leaf(profile, csr, names, **changes)
    tbs = build_tbs(plan).tbs_der
    return x509.load_der_x509_certificate(assemble(tbs, ca.algorithm, support.sign(ca.key, tbs)))


@pytest.mark.parametrize(
    "algorithm", [KeyAlgorithm.P256, KeyAlgorithm.P384, KeyAlgorithm.P521, KeyAlgorithm.RSA2048, KeyAlgorithm.ED25519]
)
def test_chain_verifies_for_every_issuer_algorithm(support, small_ca, algorithm):
    ca = small_ca(algorithm)
    root = x509.load_der_x509_certificate(ca.root.certificate_der)
    issuing = x509.load_der_x509_certificate(ca.issuing.certificate_der)
    certificate = leaf(support, ca, support.profile_named("default"))
    root.verify_directly_issued_by(root)
    issuing.verify_directly_issued_by(root)
    certificate.verify_directly_issued_by(issuing)
    assert verify(ca.key.public_key(), algorithm, certificate.tbs_certificate_bytes, certificate.signature)


def test_what_a_leaf_holds(support, small_ca):
    ca = small_ca(KeyAlgorithm.P256)
    certificate = leaf(support, ca, support.profile_named("default"), EVERY_KIND, KeyAlgorithm.RSA2048)
    found = {item.oid: item for item in certificate.extensions}
    assert certificate.version is x509.Version.v3
    assert certificate.subject.rfc4514_string() == "CN=a.test"
    assert certificate.serial_number == support.SERIAL
    names = found[ExtensionOID.SUBJECT_ALTERNATIVE_NAME].value
    assert names.get_values_for_type(x509.DNSName) == ["a.test", "*.b.test"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.0.0.1", "fd00::1"]
    usage = found[ExtensionOID.KEY_USAGE]
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_encipherment, usage.value.key_cert_sign) == (1, 1, 0)
    assert list(found[ExtensionOID.EXTENDED_KEY_USAGE].value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    (point,) = found[ExtensionOID.CRL_DISTRIBUTION_POINTS].value
    assert point.full_name[0].value == support.URLS.crl
    access = [item.access_location.value for item in found[ExtensionOID.AUTHORITY_INFORMATION_ACCESS].value]
    assert access == [support.URLS.ocsp, support.URLS.ca_issuers]
    issuing = x509.load_der_x509_certificate(ca.issuing.certificate_der)
    issuer_identifier = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.key_identifier
    assert found[ExtensionOID.AUTHORITY_KEY_IDENTIFIER].value.key_identifier == issuer_identifier
    assert ExtensionOID.BASIC_CONSTRAINTS not in found
    assert [oid for oid, item in found.items() if item.critical] == [ExtensionOID.KEY_USAGE]


def test_subject_key_identifier_is_method_1(support, small_ca):
    certificate = leaf(support, small_ca(KeyAlgorithm.P256), support.profile_named("default"))
    point = certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.key_identifier
    assert identifier == sha1(point).digest()


def test_ec_keys_get_no_key_encipherment(support, small_ca):
    certificate = leaf(support, small_ca(KeyAlgorithm.P256), support.profile_named("default"))
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_encipherment


@pytest.mark.parametrize(
    "names", [(ip_identifier("10.0.0.1"),), (dns_identifier("a" * 60 + ".long-domain.test"),)], ids=["IP", "long"]
)
def test_without_a_common_name_the_names_are_critical(support, small_ca, names):
    certificate = leaf(support, small_ca(KeyAlgorithm.P256), support.profile_named("default"), names)
    assert not certificate.subject.rdns
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_responder(support, small_ca):
    profile = support.profile_named("ocsp-responder")
    certificate = leaf(support, small_ca(KeyAlgorithm.P256), profile, (), common_name="issuing OCSP responder")
    assert certificate.subject.rfc4514_string() == "CN=issuing OCSP responder"
    oids = {item.oid for item in certificate.extensions}
    assert ExtensionOID.OCSP_NO_CHECK in oids
    assert not oids & {ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.CRL_DISTRIBUTION_POINTS}
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.OCSP_SIGNING
    ]
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [item.access_location.value for item in access] == [support.URLS.ca_issuers]


def test_everything_a_profile_can_add(support, small_ca):
    text = (support.PROFILES / "default.toml").read_text()
    extra = 'must_staple = true\nextra = [{oid = "1.2.3.4", critical = true, der = "0c0161"}]\n'
    text = text.replace("[extensions]\n", "[extensions]\n" + extra)
    text = text.replace("[subject]\n", '[subject]\ncountry = "CH"\norganization = "Acme"\nfrom_csr = ["locality"]\n')
    profile = load_profile("rich", text, where="f")
    names = (A, email_identifier("u@a.test"), uri_identifier("spiffe://a.test/x"))
    csr = support.make_csr(
        support.make_key(KeyAlgorithm.P256), names, LOCALITY_NAME="Bern", STATE_OR_PROVINCE_NAME="BE"
    )
    plan = small_ca(KeyAlgorithm.P256).leaf(profile, csr, names)
    certificate = x509.load_der_x509_certificate(build_tbs(plan).certificate_der)
    assert [(a.oid, a.value) for a in certificate.subject] == [
        (NameOID.COUNTRY_NAME, "CH"),
        (NameOID.LOCALITY_NAME, "Bern"),
        (NameOID.ORGANIZATION_NAME, "Acme"),
        (NameOID.COMMON_NAME, "a.test"),
    ]
    staple = certificate.extensions.get_extension_for_class(x509.TLSFeature).value
    assert list(staple) == [x509.TLSFeatureType.status_request]
    added = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.2.3.4"))
    assert (added.critical, added.value.value) == (True, bytes.fromhex("0c0161"))
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.RFC822Name) == ["u@a.test"]
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://a.test/x"]


def test_no_key_that_policy_does_not_name(support, small_ca):
    csr = replace(parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,))), key_algorithm=None)
    ca = small_ca(KeyAlgorithm.P256)
    profile = support.profile_named("default")
    with pytest.raises(CaError) as caught:
        leaf_plan(
            profile, csr, ca.request(profile, csr.der, (A,)), ca.issuing, support.SERIAL, support.NOW, support.URLS
        )
    assert caught.value.kind is ErrorKind.BAD_PUBLIC_KEY


class TestValidity:
    """RFC 5280 section 4.1.2.5, and the profile's limits."""

    def plan(self, support, small_ca, name="default", **changes):
        names = (A,)
        csr = support.make_csr(support.make_key(KeyAlgorithm.P256), names)
        plan = small_ca(KeyAlgorithm.P256).leaf(support.profile_named(name), csr, names, **changes)
        now = support.NOW.replace(microsecond=0)
        return plan.not_before - now, plan.not_after - now

    def test_default_is_backdated(self, support, small_ca):
        hour = timedelta(hours=1)
        assert self.plan(support, small_ca) == (-hour, timedelta(days=90) - hour)

    def test_not_after_as_asked_with_less_backdating_where_it_would_be_too_long(self, support, small_ca):
        ninety = timedelta(days=90)
        assert self.plan(support, small_ca, not_after=support.NOW + ninety) == (timedelta(0), ninety)
        ten = timedelta(days=10)
        assert self.plan(support, small_ca, not_after=support.NOW + ten) == (timedelta(hours=-1), ten)

    def test_not_before_as_asked(self, support, small_ca):
        five = timedelta(minutes=5)
        assert self.plan(support, small_ca, not_before=support.NOW + five) == (five, timedelta(days=90) + five)

    def test_never_past_the_issuer(self, support, small_ca):
        ca = small_ca(KeyAlgorithm.P256)
        end = ca.plans["issuing"].not_after
        profile = support.profile_named("default")
        csr = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,)))
        request = ca.request(profile, csr.der, (A,))

        def plan(now, request=request):
            return leaf_plan(profile, csr, request, ca.issuing, support.SERIAL, now, support.URLS)

        assert plan(end - timedelta(days=10)).not_after == end
        for case in (
            (end + timedelta(seconds=1), request),
            (end - timedelta(days=1), replace(request, not_after=end + timedelta(days=1))),
            (support.NOW, replace(request, not_before=ca.plans["issuing"].not_before - timedelta(days=1))),
        ):
            with pytest.raises(CaError) as caught:
                plan(*case)
            assert (caught.value.kind, caught.value.rule) == (ErrorKind.POLICY_DENIED, "validity.issuer")

    def test_never_before_the_issuer(self, support, small_ca):
        ca = small_ca(KeyAlgorithm.P256)
        begin = ca.plans["issuing"].not_before
        profile = support.profile_named("default")
        csr = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,)))
        moment = begin + timedelta(minutes=10)
        request = ca.request(profile, csr.der, (A,))
        assert leaf_plan(profile, csr, request, ca.issuing, support.SERIAL, moment, support.URLS).not_before == begin


class TestCaCertificates:
    def test_issuing_ca(self, support, small_ca):
        ca = small_ca(KeyAlgorithm.P256)
        certificate = x509.load_der_x509_certificate(ca.issuing.certificate_der)
        found = {item.oid: item for item in certificate.extensions}
        basic = found[ExtensionOID.BASIC_CONSTRAINTS]
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
        usage = found[ExtensionOID.KEY_USAGE]
        assert usage.critical
        assert [name for name in ("key_cert_sign", "crl_sign", "digital_signature") if getattr(usage.value, name)] == [
            "key_cert_sign",
            "crl_sign",
        ]
        assert {ExtensionOID.AUTHORITY_INFORMATION_ACCESS, ExtensionOID.CRL_DISTRIBUTION_POINTS} <= set(found)
        assert certificate.subject.rfc4514_string() == "CN=Test issuing CA,O=Test,C=CH"

    def test_root_points_nowhere(self, support, small_ca):
        certificate = x509.load_der_x509_certificate(small_ca(KeyAlgorithm.P256).root.certificate_der)
        found = {item.oid for item in certificate.extensions}
        assert not found & {ExtensionOID.AUTHORITY_INFORMATION_ACCESS, ExtensionOID.CRL_DISTRIBUTION_POINTS}
        assert certificate.subject == certificate.issuer

    def make(self, support, issuer, path_length=0, end=timedelta(days=9999), begin=timedelta(0)):
        return ca_plan(
            subject=CaSubject("Sub"),
            spki_der=support.spki(support.make_key(KeyAlgorithm.P256, 3)),
            issuer=issuer,
            serial=support.SERIAL,
            not_before=support.NOW + begin,
            not_after=support.NOW + end,
            path_length=path_length,
            urls=support.URLS,
        )

    def test_clamped_into_the_issuer(self, support, small_ca):
        ca = small_ca(KeyAlgorithm.P256)
        plan = self.make(support, ca.root, begin=timedelta(days=-9))
        assert (plan.not_before, plan.not_after) == (ca.plans["root"].not_before, ca.plans["root"].not_after)

    def test_path_length_of_the_issuer_holds(self, support, small_ca):
        with pytest.raises(CaError, match="path length"):
            self.make(support, small_ca(KeyAlgorithm.P256).issuing)

    def test_expired_issuer(self, support, small_ca):
        with pytest.raises(CaError, match="expired"):
            self.make(support, small_ca(KeyAlgorithm.P256).root, begin=timedelta(days=9998))

    def test_generalized_time_from_2050(self, support):
        plan = ca_plan(
            subject=CaSubject("Long"),
            spki_der=support.spki(support.make_key(KeyAlgorithm.P256, 3)),
            issuer=None,
            serial=support.SERIAL,
            not_before=datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
            not_after=datetime(2050, 1, 1, tzinfo=UTC),
        )
        tbs = build_tbs(plan).tbs_der
        assert b"\x17\x0d491231235959Z\x18\x0f20500101000000Z" in tbs


class TestSerials:
    def test_159_bits_positive_and_at_most_20_octets(self):
        assert new_serial(b"\xff" * 20) == (1 << 159) - 1
        assert new_serial(b"\x80" + bytes(19)) == 1 << 158

    @pytest.mark.parametrize("octets", [b"", b"\xff" * 19, b"\xff" * 21, bytes(20), bytes(12) + b"\xff" * 8])
    def test_too_few_random_bits(self, octets):
        with pytest.raises(ValueError, match="random"):
            new_serial(octets)


class TestCapture:
    @pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
    def test_csr_crl_and_ocsp_response(self, support, algorithm):
        key = support.make_key(algorithm)
        public = key.public_key()
        assert key_algorithm(public) is algorithm
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
        tbs, _ = capture(public, x509.CertificateSigningRequestBuilder().subject_name(name).sign)
        csr = x509.load_der_x509_csr(assemble(tbs, algorithm, support.sign(key, tbs)))
        assert csr.is_signature_valid

        builder = x509.CertificateRevocationListBuilder().issuer_name(name)
        builder = builder.last_update(support.NOW).next_update(support.NOW + timedelta(days=1))
        tbs, _ = capture(public, builder.sign)
        crl = x509.load_der_x509_crl(assemble(tbs, algorithm, support.sign(key, tbs)))
        assert crl.is_signature_valid(public)

        certificate = x509.CertificateBuilder(name, name, public, 7, support.NOW, support.NOW + timedelta(days=1)).sign(
            key, hash_for(algorithm)
        )
        response = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate,
                certificate,
                hash_for(KeyAlgorithm.P256),
                ocsp.OCSPCertStatus.GOOD,
                support.NOW,
                support.NOW + timedelta(hours=1),
                None,
                None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, certificate)
        )
        tbs, _ = capture(public, response.sign)
        der = assemble_ocsp_response(tbs, algorithm, support.sign(key, tbs), [certificate.public_bytes(Encoding.DER)])
        read = ocsp.load_der_ocsp_response(der)
        assert read.certificates == [certificate]
        assert verify(public, algorithm, read.tbs_response_bytes, read.signature)
        assert not verify(public, algorithm, read.tbs_response_bytes + b"x", read.signature)

    def test_verify_wants_the_algorithm_of_the_key(self, support):
        key = support.make_key(KeyAlgorithm.P256)
        assert not verify(key.public_key(), KeyAlgorithm.P384, b"x", support.sign(key, b"x"))

    def test_a_capturing_key_signs_nothing_else(self, support):
        with pytest.raises(RuntimeError, match="did not ask"):
            capture(support.make_key(KeyAlgorithm.P256).public_key(), lambda _key, _hash: None)
        with pytest.raises(TypeError, match="no private key"):
            capture(support.make_key(KeyAlgorithm.P256).public_key(), lambda key, _hash: key.private_numbers())

    def test_urls_may_be_left_out(self, support, small_ca):
        ca = small_ca(KeyAlgorithm.P256)
        profile = support.profile_named("default")
        csr = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,)))
        request = ca.request(profile, csr.der, (A,))
        plan = leaf_plan(profile, csr, request, ca.issuing, support.SERIAL, support.NOW, IssuerUrls(None, None, None))
        certificate = x509.load_der_x509_certificate(build_tbs(plan).certificate_der)
        oids = {item.oid for item in certificate.extensions}
        assert not oids & {ExtensionOID.AUTHORITY_INFORMATION_ACCESS, ExtensionOID.CRL_DISTRIBUTION_POINTS}
