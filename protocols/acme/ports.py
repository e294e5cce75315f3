"""What the ACME front-end needs of the database. Each method is one durable transaction.

`nonce` of a method is used up when it returns, whatever it returns: in the same transaction. NonceReplayedError, and
nothing done, where it was used before; where the method raises, nothing was done and the nonce is as it was. Events
given are committed with the change, and only if there was one. `draws` are taken with the change, and only if there
was one; RATE_LIMITED with the rule of the limit, and nothing done or taken, where one has no room. `account_id` is the
owner's of what is changed: what is done for one account is done by one process after the other.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ca_server.domain.accounts import Account, AccountRegistered, AccountStatus
from ca_server.domain.audit import AuditEvent
from ca_server.domain.bindings import EabKey
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.errors import CaError
from ca_server.domain.incidents import Incident
from ca_server.domain.names import Identifier
from ca_server.domain.profiles import Profile
from ca_server.domain.rates import Draw
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.model import Attempt, Authorization, Challenge, Order


class NonceReplayedError(Exception):
    """The nonce was used before."""


class AlreadyReplacedError(Exception):
    """Another order replaces the certificate, and has not failed."""


@dataclass(frozen=True, slots=True)
class NonceUse:
    """A nonce to use up; its use is remembered until it has expired."""

    nonce: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Agreement:
    """That an account agrees to the terms at a URL; None where there are none."""

    at: datetime
    terms_of_service: str | None


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """The account that has a key; `changed` is false where it had it before."""

    account: Account
    changed: bool


@dataclass(frozen=True, slots=True)
class Work:
    """A challenge or an order that this process may work on until its lease runs out."""

    id: str
    account_id: str
    attempt: int = 1
    """Which attempt at a challenge may be made now: it was counted when the lease was taken."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The external account key that let an account in, and why its quota has no room for a certificate now."""

    key: EabKey
    no_room: CaError | None


@dataclass(frozen=True, slots=True)
class OrderWork:
    """An order in processing with all that decides whether it may be issued, as seen at one moment."""

    order: Order
    account_status: AccountStatus
    authorizations: tuple[Authorization, ...]
    eab_kid: str | None
    """The external account key that let the account in."""
    key_blocked: bool
    """Whether the account's key is on the blocklist."""
    is_live: bool
    """Whether the core has a serial for it, and so is at work on it or died over it: it may yet get a certificate."""


@dataclass(frozen=True, slots=True)
class ChallengeWork:
    """A challenge in processing with what its validation needs; `thumbprint` is of the account's key.

    `former_thumbprints` are of the keys that it had before, where the challenge is dns-persist-01.
    """

    challenge: Challenge
    authorization: Authorization
    thumbprint: str
    former_thumbprints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lessee:
    """Who takes a lease, when, and for how long; a holder is called `node/process/instance`."""

    holder: str
    now: datetime
    duration: timedelta

    @property
    def until(self) -> datetime:
        """When the lease runs out."""
        return self.now + self.duration

    @property
    def earlier(self) -> str:
        """What begins the names of the holders that this one replaces: earlier runs of the same process."""
        return self.holder.rpartition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class OpenBounds:
    """How many unfinished orders an account may have, how many names they may have together, and what rates allow."""

    orders: int
    names: int
    draws: Sequence[Draw] = ()


@dataclass(frozen=True, slots=True)
class Reuse:
    """Which valid authorizations of an account its new orders may stand on: those validated at `since` or later.

    `subdomains`: of the domains above a name too, where they are for all names below them.
    """

    since: datetime | None = None
    """None: whenever it was."""
    subdomains: bool = False


ANY_VALID = Reuse()


class AcmeStore(Protocol):
    """Accounts, orders, authorizations, challenges and nonces."""

    async def consume_nonce(self, nonce: NonceUse) -> None:
        """Use a nonce up by itself."""

    async def record(self, events: Sequence[AuditEvent], nonce: NonceUse | None) -> None:
        """Commit events that record no change, such as refusals."""

    async def account(self, account_id: str) -> Account | None:
        """An account by id."""

    async def binding(self, account: Account, names: Sequence[Identifier], now: datetime) -> Binding | None:
        """What an account that an external account key let in is bound to; None, and nothing is read, where none did.

        `names` are those of the certificate that its quota should have room for; empty: it is not asked.
        """

    async def account_by_key(self, tenant: str, thumbprint: str) -> Account | None:
        """An account by the thumbprint of its key."""

    async def create_account(
        self, account: Account, events: Sequence[AuditEvent], nonce: NonceUse | None, draws: Sequence[Draw] = ()
    ) -> AccountRegistered:
        """Create an account, or return the one that its key has, unchanged and without draws."""

    async def update_account(
        self,
        account_id: str,
        contacts: tuple[str, ...] | None,
        agreement: Agreement | None,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Account:
        """Change what is not None of a valid account."""

    async def change_account_key(
        self, account: Account, new: Account, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> KeyHolder:
        """Give a valid account the key of `new` in place of the one in `account`, and nothing else.

        The thumbprint of the key that it had is remembered.

        The account that has the key is returned as it stands, also where it is this one. UNAUTHENTICATED where the
        account is not valid, or has another key than `account` says (any more).
        """

    async def deactivate_account(
        self, account_id: str, error: bytes, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> Account:
        """Deactivate an account and its authorizations; its orders without a certificate fail with `error`."""

    async def create_order(
        self,
        order: Order,
        candidates: Sequence[Authorization],
        bounds: OpenBounds,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
        reuse: Reuse | None = ANY_VALID,
        afresh: Collection[str] = (),
    ) -> Order:
        """Create an order. For each identifier a valid authorization of the account is reused, or its candidate made.

        A candidate may be that of several identifiers. `reuse` None: none is reused.

        Those whose ids are in `afresh` are created in any case.

        The order is ready at once where all are valid, and lives no longer than any that was reused. RATE_LIMITED
        where the account's unfinished ones are at the bounds. AlreadyReplacedError where another order replaces the
        same certificate, unless that one failed or expired without one.
        """

    async def create_authorization(
        self,
        candidate: Authorization,
        max_open: int,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
        reuse: Reuse = ANY_VALID,
        draws: Sequence[Draw] = (),
    ) -> Authorization:
        """The account's valid authorization for the name, or else the candidate, created (RFC 8555 section 7.4.1).

        One that stands is for all names below if the candidate is.

        RATE_LIMITED where the account has `max_open` pending ones that were created here.
        """

    async def order(self, order_id: str) -> Order | None:
        """An order with the ids of its authorizations and, once issued, its certificate."""

    async def order_work(self, order_id: str) -> OrderWork | None:
        """An order with what decides whether it may be issued."""

    async def orders_of(self, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
        """Ids of an account's orders, oldest first, after the id given."""

    async def authorization(self, authorization_id: str) -> Authorization | None:
        """An authorization with its challenges."""

    async def challenge(self, challenge_id: str) -> tuple[Challenge, Authorization] | None:
        """A challenge with its authorization."""

    async def challenge_work(self, challenge_id: str) -> ChallengeWork | None:
        """A challenge with what its validation needs; None where there is nothing to validate (any more)."""

    async def deactivate_authorization(
        self,
        account_id: str,
        authorization_id: str,
        error: bytes,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Authorization:
        """Deactivate a pending or valid authorization; its orders without a certificate fail with `error`."""

    async def begin_challenge(
        self,
        account_id: str,
        challenge_id: str,
        lessee: Lessee,
        max_processing: int,
        nonce: NonceUse | None,
        draws: Sequence[Draw] = (),
        response: bytes | None = None,
    ) -> bool:
        """Take a pending challenge of a pending authorization to processing, its first attempt counted.

        `response`, what the client sent to be looked at, is kept until the challenge is settled. Of several calls, by
        whatever processes, one is told True. False where it is not pending; RATE_LIMITED where the account has
        `max_processing` in processing.
        """

    async def claim_challenges(
        self, lessee: Lessee, limit: int, error: bytes, *, restarted: bool = False
    ) -> tuple[Work, ...]:
        """Take over challenges in processing whose lease ran out, the next attempt counted; accounts take turns.

        `restarted`: those that the holder's earlier runs had, too. Challenges whose authorization was settled or has
        expired are not worked on: they become invalid with `error`.
        """

    async def keep_challenges(self, lessee: Lessee, works: Sequence[Work]) -> frozenset[str]:
        """Prolong leases; returns the ids whose lease the holder still has."""

    async def record_attempt(
        self, account_id: str, challenge_id: str, lessee: Lessee, error: bytes, attempt: Attempt | None = None
    ) -> bool:
        """Keep what a failed attempt saw, count the next and prolong the lease; false where the lease was lost."""

    async def finish_challenge(
        self,
        work: ChallengeWork,
        holder: str,
        error: bytes | None,
        now: datetime,
        valid_until: datetime,
        events: Sequence[AuditEvent],
        draws: Sequence[Draw] = (),
        evidence: bytes | None = None,
        attempt: Attempt | None = None,
    ) -> bool:
        """Settle a challenge, its authorization, and the orders that waited for it: in one transaction.

        `draws` count a failure; they refuse nothing here. `evidence` is kept with the challenge, and so is `attempt`:
        the last one, where there was any.

        Without error the authorization is valid until `valid_until`, and orders all of whose authorizations are
        valid become ready; with one the authorization becomes invalid, and orders without a certificate fail with
        it. False, and nothing done, where the lease was lost, the challenge settled before, or the authorization can't
        become valid (any more).
        """

    async def begin_finalize(
        self,
        account_id: str,
        order_id: str,
        csr_der: bytes,
        lessee: Lessee,
        nonce: NonceUse | None,
        draws: Sequence[Draw] = (),
    ) -> bool:
        """Take a ready order to processing with its CSR; false where it is not ready (any more)."""

    async def claim_orders(self, lessee: Lessee, limit: int, *, restarted: bool = False) -> tuple[Work, ...]:
        """Take over orders in processing without a certificate whose lease has run out; `restarted` as above."""

    async def prolong_order(self, account_id: str, order_id: str, lessee: Lessee) -> bool:
        """Prolong the lease on an order in processing; false where another holds it."""

    async def fail_order(self, account_id: str, order_id: str, error: bytes, events: Sequence[AuditEvent]) -> bool:
        """Make an order in processing invalid; false where it has a certificate or is not processing."""

    async def caa_lookups(self, names: Sequence[str], since: datetime) -> Mapping[str, CaaLookup]:
        """What was looked up since then, by name; what is not there was not, or is forgotten."""

    async def save_caa(self, lookups: Sequence[CaaLookup], events: Sequence[AuditEvent]) -> None:
        """Keep lookups, each in place of an earlier one of its name."""

    async def prune_caa(self, before: datetime, limit: int) -> int:
        """Forget lookups made before; returns how many."""

    async def expired_orders(self, before: datetime, limit: int) -> tuple[str, ...]:
        """Orders that expired before, with all their authorizations, and that no certificate valid since needs."""

    async def forget_orders(self, order_ids: Sequence[str]) -> None:
        """Delete orders, with the authorizations and challenges that no other order has."""

    async def forget_preauthorizations(self, before: datetime, limit: int) -> int:
        """Delete what `create_authorization` made, that expired before and that no order has; returns how many."""

    async def certificate_by_der(self, der: bytes) -> CertificateRecord | None:
        """The stored certificate that is byte for byte the one given."""

    async def certificates_by_serial(self, serial: str) -> tuple[CertificateRecord, ...]:
        """The stored certificates of a serial number: one of each issuer that ever drew it."""

    async def incident_of(self, record: CertificateRecord) -> Incident | None:
        """The oldest incident under way that names a certificate issued before it, without its targets."""

    async def valid_identifiers(self, account_id: str, now: datetime) -> frozenset[tuple[Identifier, bool, bool]]:
        """Names that an account has valid authorizations for: whether for the wildcard, whether for all names below."""

    async def spki_blocked(self, spki_sha256: bytes) -> bool:
        """Whether a public key is on the blocklist."""

    async def prune(self, before: datetime, limit: int) -> int:
        """Forget nonces that expired before; returns how many."""

    async def prune_limits(self, before: datetime, limit: int) -> int:
        """Forget what no limit needs since then; returns how many keys."""


class ProfileSource(Protocol):
    """The profiles in force."""

    def get(self, name: str) -> Profile | None:
        """By name."""

    async def by_hash(self, content_hash: str) -> Profile | None:
        """By content hash, also those that were replaced."""

    def names(self) -> tuple[str, ...]:
        """Names in force."""
