"""What makes a CA a staging one: the names of its issuers say so, in every certificate that they ever sign.

A setting can be changed in a moment; the common names of CA certificates can't. So what is unsafe is allowed only where
both say staging.
"""

from collections.abc import Iterable

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_server.domain.certificates import Issuer
from ca_server.domain.errors import ConfigurationError

STAGING_PREFIX = "STAGING "


def staging_name(common_name: str) -> str:
    """A common name that says staging."""
    return common_name if common_name.startswith(STAGING_PREFIX) else STAGING_PREFIX + common_name


def check_staging(issuers: Iterable[Issuer], *, staging: bool, where: str) -> None:
    """Check that the setting `server.staging` and every issuer's certificate agree. ConfigurationError."""
    for issuer in issuers:
        if _says_staging(issuer.key.certificate_der) is staging:
            continue
        found = "is no staging CA" if staging else "is a staging CA"
        raise ConfigurationError(
            where,
            "server.staging",
            staging,
            f"by its certificate, issuer {issuer.name} {found}; put the setting back, and make another home for the "
            "other kind ('ca-server init --staging' makes staging ones)",
        )


def _says_staging(certificate_der: bytes) -> bool:
    names = x509.load_der_x509_certificate(certificate_der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return any(str(name.value).startswith(STAGING_PREFIX) for name in names)
