"""Issuers, certificates, revocation and CRLs as values. Serial numbers are text: see `serial_text`."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum

from ca_server.domain.keys import KeyAlgorithm


def serial_text(serial: int) -> str:
    """Write a serial number as everywhere in this server: lower-case hexadecimal, an even number of digits."""
    digits = f"{serial:x}"
    return digits if len(digits) % 2 == 0 else "0" + digits


class IssuerKind(StrEnum):
    """What an issuer is for."""

    ROOT = "root"
    ISSUING = "issuing"


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One generation of an issuer's key: the token label it is found by and what signs with it."""

    id: int
    issuer: str
    generation: int
    label: str
    algorithm: KeyAlgorithm
    spki_der: bytes
    certificate_der: bytes
    """The CA certificate of this key."""
    chain: tuple[bytes, ...]
    """The CA certificates above `certificate_der`, nearest first, root last; empty for a root."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA by name with its active key."""

    name: str
    kind: IssuerKind
    key: IssuerKey
    parent: str | None = None
    tenant: str = "default"


class RevocationReason(Enum):
    """CRLReason (RFC 5280 section 5.3.1); 7 does not exist."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    REMOVE_FROM_CRL = 8
    PRIVILEGE_WITHDRAWN = 9
    AA_COMPROMISE = 10

    @property
    def label(self) -> str:
        """The reason in lower case with hyphens, as the command line spells it."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that is stored, with the chain that a client is given (leaf's issuer first, root left out)."""

    serial: str
    issuer: str
    issuer_key_id: int
    certificate_der: bytes
    chain: tuple[bytes, ...]
    profile: str
    profile_hash: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """What the inventory knows of a stored certificate."""

    serial: str
    issuer: str
    issuer_key_id: int
    certificate_der: bytes
    profile: str
    profile_hash: str
    subject: str
    names: tuple[str, ...]
    """Subject alternative names as `type:value`."""
    spki_sha256: bytes
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    requester_protocol: str
    requester_id: str
    transaction_key: str
    tenant: str = "default"
    crl_partition: int = 0
    revoked_at: datetime | None = None
    revocation_reason: RevocationReason | None = None
    invalidity_date: datetime | None = None
    owner: str | None = None
    """Of the external account key that the requester was bound by when it was issued."""

    @property
    def is_revoked(self) -> bool:
        """Whether the certificate was revoked."""
        return self.revoked_at is not None


@dataclass(frozen=True, slots=True)
class RevokedEntry:
    """One line of a CRL."""

    serial: str
    revoked_at: datetime
    reason: RevocationReason
    invalidity_date: datetime | None = None


@dataclass(frozen=True, slots=True)
class RevocationRequest:
    """Ask the core to revoke; `requester_*` say who asks and how he was known, for the record."""

    issuer: str
    serial: str
    reason: RevocationReason
    requester_protocol: str
    requester_id: str
    authenticated_by: str
    """How the right to revoke was shown: `account`, `certificate-key`, `authorizations`, `operator`."""
    request_id: str = ""
    source: str | None = None
    invalidity_date: datetime | None = None
    presented_der: bytes | None = None
    """The certificate as the client sent it: must be byte for byte the stored one."""


@dataclass(frozen=True, slots=True)
class BlockedKey:
    """A public key that is certified no more, by the SHA-256 of its SubjectPublicKeyInfo."""

    spki_sha256: bytes
    reason: str
    added_at: datetime


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """The result of a revocation that is committed."""

    issuer: str
    serial: str
    revoked_at: datetime
    reason: RevocationReason


class StatusValue(StrEnum):
    """What is known of a serial number under an issuer."""

    GOOD = "good"
    REVOKED = "revoked"
    RESERVED = "reserved"
    """Reserved or being signed: no certificate was handed out."""
    ABANDONED = "abandoned"
    """Reserved, never stored, settled: never to be used."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SerialStatus:
    """The status of a serial number; revocation fields set for REVOKED alone."""

    value: StatusValue
    revoked_at: datetime | None = None
    reason: RevocationReason | None = None


@dataclass(frozen=True, slots=True)
class Crl:
    """A published CRL; `number` strictly increases by (issuer, key generation, partition)."""

    issuer: str
    issuer_key_id: int
    number: int
    partition: int
    this_update: datetime
    next_update: datetime
    der: bytes
