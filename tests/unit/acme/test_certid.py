"""CertIDs (RFC 9773 section 4.1): the RFC's own example, and every other spelling refused."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.acme.certid import CertId, CertIdError, certid_of, parse_certid

KEY_IDENTIFIER = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
EXAMPLE = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


def test_the_example_of_the_rfc() -> None:
    """Its serial number's high bit is set, so that DER begins it with a zero octet."""
    certid = CertId(KEY_IDENTIFIER, 0x87654321)
    assert str(certid) == EXAMPLE
    assert parse_certid(EXAMPLE) == certid


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "two parts"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ", "two parts"),
        (EXAMPLE.replace(".", ""), "two parts"),
        (EXAMPLE + ".AA", "base64url"),
        (EXAMPLE + "=", "base64url"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ=.AIdlQyE", "base64url"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNR.AIdlQyE", "base64url"),  # spare bits
        ("aYhba4dGQEHhs3uEe6CuLN4ByN+.AIdlQyE", "base64url"),
        (EXAMPLE + " ", "base64url"),
        (EXAMPLE + "\n", "base64url"),
        (EXAMPLE + "é", "base64url"),
        (".AIdlQyE", "key identifier"),
        ("A" * 100 + ".Qw", "key identifier"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.", "1 to 20 octets"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ." + "Qw" * 14, "1 to 20 octets"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AA", "positive"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.h2VDIQ", "positive"),  # the zero octet is missing
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AACHZUMh", "DER leaves out"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AEM", "DER leaves out"),
        ("A" * 1_000_000, "so long"),
    ],
)
def test_malformed(text: str, says: str) -> None:
    with pytest.raises(CertIdError) as refused:
        parse_certid(text)
    assert says in refused.value.detail


def certificate(serial: int, authority: x509.AuthorityKeyIdentifier | None) -> x509.Certificate:
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, now, now + timedelta(days=1))
    if authority is not None:
        builder = builder.add_extension(authority, critical=False)
    return builder.sign(key, hashes.SHA256())


def test_of_a_certificate() -> None:
    named = x509.AuthorityKeyIdentifier(KEY_IDENTIFIER, None, None)
    assert certid_of(certificate(0x87654321, named)) == CertId(KEY_IDENTIFIER, 0x87654321)
    by_issuer = x509.AuthorityKeyIdentifier(None, [x509.DNSName("ca.test")], 1)
    assert certid_of(certificate(1, by_issuer)) is None
    assert certid_of(certificate(1, None)) is None
