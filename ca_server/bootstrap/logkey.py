"""The log's public key in a file beside the database: what verification trusts must not come from what it verifies."""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from ca_server.domain.errors import ConfigurationError

_END = b"-----END PUBLIC KEY-----"


def write_log_key(path: Path, spki_der: bytes) -> None:
    """Add a public key to the file, unless it stands there."""
    if path.exists() and spki_der in read_log_keys(path):
        return
    pem = load_der_public_key(spki_der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with path.open("ab") as file:
        file.write(pem)


def read_log_keys(path: Path) -> tuple[bytes, ...]:
    """The public keys of a PEM file as DER SubjectPublicKeyInfos, oldest first. ConfigurationError."""
    try:
        blocks = path.read_bytes().split(_END)[:-1]
        keys = tuple(
            load_pem_public_key(block.strip() + b"\n" + _END + b"\n").public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            )
            for block in blocks
        )
    except OSError as error:
        raise ConfigurationError(str(path), "log key", None, f"can't be read ({error.strerror})") from None
    except ValueError:
        raise ConfigurationError(str(path), "log key", None, "is no PEM file of public keys") from None
    if not keys:
        raise ConfigurationError(str(path), "log key", None, "has no public key")
    return keys
