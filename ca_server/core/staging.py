"""What makes a CA a staging one: the names of its issuers say so, in every certificate that they ever sign.

A setting can be changed in a moment; the common names of CA certificates can't. So what is unsafe is allowed only where
both say staging. A home is of one kind as a whole, but for issuers that are staging ones beside the real ones.
"""

from collections.abc import Callable, Iterable

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_server.domain.certificates import Issuer
from ca_server.domain.errors import ConfigurationError

STAGING_PREFIX = "STAGING "


def staging_name(common_name: str) -> str:
    """A common name that says staging."""
    return common_name if common_name.startswith(STAGING_PREFIX) else STAGING_PREFIX + common_name


def check_staging(issuers: Iterable[Issuer], is_staging: Callable[[str], bool], where: str) -> None:
    """Check that what the settings say of each issuer and what its certificates say agree. ConfigurationError.

    Every certificate of a staging issuer's chain says staging: none leads to a root that is trusted for real.
    """
    for issuer in issuers:
        staging = is_staging(issuer.name)
        chain = (issuer.key.certificate_der, *issuer.key.chain)
        if all(says_staging(each) is staging for each in chain):
            continue
        found = "is no staging CA" if staging else "is a staging CA"
        raise ConfigurationError(
            where,
            f"server.staging or issuers.{issuer.name}.staging",
            staging,
            f"by its certificate, issuer {issuer.name} {found}; put the setting back, and make another home, or other "
            "issuers, for the other kind ('ca-server init --staging' makes staging homes)",
        )


def staging_names(issuers: Iterable[Issuer]) -> tuple[str, ...]:
    """Names of the issuers whose certificates say staging."""
    return tuple(issuer.name for issuer in issuers if says_staging(issuer.key.certificate_der))


def says_staging(certificate_der: bytes) -> bool:
    """Whether a CA certificate is a staging CA's."""
    names = x509.load_der_x509_certificate(certificate_der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return any(str(name.value).startswith(STAGING_PREFIX) for name in names)
