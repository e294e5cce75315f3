"""Staging is what the certificates of an issuer's chain say, and the settings must agree."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_server.core.staging import check_staging
from ca_server.domain.certificates import Issuer, IssuerKey, IssuerKind
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(common_name: str) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def issuer(name: str, common_name: str, *above: str) -> Issuer:
    chain = tuple(map(certificate, above))
    key = IssuerKey(1, name, 1, f"{name}-1", KeyAlgorithm.P256, b"", certificate(common_name), chain)
    return Issuer(name, IssuerKind.ISSUING if above else IssuerKind.ROOT, key, "above" if above else None)


REAL = issuer("issuing", "Issuing CA", "Root CA")
STAGING = issuer("staging-issuing", "STAGING Issuing CA", "STAGING Root CA")


def test_both_kinds_may_stand_side_by_side() -> None:
    check_staging([REAL, STAGING], lambda name: name == STAGING.name, "file")


@pytest.mark.parametrize(
    ("found", "staging", "told"),
    [
        (REAL, True, "issuing is no staging CA"),
        (STAGING, False, "staging-issuing is a staging CA"),
        (issuer("mixed", "STAGING Issuing CA", "Root CA"), True, "mixed is no staging CA"),
        (issuer("mixed", "Issuing CA", "STAGING Root CA"), False, "mixed is a staging CA"),
    ],
    ids=["real", "staging", "staging-below-real", "real-below-staging"],
)
def test_what_does_not_agree_is_refused(found: Issuer, staging: bool, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        check_staging([found], lambda _name: staging, "file")
    assert f"issuers.{found.name}.staging" in str(refused.value)
