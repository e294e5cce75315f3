"""Key algorithms that tokens hold and profiles allow."""

from enum import StrEnum


class KeyAlgorithm(StrEnum):
    """A key type with its size, as written in configuration."""

    P256 = "ec-p256"
    P384 = "ec-p384"
    P521 = "ec-p521"
    RSA2048 = "rsa-2048"
    RSA3072 = "rsa-3072"
    RSA4096 = "rsa-4096"
    ED25519 = "ed25519"

    @property
    def is_rsa(self) -> bool:
        """Whether this is an RSA key."""
        return self.value.startswith("rsa-")
