"""Enrollment: who asks, for what, and what was decided. The same values for every front-end."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ca_server.domain.names import Identifier


class Protocol(StrEnum):
    """Where a request came in."""

    ACME = "acme"
    EST = "est"
    SCEP = "scep"
    ADMIN = "admin"
    INTERNAL = "internal"
    """The server itself: its TLS certificate, OCSP responder and RA certificates."""


@dataclass(frozen=True, slots=True)
class Requester:
    """An authenticated requester; `id` is unique within (tenant, protocol)."""

    protocol: Protocol
    id: str
    authenticated_by: str
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class ValidatedIdentifier:
    """An identifier whose control a front-end validated, with the method and when.

    `subdomains`: it was validated for all names below it too (RFC 9444).
    """

    identifier: Identifier
    method: str
    validated_at: datetime
    spki_sha256: bytes = b""
    """The key that a device attested, and that alone may be certified; empty where there is none."""
    subdomains: bool = False


@dataclass(frozen=True, slots=True)
class CaaChecked:
    """A DNS name, wildcard label included, that CAA lets this CA certify (RFC 8659), and when that was looked up."""

    identifier: Identifier
    checked_at: datetime
    authenticated: bool
    """Whether the resolver had authenticated all of the answers by DNSSEC."""


@dataclass(frozen=True, slots=True)
class EnrollmentKey:
    """What makes retries of one request the same request (docs/architecture.md, transaction keys)."""

    protocol: Protocol
    profile: str
    requester_scope: str
    transaction_key: str
    epoch: int = 0
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """A request for one certificate, as a front-end hands it to the pipeline.

    `identifiers` are the names that the requester may have: the pipeline refuses a CSR whose names differ. Empty
    `profile_hash` means the profile as it now stands; otherwise the content hash pinned when the request began.
    """

    requester: Requester
    profile: str
    csr_der: bytes
    identifiers: tuple[Identifier, ...]
    transaction_key: str
    profile_hash: str = ""
    epoch: int = 0
    not_before: datetime | None = None
    not_after: datetime | None = None
    evidence: tuple[ValidatedIdentifier, ...] = ()
    caa: tuple[CaaChecked, ...] = ()
    request_id: str = ""
    source: str | None = None
    issuer: str = ""
    """The issuer, where the server itself asks (Protocol.INTERNAL); everyone else's comes from the profile."""
    eab_kid: str = ""
    """The external account key by which the front-end says that the account is bound; the core knows it better."""

    @property
    def key(self) -> EnrollmentKey:
        """The enrollment that this request belongs to."""
        who = self.requester
        return EnrollmentKey(who.protocol, self.profile, who.id, self.transaction_key, self.epoch, who.tenant)


@dataclass(frozen=True, slots=True)
class Allow:
    """Policy lets the request pass."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Policy refuses; `rule` is the stable name of the rule, such as `names.dns_suffixes`."""

    rule: str
    detail: str
    identifier: Identifier | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Policy wants a person's approval first."""

    rule: str


Decision = Allow | Deny | Hold


@dataclass(frozen=True, slots=True)
class Fence:
    """Which core process wrote an intent: a second transaction passes only under the same node and boot."""

    node: str
    boot_epoch: int


@dataclass(frozen=True, slots=True)
class IssuanceIntent:
    """A serial reserved for exactly one TBSCertificate, committed before the token is asked to sign."""

    id: str
    enrollment: EnrollmentKey
    issuer: str
    issuer_key_id: int
    serial: str
    tbs_sha256: bytes
    profile: str
    profile_hash: str
    fence: Fence
    reserved_at: datetime
    tenant: str = "default"


class EnrollmentOutcome(StrEnum):
    """Where an enrollment stands."""

    NONE = "none"
    LIVE = "live"
    """An intent is reserved and not yet settled."""
    ISSUED = "issued"
