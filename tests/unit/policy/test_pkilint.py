"""pkilint: what it says of our certificates, how its verdicts are kept, and the process that it runs in."""

import asyncio
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_server.core import pkilint_process
from ca_server.core.lint import LintedTbs, Linter, LintError
from ca_server.core.pkilint_process import CERTIFICATE, Finding, PkilintProcess
from ca_server.core.tbs import build_tbs
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier, email_identifier, ip_identifier
from ca_server.domain.names import uri_identifier as uri
from ca_server.domain.profiles import load_profile

A, B = dns_identifier("a.test"), dns_identifier("b.test")
KEY = KeyAlgorithm.P256

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])

SHAPES = {
    "one name": (A,),
    "wildcard": (A, dns_identifier("*.b.test")),
    "addresses": (ip_identifier("10.0.0.1"), ip_identifier("fd00::1")),
    "single label": (dns_identifier("localhost"), dns_identifier("nas")),
    "IDN": (dns_identifier("xn--bcher-kva.test"),),
    "mailbox and URI": (A, email_identifier("u@localhost"), uri("spiffe://a.test/x"), uri("urn:uuid:0b0c")),
}


class TestPkilint:
    @pytest.mark.parametrize("names", SHAPES.values(), ids=SHAPES.keys())
    async def test_nothing_above_notice(self, linter, make_plan, names):
        for key in (KEY, KeyAlgorithm.RSA2048, KeyAlgorithm.ED25519):
            plan = make_plan(*names, key=key)
            assert await linter.lint_sample(build_tbs(plan).certificate_der) == ()

    @pytest.mark.parametrize("issuer", [KEY, KeyAlgorithm.P384, KeyAlgorithm.RSA2048, KeyAlgorithm.ED25519])
    async def test_every_shipped_profile_and_the_cas(self, support, small_ca, linter, issuer):
        ca = small_ca(issuer)
        for plan in ca.plans.values():
            assert (await linter.lint_ca(build_tbs(plan), plan)).take()
        for certificate in (ca.root, ca.issuing):
            assert await linter.lint_sample(certificate.certificate_der) == ()
        for shipped in ("default", "short", "mutual", "listener"):
            profile = support.profile_named(shipped)
            plan = ca.leaf(profile, support.make_csr(support.make_key(KEY), (A,)), (A,))
            assert await linter.lint(build_tbs(plan), plan, profile)
        profile = support.profile_named("ocsp-responder")
        csr = support.make_csr(support.make_key(KEY), (), common_name="issuing OCSP responder")
        plan = ca.leaf(profile, csr, ())
        assert await linter.lint(build_tbs(plan), plan, profile)

    async def test_single_label_hosts_in_urls(self, support, small_ca, linter, profile):
        from ca_server.core.csr import parse_csr
        from ca_server.core.tbs import IssuerUrls, leaf_plan

        ca = small_ca(KEY)
        csr = parse_csr(support.make_csr(support.make_key(KEY), (A,)))
        urls = IssuerUrls("http://localhost:8080/crl/x.crl", "http://ca:8080/ocsp", "http://localhost/i.cer")
        plan = leaf_plan(
            profile, csr, ca.request(profile, csr.der, (A,)), ca.issuing, support.SERIAL, support.NOW, urls
        )
        assert await linter.lint(build_tbs(plan), plan, profile)

    async def test_crl(self, support, linter):
        key = support.make_key(KEY)
        builder = x509.CertificateRevocationListBuilder().issuer_name(NAME)
        bare = builder.last_update(support.NOW).next_update(support.NOW + timedelta(days=1))
        findings = await linter.lint_crl(bare.sign(key, SHA256()).public_bytes(Encoding.DER))
        assert any("crl_number" in finding.code for finding in findings)

    async def test_what_it_cannot_read_is_fatal(self, linter):
        for finding in (await linter.lint_sample(b"\x30\x00"), await linter.lint_ocsp_response(b"junk")):
            assert finding[0].severity == "FATAL"

    async def test_bad_names_are_still_errors(self, support, linter):
        key = support.make_key(KEY)
        for bad in ("-a.test", "a..test", "*.*.test"):
            builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 7, support.NOW, support.NOW)
            certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(bad)]), False).sign(
                key, SHA256()
            )
            findings = await linter.lint_sample(certificate.public_bytes(Encoding.DER))
            assert any(item.code == "pkix.invalid_domain_name_syntax" for item in findings)


class FakePkilint:
    """In the place of the worker: answers what it is told to, and counts."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def warm(self) -> None: ...

    async def close(self) -> None: ...

    async def lint(self, _kind, _document):
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        return answer


def linter_with(*answers):
    linter = Linter()
    linter._pkilint = FakePkilint(*answers)
    return linter, linter._pkilint


ABOUT_SHAPE = Finding("ERROR", "pkix.x", "certificate.tbsCertificate.extensions.0", "")
ABOUT_NAME = Finding(
    "ERROR", "pkix.y", "certificate.tbsCertificate.extensions.6.extnValue.subjectAltName.0.dNSName", ""
)


class TestVerdicts:
    async def test_one_question_per_shape(self, make_plan, profile, support):
        linter, pkilint = linter_with()
        for plan in (make_plan(A), make_plan(B), make_plan(A, B)):
            await linter.lint(build_tbs(plan), plan, profile)
        assert pkilint.asked == 1
        different = [
            (make_plan(dns_identifier("*.a.test")), profile),
            (make_plan(ip_identifier("10.0.0.1")), profile),
            (make_plan(A, ip_identifier("10.0.0.1")), profile),
            (make_plan(A, key=KeyAlgorithm.ED25519), profile),
            (make_plan(A, issuer=KeyAlgorithm.P384), profile),
            (make_plan(A, under=support.profile_named("short")), support.profile_named("short")),
        ]
        for count, (plan, under) in enumerate(different, start=2):
            await linter.lint(build_tbs(plan), plan, under)
            assert pkilint.asked == count

    async def test_at_once(self, make_plan, profile):
        linter, pkilint = linter_with()
        plans = [make_plan(A), make_plan(B), make_plan(A, B)]
        await asyncio.gather(*(linter.lint(build_tbs(plan), plan, profile) for plan in plans))
        assert pkilint.asked == 1

    async def test_a_failing_shape_stays_refused(self, plan, profile):
        linter, pkilint = linter_with((ABOUT_SHAPE,))
        for _ in range(2):
            with pytest.raises(LintError, match=r"pkix\.x"):
                await linter.lint(build_tbs(plan), plan, profile)
        assert pkilint.asked == 1

    async def test_a_failing_name_refuses_no_other(self, make_plan, profile):
        linter, pkilint = linter_with((ABOUT_NAME,))
        bad, good = make_plan(A), make_plan(B)
        results = await asyncio.gather(
            linter.lint(build_tbs(bad), bad, profile),
            linter.lint(build_tbs(good), good, profile),
            return_exceptions=True,
        )
        assert isinstance(results[0], LintError)
        assert isinstance(results[1], LintedTbs)
        assert pkilint.asked == 2

    async def test_no_answer_is_no_verdict(self, plan, profile):
        linter, _ = linter_with(CaError(ErrorKind.UNAVAILABLE, "away"))
        with pytest.raises(CaError) as caught:
            await linter.lint(build_tbs(plan), plan, profile)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert await linter.lint(build_tbs(plan), plan, profile)

    async def test_notices_pass(self, plan, profile):
        linter, _ = linter_with((replace(ABOUT_SHAPE, severity="NOTICE"),))
        assert await linter.lint(build_tbs(plan), plan, profile)

    async def test_every_certificate_where_the_profile_asks(self, support, make_plan):
        text = (support.PROFILES / "default.toml").read_text()
        thorough = load_profile("thorough", 'pkilint = "every"\n' + text, where="f")
        linter, pkilint = linter_with()
        plan = make_plan(under=thorough)
        for _ in range(3):
            await linter.lint(build_tbs(plan), plan, thorough)
        assert pkilint.asked == 3

    async def test_own_lints_come_first(self, plan, profile):
        linter, pkilint = linter_with()
        with pytest.raises(LintError):
            await linter.lint(build_tbs(plan), replace(plan, names=(B,)), profile)
        assert pkilint.asked == 0


class TestWorker:
    async def test_killed_when_late_and_replaced(self, plan):
        process = PkilintProcess(time_limit=30)
        document = build_tbs(plan).certificate_der
        try:
            await process.lint(CERTIFICATE, document)
            first = process._process
            process._time_limit = 0.0
            with pytest.raises(CaError) as caught:
                await process.lint(CERTIFICATE, document)
            assert caught.value.kind is ErrorKind.UNAVAILABLE
            assert first.returncode is not None
            process._time_limit = 30
            assert await process.lint(CERTIFICATE, document)
            assert process._process.pid != first.pid
        finally:
            await process.close()

    async def test_replaced_when_it_died(self, plan):
        process = PkilintProcess(time_limit=30)
        try:
            await process.warm()
            process._process.kill()
            await process._process.wait()
            assert await process.lint(CERTIFICATE, build_tbs(plan).certificate_der)
        finally:
            await process.close()

    async def test_a_caller_that_goes_away_leaves_no_answer_for_the_next(self, make_plan):
        process = PkilintProcess(time_limit=30)
        try:
            await process.warm()
            task = asyncio.create_task(process.lint(CERTIFICATE, build_tbs(make_plan(A)).certificate_der))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            findings = await process.lint(CERTIFICATE, b"\x30\x00")
            assert findings[0].severity == "FATAL"
        finally:
            await process.close()

    async def test_starting_waits_for_nothing_and_closing_ends_it(self):
        linter = Linter()
        await asyncio.wait_for(linter.start(), 1)
        await linter.close()
        assert linter._pkilint._process is None
        with pytest.raises(CaError, match="closed"):
            await linter.lint_sample(b"\x30\x00")

    async def test_inherits_no_environment(self, monkeypatch):
        monkeypatch.setenv("CA_SERVER_PIN", "1234")
        process = PkilintProcess(time_limit=30)
        try:
            await process.warm()
            with open(f"/proc/{process._process.pid}/environ", "rb") as file:  # noqa: ASYNC230, PTH123
                assert b"1234" not in file.read()
        finally:
            await process.close()

    async def test_a_worker_that_does_not_start(self, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        process = PkilintProcess(time_limit=30)
        with pytest.raises(CaError) as caught:
            await process.lint(CERTIFICATE, b"")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await process.close()

    def test_protocol_constants_agree(self):
        from ca_server.core import pkilint_worker

        for kind in ("CERTIFICATE", "CRL", "OCSP_RESPONSE"):
            assert getattr(pkilint_worker, kind) == getattr(pkilint_process, kind)


def test_finding_about_names():
    assert ABOUT_NAME.is_about_names
    assert not ABOUT_SHAPE.is_about_names
    assert Finding("ERROR", "x", "certificate.tbsCertificate.subject.rdnSequence.0", "").is_about_names
