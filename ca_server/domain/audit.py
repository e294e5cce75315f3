"""Audit events and checkpoints. An event is committed with the change that it records, or the change is not."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class EventType(StrEnum):
    """What happened. Values are stable: they are in logs that must verify for years."""

    SERVER_START = "server.start"
    SERVER_STOP = "server.stop"
    CONFIGURATION_CHANGED = "configuration.changed"
    UNSAFE_SETTING = "unsafe.setting"
    """The server starts with a setting whose name begins with `unsafe_`."""
    PROFILE_CHANGED = "profile.changed"
    ISSUER_RESERVED = "issuer.reserved"
    """A CA certificate is about to be signed: serial and TBS hash."""
    ISSUER_CREATED = "issuer.created"
    ISSUER_CSR_SIGNED = "issuer.csr-signed"
    """The token is about to sign a CSR for an issuer's key: the hash of what is signed."""
    ISSUER_CERTIFICATE_IMPORTED = "issuer.certificate-imported"
    """A further CA certificate of an issuer's key, signed by another CA or renewed."""
    KEY_GENERATING = "key.generating"
    """The token is about to be asked: a process that dies meanwhile leaves no key off the record."""
    KEY_GENERATED = "key.generated"
    KEY_DELETED = "key.deleted"
    KEY_BLOCKED = "key.blocked"
    """A requesters' public key is certified no more."""
    KEY_UNBLOCKED = "key.unblocked"
    KEY_USED = "key.used"
    """Count of uses of a key over a period, to be reconciled with signatures on record."""
    ISSUANCE_REFUSED = "issuance.refused"
    ISSUANCE_HELD = "issuance.held"
    ISSUANCE_RESERVED = "issuance.reserved"
    """Requested, allowed by policy, linted, and about to be signed: serial and TBS hash."""
    ISSUANCE_STORED = "issuance.stored"
    """Signed, verified and stored."""
    ISSUANCE_ABANDONED = "issuance.abandoned"
    CERTIFICATE_REVOKED = "certificate.revoked"
    REVOCATION_REFUSED = "revocation.refused"
    CRL_RESERVED = "crl.reserved"
    CRL_PUBLISHED = "crl.published"
    OCSP_ANSWERED = "ocsp.answered"
    ACCOUNT_CREATED = "account.created"
    ACCOUNT_UPDATED = "account.updated"
    ACCOUNT_KEY_CHANGED = "account.key-changed"
    """An account has another key: `extra` names both by thumbprint."""
    ACCOUNT_DEACTIVATED = "account.deactivated"
    ACCOUNT_REVOKED = "account.revoked"
    """By an operator, with the external account key that it is bound to (RFC 8555 section 7.1.2)."""
    ORDER_CREATED = "order.created"
    ORDER_CANCELED = "order.canceled"
    """An auto-renewal order gets no certificate any more (RFC 8739 section 3.1.2): by its account, or for a reason."""
    AUTHORIZATION_CREATED = "authorization.created"
    """By itself (newAuthz); those of an order are in its event."""
    AUTHORIZATION_DEACTIVATED = "authorization.deactivated"
    CHALLENGE_VALIDATED = "challenge.validated"
    CHALLENGE_FAILED = "challenge.failed"
    CAA_CHECKED = "caa.checked"
    """CAA records of an order's names were looked up; denied where they forbid this CA one of them."""
    EAB_CREATED = "eab.created"
    EAB_DISABLED = "eab.disabled"
    EAB_UPDATED = "eab.updated"
    EAB_USED = "eab.used"
    LIMIT_RESET = "limit.reset"
    """An operator gave a key of a rate limit back what was taken from it."""
    INCIDENT_CREATED = "incident.created"
    INCIDENT_ENDED = "incident.ended"
    ACCESS_REFUSED = "access.refused"
    ANCHOR_ACCEPTED = "anchor.accepted"
    """An operator took a database as it is that did not extend the log's anchor."""
    LINT_SAMPLE = "lint.sample"


class Outcome(StrEnum):
    """How it ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One immutable event. No field ever holds a secret.

    `id` is unique and ordered by time; `process` and `sequence` order the events of one process (`node/role/boot`).
    Serials are lower-case hexadecimal. `extra` has flat text values only.
    """

    id: str
    type: EventType
    outcome: Outcome
    time: datetime
    node: str
    process: str
    sequence: int
    software: str
    configuration: str
    tenant: str = "default"
    actor: str | None = None
    """`kind:id`, such as `acme-account:AbC` or `uid:0`."""
    authenticated_by: str | None = None
    source: str | None = None
    request_id: str | None = None
    object: str | None = None
    """What was acted on, such as `acme-order:xyz`, `eab:kid`, `key:label`."""
    issuer: str | None = None
    serial: str | None = None
    profile: str | None = None
    names: tuple[str, ...] = ()
    key: str | None = None
    reason: str | None = None
    rule: str | None = None
    approvers: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed tree head (C2SP tlog-checkpoint): `note` is the whole signed note as published."""

    origin: str
    size: int
    root: bytes
    note: bytes
    created_at: datetime
