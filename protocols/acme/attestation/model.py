"""What the verification of an attestation takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NoReturn

from cryptography import x509

from ca_server.domain.names import Identifier

MAX_OBJECT: Final = 64 * 1024
"""Octets of an attestation object: certificates of a chain are a few KiB together."""
_SHOWN: Final = 100


class AttestationError(ValueError):
    """The attestation is not acceptable; the message says why, in printable ASCII, for the client."""


def refuse(detail: str, cause: Exception | None = None) -> NoReturn:
    """End a verification. Raises AttestationError."""
    raise AttestationError(detail) from cause


def printable(text: str) -> str:
    """What a device says, fit for messages and records."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in cut)


@dataclass(frozen=True, slots=True)
class Statement:
    """An attestation object, read: its format and the members of its statement, not looked at yet."""

    format: str
    members: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Question:
    """What an attestation has to answer: made for this token, or for this key authorization, and good at `now`."""

    token: str
    key_authorization: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Attested:
    """What a good attestation shows."""

    format: str
    identifiers: frozenset[Identifier]
    """Every identifier that the device may be called by."""
    spki_sha256: bytes
    """The key that was attested."""
    certificate_sha256: bytes
    """The attestation's own certificate."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What else it says of the device, for the record; printable."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The certificates that each format's attestations must lead to; a format without any is not allowed."""

    by_format: Mapping[str, tuple[x509.Certificate, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.by_format.values())
