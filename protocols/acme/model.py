"""ACME resources as values, and their states (RFC 8555 section 7.1.6): every transition is in this file."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.names import Identifier


class OrderStatus(StrEnum):
    """States of an order."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    """States of an authorization."""

    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    """States of a challenge."""

    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


ORDER_TRANSITIONS = {
    OrderStatus.PENDING: frozenset({OrderStatus.READY, OrderStatus.INVALID}),
    OrderStatus.READY: frozenset({OrderStatus.PROCESSING, OrderStatus.INVALID}),
    OrderStatus.PROCESSING: frozenset({OrderStatus.VALID, OrderStatus.INVALID}),
    OrderStatus.VALID: frozenset[OrderStatus](),
    OrderStatus.INVALID: frozenset[OrderStatus](),
}
AUTHORIZATION_TRANSITIONS = {
    AuthorizationStatus.PENDING: frozenset(
        {AuthorizationStatus.VALID, AuthorizationStatus.INVALID, AuthorizationStatus.DEACTIVATED}
    ),
    AuthorizationStatus.VALID: frozenset(
        {AuthorizationStatus.EXPIRED, AuthorizationStatus.DEACTIVATED, AuthorizationStatus.REVOKED}
    ),
    AuthorizationStatus.INVALID: frozenset[AuthorizationStatus](),
    AuthorizationStatus.DEACTIVATED: frozenset[AuthorizationStatus](),
    AuthorizationStatus.EXPIRED: frozenset[AuthorizationStatus](),
    AuthorizationStatus.REVOKED: frozenset[AuthorizationStatus](),
}
CHALLENGE_TRANSITIONS = {
    ChallengeStatus.PENDING: frozenset({ChallengeStatus.PROCESSING}),
    ChallengeStatus.PROCESSING: frozenset({ChallengeStatus.VALID, ChallengeStatus.INVALID}),
    ChallengeStatus.VALID: frozenset[ChallengeStatus](),
    ChallengeStatus.INVALID: frozenset[ChallengeStatus](),
}


def sources_of(target: OrderStatus | AuthorizationStatus | ChallengeStatus) -> tuple[str, ...]:
    """The states from which `target` may be reached, as a store compares them."""
    tables: dict[type, dict[Any, frozenset[Any]]] = {
        OrderStatus: ORDER_TRANSITIONS,
        AuthorizationStatus: AUTHORIZATION_TRANSITIONS,
        ChallengeStatus: CHALLENGE_TRANSITIONS,
    }
    return tuple(source.value for source, targets in tables[type(target)].items() if target in targets)


@dataclass(frozen=True, slots=True)
class OrderIdentifier:
    """A name of an order: `sent` is what the client wrote and is echoed, `identifier` is what it means.

    `ancestor` is a domain above it that the client can show control of instead (RFC 9444 section 4.3).
    """

    identifier: Identifier
    sent: str
    ancestor: Identifier | None = None


DNS_PERSIST = "dns-persist-01"
"""The challenge that has no token, and that records made for earlier keys of the account may satisfy."""


def challenge_id(authorization_id: str, kind: str) -> str:
    """The id of an authorization's challenge of a type, the same before and after its validation begins."""
    return f"{authorization_id}/{kind}"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to show control of an identifier. `error` is a problem document in JSON.

    `response` is what the client sent to be looked at, until that is done; `evidence`, a JSON object of texts, what it
    showed. All challenges of an authorization have one token.
    """

    id: str
    authorization_id: str
    type: str
    token: str
    status: ChallengeStatus = ChallengeStatus.PENDING
    validated_at: datetime | None = None
    error: bytes | None = None
    attempts: int = 0
    response: bytes | None = None
    evidence: bytes | None = None

    @property
    def attested_key(self) -> bytes:
        """SHA-256 of the key that a device attested, which alone may be certified; empty where there is none."""
        found = {} if self.evidence is None else json.loads(self.evidence)
        return bytes.fromhex(found.get("key_sha256", ""))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a challenge, as it is told to operators: printable, and bounded in size."""

    number: int
    """From 1 on, within its challenge."""
    started_at: datetime
    duration: timedelta
    front: str
    """The process that made it, as `node/process/instance`."""
    seen: tuple[str, ...]
    """Where it looked and what it found there."""
    outcome: str
    """`valid`, or the type of the problem without its URN."""
    detail: str = ""
    """What was wrong."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """An account's right to a name; `identifier` is without the wildcard label, which `wildcard` tells.

    `subdomains`: to all names below it too (RFC 9444), but to no wildcard.
    """

    id: str
    account_id: str
    identifier: Identifier
    wildcard: bool
    status: AuthorizationStatus
    created_at: datetime
    expires_at: datetime
    challenges: tuple[Challenge, ...] = ()
    subdomains: bool = False

    def covers(self, name: Identifier) -> bool:
        """Whether this is for a name of an order: for itself, or for a domain above it and all below (RFC 9444)."""
        if (self.identifier, self.wildcard) == (name.base, name.is_wildcard):
            return True
        return self.subdomains and not name.is_wildcard and self.identifier in name.domains_above

    def status_at(self, now: datetime) -> AuthorizationStatus:
        """The state as a client is told: a valid authorization expires by itself, a pending one becomes invalid."""
        if now < self.expires_at:
            return self.status
        if self.status is AuthorizationStatus.VALID:
            return AuthorizationStatus.EXPIRED
        return AuthorizationStatus.INVALID if self.status is AuthorizationStatus.PENDING else self.status


@dataclass(frozen=True, slots=True)
class Order:
    """A request for a certificate. `status` is as stored; an order is valid because its certificate exists.

    So one that failed, or was given up, while the core was at work on it is valid all the same once that is done.
    """

    id: str
    account_id: str
    profile: str
    profile_hash: str
    status: OrderStatus
    identifiers: tuple[OrderIdentifier, ...]
    created_at: datetime
    expires_at: datetime
    not_before: datetime | None = None
    not_after: datetime | None = None
    csr_der: bytes | None = None
    error: bytes | None = None
    authorization_ids: tuple[str, ...] = ()
    certificate: IssuedCertificate | None = None
    source: str | None = None
    request_id: str = ""
    lease_until: datetime | None = None
    replaces: str | None = None
    """The CertID of the account's certificate that this order replaces (RFC 9773 section 5)."""

    def status_at(self, now: datetime) -> OrderStatus:
        """The state as a client is told: valid with its certificate, invalid when it expired before finalize."""
        if self.certificate is not None:
            return OrderStatus.VALID
        if self.status in {OrderStatus.PENDING, OrderStatus.READY} and now >= self.expires_at:
            return OrderStatus.INVALID
        return self.status
