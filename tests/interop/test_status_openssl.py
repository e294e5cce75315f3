"""openssl and pkilint on what this CA publishes: verify, OCSP and CRL agree before and after a revocation."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID
from interoplib.enrollment import Enrollment
from interoplib.openssl import Relying, authority_information, findings
from interoplib.server import EXTERNAL_HOST, Server
from interoplib.tools import need, run

PATIENCE = 30.0


@pytest.fixture
def certificate(ca: Server, enroll: Callable[[Server], Enrollment], tmp_path: Path) -> Path:
    return enroll(ca).certificate(tmp_path, "status.example.test", "www.status.example.test")


def serial_text(certificate: Path) -> str:
    return f"{x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number:x}"


def listed(relying: Relying, certificate: Path) -> bool:
    """Whether the CRL that `openssl crl` reads has the certificate's serial."""
    text = relying.crl_text(certificate).lower().replace("serial number: 0", "serial number: ")
    return f"serial number: {serial_text(certificate)}" in text


def test_verify_ocsp_and_crl_agree(ca: Server, relying: Relying, certificate: Path) -> None:
    relying.verify(certificate, "-purpose", "sslserver", "-verify_hostname", "www.status.example.test")
    assert "OK" in relying.verify_with_crl(certificate, expect=0)
    assert f"{certificate}: good" in relying.ocsp(certificate)
    assert not listed(relying, certificate)

    ca.cli("cert", "revoke", serial_text(certificate), "--reason", "key-compromise")

    answer = relying.ocsp(certificate)
    assert f"{certificate}: revoked" in answer
    assert "keyCompromise" in answer
    deadline = time.monotonic() + PATIENCE
    while not listed(relying, certificate) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert listed(relying, certificate)
    assert "certificate revoked" in relying.verify_with_crl(certificate, expect=2)
    relying.verify(certificate)  # without a CRL nothing is wrong with it


def test_the_issuing_ca_is_on_the_roots_list(ca: Server, relying: Relying) -> None:
    """The root signs CA certificates and its CRL alone: the status of the issuing CA is in that CRL."""
    assert "ca-server Root CA" in relying.crl_text(ca.issuing)
    assert not listed(relying, ca.issuing)


def test_ocsp_answers_sha256_without_nonce(relying: Relying, certificate: Path) -> None:
    # An option of `openssl ocsp` that stands before -cert chooses the hash of its CertID.
    url = authority_information(certificate, AuthorityInformationAccessOID.OCSP)
    ask = [need("openssl"), "ocsp", "-issuer", relying.issuing, "-sha256", "-cert", certificate, "-no_nonce"]
    done = run([*ask, "-url", url, "-CAfile", relying.root, "-verify_other", relying.issuing])
    assert f"{certificate}: good" in done.stdout


def test_ca_issuers_is_the_issuer(relying: Relying, certificate: Path) -> None:
    url = authority_information(certificate, AuthorityInformationAccessOID.CA_ISSUERS)
    der = run([need("curl"), "-sSf", url, "-o", relying.folder / "issuer.cer"])
    assert der.returncode == 0
    issuer = x509.load_der_x509_certificate((relying.folder / "issuer.cer").read_bytes())
    assert issuer == x509.load_pem_x509_certificate(relying.issuing.read_bytes())


def test_the_servers_own_tls_certificate(ca: Server, relying: Relying) -> None:
    connect = ["-connect", f"127.0.0.1:{ca.https_port}", "-CAfile", ca.root, "-verify_return_error"]
    for name in (["-verify_ip", EXTERNAL_HOST], ["-verify_hostname", "localhost", "-servername", "localhost"]):
        done = run([need("openssl"), "s_client", *connect, *name])
        assert "Verify return code: 0 (ok)" in done.stdout


def test_pkilint_finds_nothing_above_notice(ca: Server, relying: Relying, certificate: Path) -> None:
    leaf = relying.folder / "leaf.pem"
    first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    leaf.write_bytes(first.public_bytes(Encoding.PEM))
    for file in (leaf, ca.issuing, ca.root):
        assert findings("lint_pkix_cert", file) == []

    for holder, kind in ((leaf, "CRL"), (ca.issuing, "ARL")):
        crl = relying.folder / f"{kind}.crl"
        crl.write_bytes(relying.fetch_crl(holder))
        assert findings("lint_crl", crl, "-t", kind, "-p", "PKIX") == []

    for nonce in ("-nonce", "-no_nonce"):
        relying.ocsp(certificate, nonce)
        assert findings("lint_ocsp_response", relying.ocsp_response) == []


def test_pkilint_is_awake(tmp_path: Path) -> None:
    """The same check on a certificate with a known fault: it must not pass because nothing was looked at."""
    key, bad = tmp_path / "bad.key", tmp_path / "bad.pem"
    run([need("openssl"), "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key])
    run([need("openssl"), "req", "-x509", "-key", key, "-subj", "/CN=bad", "-days", "3", "-out", bad])
    assert [item["code"] for item in findings("lint_pkix_cert", bad)] == ["pkix.ca_certificate_no_ku_extension"]
