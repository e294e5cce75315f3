"""CA certificates by other CAs than the server's own, as an operator gets them from elsewhere."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class OtherCa:
    """A CA with a key in software; `changes` of what it signs make a certificate wrong in one thing."""

    name: str
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def root(self) -> x509.Certificate:
        return self.sign(common_name(self.name), self.key.public_key())

    def cross_sign(self, standing: bytes, **changes: Any) -> x509.Certificate:
        """A certificate for key, subject and key identifier of the one that stands."""
        certificate = x509.load_der_x509_certificate(standing)
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        wanted = {"subject": certificate.subject, "key": certificate.public_key(), "identifier": identifier} | changes
        return self.sign(**wanted)

    def certify(self, csr: x509.CertificateSigningRequest) -> x509.Certificate:
        """A certificate for what a CSR asks for."""
        identifier = csr.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        length = csr.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        return self.sign(csr.subject, csr.public_key(), identifier, path_length=length)

    def sign(
        self,
        subject: x509.Name,
        key: Any,
        identifier: x509.SubjectKeyIdentifier | None = None,
        *,
        ca: bool = True,
        may_sign: bool = True,
        crl_sign: bool = True,
        path_length: int | None = None,
        begin: timedelta = timedelta(hours=-1),
        end: timedelta = timedelta(days=30),
        signer: Any = None,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(common_name(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begin)
            .not_valid_after(now + end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=may_sign, crl_sign=crl_sign, **usage), critical=True)
            .add_extension(identifier or x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(signer or self.key, hashes.SHA256())
        )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
