"""What a certificate costs before the token: CSR, key check, policy, plan, TBSCertificate, lints. Microseconds each.

Usage: python scripts/bench/tbs.py [seconds per line]
"""

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core import lint_rules
from ca_server.core.csr import parse_csr
from ca_server.core.der import assemble, verify
from ca_server.core.keycheck import check_key
from ca_server.core.lint import Linter
from ca_server.core.policy import decide
from ca_server.core.tbs import CaSubject, IssuerUrls, build_tbs, ca_plan, leaf_plan, new_serial
from ca_server.domain.certificates import IssuerKey
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier
from ca_server.domain.profiles import Profile, load_profile

PROFILE = Path(__file__).parents[2] / "config" / "profiles" / "default.toml"
URLS = IssuerUrls("http://ca.test/crl/issuing.1.0.crl", "http://ca.test/ocsp", "http://ca.test/issuer/issuing.1.cer")
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
NOW = datetime.now(UTC)
SERIAL = new_serial(bytes(range(100, 120)))


def measure(label: str, call: Callable[[], object]) -> None:
    call()
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS:
        call()
        count += 1
    print(f"  {label:<28} {spent / count * 1e6:9.1f} us")


def make_issuer() -> tuple[IssuerKey, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    plan = ca_plan(
        subject=CaSubject("Benchmark CA"),
        spki_der=spki,
        issuer=None,
        serial=SERIAL,
        not_before=NOW - timedelta(hours=1),
        not_after=NOW + timedelta(days=3650),
    )
    tbs = build_tbs(plan).tbs_der
    certificate = assemble(tbs, KeyAlgorithm.P256, key.sign(tbs, ec.ECDSA(SHA256())))
    return IssuerKey(1, "issuing", 1, "issuing-1", KeyAlgorithm.P256, spki, certificate, ()), key


def bench(label: str, key: object, profile: Profile, issuer: IssuerKey, count: int) -> None:
    names = tuple(dns_identifier(f"host{n}.example.test") for n in range(count))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n.value) for n in names]), critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    csr_der = builder.sign(key, digest).public_bytes(Encoding.DER)  # type: ignore[arg-type]
    csr = parse_csr(csr_der)
    request = EnrollmentRequest(Requester(Protocol.ACME, "a", "account"), profile.name, csr_der, names, "t")
    plan = leaf_plan(profile, csr, request, issuer, SERIAL, NOW, URLS)
    unlinted = build_tbs(plan)
    print(f"{label}, {count} name(s):")
    measure("parse and verify the CSR", lambda: parse_csr(csr_der))
    measure("check the key", lambda: check_key(csr.public_key, profile))
    measure("decide", lambda: decide(profile, request, csr, now=NOW))
    measure("plan", lambda: leaf_plan(profile, csr, request, issuer, SERIAL, NOW, URLS))
    measure("build the TBSCertificate", lambda: build_tbs(plan))
    measure("our own lints", lambda: lint_rules.check(unlinted, plan, profile))


async def bench_linter(profile: Profile, issuer: IssuerKey) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = (dns_identifier("host.example.test"),)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(names[0].value)]), critical=False)
    csr = parse_csr(builder.sign(key, SHA256()).public_bytes(Encoding.DER))
    request = EnrollmentRequest(Requester(Protocol.ACME, "a", "account"), profile.name, csr.der, names, "t")
    plan = leaf_plan(profile, csr, request, issuer, SERIAL, NOW, URLS)
    unlinted = build_tbs(plan)
    linter = Linter()
    try:
        for label, count in (("first shape, cold worker", 1), ("known shape", 5000)):
            started = time.perf_counter()
            for _ in range(count):
                (await linter.lint(unlinted, plan, profile)).take()
            print(f"  {label:<28} {(time.perf_counter() - started) / count * 1e6:9.1f} us")
        started = time.perf_counter()
        for _ in range(100):
            await linter.lint_sample(unlinted.certificate_der)
        print(f"  {'pkilint, warm worker':<28} {(time.perf_counter() - started) / 100 * 1e6:9.1f} us")
    finally:
        await linter.close()


def main() -> None:
    profile = load_profile("default", PROFILE.read_text("utf-8"), where=str(PROFILE))
    issuer, issuer_key = make_issuer()
    bench("P-256", ec.generate_private_key(ec.SECP256R1()), profile, issuer, 1)
    bench("P-256", ec.generate_private_key(ec.SECP256R1()), profile, issuer, 100)
    bench("RSA-2048", rsa.generate_private_key(65537, 2048), profile, issuer, 1)
    bench("Ed25519", ed25519.Ed25519PrivateKey.generate(), profile, issuer, 1)
    signature = issuer_key.sign(b"x", ec.ECDSA(SHA256()))
    print("signature, P-256:")
    measure("verify", lambda: verify(issuer_key.public_key(), KeyAlgorithm.P256, b"x", signature))
    print("linter:")
    asyncio.run(bench_linter(profile, issuer))


if __name__ == "__main__":
    main()
