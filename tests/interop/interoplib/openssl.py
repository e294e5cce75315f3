"""What openssl makes of certificates, CRLs and OCSP answers, and what pkilint finds in them."""

import json
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from interoplib.tools import need, run

_SERIOUS = {"WARNING", "ERROR", "FATAL"}


@dataclass
class Relying:
    """A relying party that knows the root alone and takes every address from the certificate."""

    folder: Path
    root: Path
    issuing: Path

    def verify(self, certificate: Path, *options: str, expect: int = 0) -> str:
        argv = [need("openssl"), "verify", "-x509_strict", "-CAfile", self.root, "-untrusted", self.issuing]
        done = run([*argv, *options, certificate], expect=expect)
        return done.stdout + done.stderr

    def verify_with_crl(self, certificate: Path, *, expect: int) -> str:
        """Verify leaf and issuing CA against the CRLs that the two name."""
        lists = self.folder / "crls.pem"
        lists.write_bytes(
            b"".join(
                x509.load_der_x509_crl(self.fetch_crl(pem)).public_bytes(Encoding.PEM)
                for pem in (certificate, self.issuing)
            )
        )
        return self.verify(certificate, "-crl_check_all", "-CRLfile", str(lists), expect=expect)

    def fetch_crl(self, certificate: Path) -> bytes:
        """The CRL at the URL that a certificate names."""
        extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
        points = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        names = points[0].full_name
        assert names is not None
        with urllib.request.urlopen(names[0].value, timeout=30) as response:
            assert response.headers["Content-Type"] == "application/pkix-crl"
            return bytes(response.read())

    def crl_text(self, certificate: Path) -> str:
        """The CRL as `openssl crl` prints it, its signature verified."""
        file = self.folder / "one.crl"
        file.write_bytes(self.fetch_crl(certificate))
        authority = self.root if _is_ca(certificate) else self.issuing
        argv = [need("openssl"), "crl", "-inform", "DER", "-in", file, "-noout", "-text", "-verify"]
        done = run([*argv, "-CAfile", authority])
        assert "verify OK" in done.stdout + done.stderr
        return done.stdout

    def ocsp(self, certificate: Path, *options: str) -> str:
        """What `openssl ocsp` says of a certificate, asked at the URL that it names; the response is kept."""
        issuer = self.root if _is_ca(certificate) else self.issuing
        url = authority_information(certificate, AuthorityInformationAccessOID.OCSP)
        argv = [need("openssl"), "ocsp", "-issuer", issuer, "-cert", certificate, "-url", url]
        trust = ["-CAfile", self.root, "-verify_other", issuer, "-respout", self.ocsp_response]
        done = run([*argv, *trust, *options])
        assert "Response verify OK" in done.stderr, done.stderr
        return done.stdout

    @property
    def ocsp_response(self) -> Path:
        return self.folder / "ocsp.der"


def _is_ca(certificate: Path) -> bool:
    extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def authority_information(certificate: Path, method: x509.ObjectIdentifier) -> str:
    """The URL under an access method of authorityInfoAccess."""
    extensions = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    return next(str(item.access_location.value) for item in access if item.access_method == method)


def findings(linter: str, file: Path, *options: str) -> list[dict[str, Any]]:
    """What a pkilint command finds above notice."""
    command = Path(sys.executable).parent / linter
    done = run([command, "lint", *options, "-s", "NOTICE", "-f", "JSON", file], expect=None)
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        raise AssertionError(f"{linter} gave no verdict: {done.stdout}\n{done.stderr}") from None
    return [
        finding
        for result in results
        for finding in result["finding_descriptions"]
        if str(finding["severity"]).upper() in _SERIOUS
    ]
