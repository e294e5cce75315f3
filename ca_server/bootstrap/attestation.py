"""Reads the roots that attestations of devices must lead to."""

from cryptography import x509

from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings
from protocols.acme.attestation import FORMATS, Roots

MAX_FILE = 1024 * 1024
"""Octets of a file of certificates."""


def load_attestation_roots(home: Home, settings: Settings) -> Roots:
    """Read every file that is set. ConfigurationError names the setting, the file and the remedy."""
    where = str(home.configuration)
    found: dict[str, tuple[x509.Certificate, ...]] = {}
    for kind in FORMATS:
        key = f"acme.attestation.{kind}_roots"
        certificates: list[x509.Certificate] = []
        for path in getattr(settings.acme.attestation, f"{kind}_roots"):
            try:
                with (home.path / path).open("rb") as file:
                    data = file.read(MAX_FILE + 1)
            except OSError as error:
                raise ConfigurationError(where, key, path, f"can't be read: {error.strerror}") from None
            if len(data) > MAX_FILE:
                raise ConfigurationError(where, key, path, f"has more than {MAX_FILE} octets; name a file of roots")
            certificates += _certificates(data, where, key, path)
        found[kind] = tuple(dict.fromkeys(certificates))
    return Roots(found)


def _certificates(data: bytes, where: str, key: str, path: str) -> list[x509.Certificate]:
    """The certificates of a file, each of them a CA's."""
    try:
        certificates = x509.load_pem_x509_certificates(data)
        are_cas = all(each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for each in certificates)
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.ExtensionNotFound):
        are_cas = False
    if not are_cas:
        remedy = "holds no certificates in PEM (-----BEGIN CERTIFICATE-----), or one that is not a CA's"
        raise ConfigurationError(where, key, path, remedy)
    return certificates
