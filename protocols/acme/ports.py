"""What the ACME front-end needs of the database. Each method is one durable transaction.

`nonce` of a method is used up in the same transaction: NonceReplayedError, and nothing done, where it was used
before. Events given are committed with the change, and only if there was one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ca_server.domain.accounts import Account, AccountRegistered
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.names import Identifier
from ca_server.domain.profiles import Profile
from protocols.acme.model import Authorization, Challenge, Order


class NonceReplayedError(Exception):
    """The nonce was used before."""


@dataclass(frozen=True, slots=True)
class NonceUse:
    """A nonce to use up; kept until its time of issue is older than the lifetime."""

    nonce: str
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class Work:
    """A challenge or an order that this process may work on until its lease runs out."""

    id: str
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class Lessee:
    """Who takes a lease, when, and for how long; a holder is called `node/process/instance`."""

    holder: str
    now: datetime
    duration: timedelta


class AcmeStore(Protocol):
    """Accounts, orders, authorizations, challenges and nonces."""

    async def consume_nonce(self, nonce: NonceUse) -> None:
        """Use a nonce up by itself."""

    async def record(self, events: Sequence[AuditEvent], nonce: NonceUse | None) -> None:
        """Commit events that record no change, such as refusals."""

    async def account(self, account_id: str) -> Account | None:
        """An account by id."""

    async def bound_profile(self, account: Account) -> str | None:
        """The one profile that an account may use, by its external account key; None: any."""

    async def account_by_key(self, tenant: str, thumbprint: str) -> Account | None:
        """An account by the thumbprint of its key."""

    async def create_account(
        self, account: Account, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> AccountRegistered:
        """Create an account, or return the one that its key has, unchanged."""

    async def update_account(
        self,
        account_id: str,
        contacts: tuple[str, ...] | None,
        terms_agreed_at: datetime | None,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Account:
        """Change what is not None of a valid account."""

    async def deactivate_account(
        self, account_id: str, now: datetime, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> Account:
        """Deactivate an account, its pending and valid authorizations, and its unfinished orders."""

    async def create_order(
        self,
        order: Order,
        candidates: Sequence[Authorization],
        max_open: int,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Order:
        """Create an order. For each candidate a valid authorization of the account is reused, or it is created.

        The order is ready at once where all are valid, and lives no longer than any that was reused. RATE_LIMITED
        where the account has `max_open` unfinished ones.
        """

    async def order(self, order_id: str) -> Order | None:
        """An order with its authorizations and, once issued, its certificate."""

    async def orders_of(self, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
        """Ids of an account's orders, oldest first, after the id given."""

    async def authorization(self, authorization_id: str) -> Authorization | None:
        """An authorization with its challenges."""

    async def authorizations_of_order(self, order_id: str) -> tuple[Authorization, ...]:
        """The authorizations of an order with their challenges."""

    async def challenge(self, challenge_id: str) -> tuple[Challenge, Authorization] | None:
        """A challenge with its authorization."""

    async def deactivate_authorization(
        self, authorization_id: str, now: datetime, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> Authorization:
        """Deactivate a pending or valid authorization; unfinished orders that need it become invalid."""

    async def begin_challenge(self, challenge_id: str, lessee: Lessee, nonce: NonceUse | None) -> bool:
        """Take a pending challenge of a pending authorization to processing; false where it is not pending."""

    async def claim_challenges(self, lessee: Lessee, limit: int, node: str | None = None) -> tuple[str, ...]:
        """Take over challenges in processing whose lease has run out, and those that processes of `node` hold."""

    async def record_attempt(self, challenge_id: str, lessee: Lessee, error: bytes) -> bool:
        """Keep what a failed attempt saw and prolong the lease; false where the lease was lost."""

    async def finish_challenge(
        self,
        challenge_id: str,
        holder: str,
        error: bytes | None,
        now: datetime,
        valid_until: datetime,
        events: Sequence[AuditEvent],
    ) -> bool:
        """Settle a challenge, its authorization, and the orders that waited for it: in one transaction.

        Without error the authorization is valid until `valid_until`, and orders all of whose authorizations are
        valid become ready; with one the authorization and its unfinished orders become invalid. False where the
        lease was lost or the challenge settled before.
        """

    async def begin_finalize(self, order_id: str, csr_der: bytes, lessee: Lessee, nonce: NonceUse | None) -> bool:
        """Take a ready order to processing with its CSR; false where it is not ready (any more)."""

    async def claim_orders(self, lessee: Lessee, limit: int, node: str | None = None) -> tuple[str, ...]:
        """Take over orders in processing without a certificate whose lease has run out, or that `node` holds."""

    async def prolong_order(self, order_id: str, lessee: Lessee) -> bool:
        """Prolong the lease on an order in processing; false where another holds it."""

    async def fail_order(self, order_id: str, error: bytes, events: Sequence[AuditEvent]) -> bool:
        """Make an order in processing invalid; false where it has a certificate or is not processing."""

    async def certificate_by_der(self, der: bytes) -> CertificateRecord | None:
        """The stored certificate that is byte for byte the one given."""

    async def valid_identifiers(self, account_id: str, now: datetime) -> frozenset[tuple[Identifier, bool]]:
        """Names that an account holds valid authorizations for, each with its wildcard flag."""

    async def spki_blocked(self, spki_sha256: bytes) -> bool:
        """Whether a public key is on the blocklist."""

    async def prune(self, nonces_before: datetime, limit: int) -> int:
        """Forget nonces that were issued before; returns how many."""


class ProfileSource(Protocol):
    """The profiles in force."""

    def get(self, name: str) -> Profile | None:
        """By name."""

    async def by_hash(self, content_hash: str) -> Profile | None:
        """By content hash, also those that were replaced."""

    def names(self) -> tuple[str, ...]:
        """Names in force."""
