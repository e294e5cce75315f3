"""The core's ports: what it offers to front-ends and operators, and what it needs from token and database.

Docstrings here are contracts. Each method of a store port is one durable transaction: when it returns, all it did
is committed together with the audit events given to it; when it raises, nothing is. Cancelling a caller does not
cancel a transaction that was queued. All times are aware UTC datetimes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.audit import AuditEvent, Checkpoint, EventType
from ca_server.domain.bindings import NO_POLICY, EabKey, EabPolicy
from ca_server.domain.certificates import (
    BlockedKey,
    CaCertificate,
    CertificateRecord,
    Crl,
    IssuedCertificate,
    Issuer,
    IssuerKey,
    RevocationRequest,
    RevokedCertificate,
    RevokedEntry,
    SerialStatus,
)
from ca_server.domain.enrollment import (
    EnrollmentKey,
    EnrollmentOutcome,
    EnrollmentRequest,
    Fence,
    IssuanceIntent,
)
from ca_server.domain.incidents import Incident, Target
from ca_server.domain.keys import KeyAlgorithm

# --- What the core offers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OcspQuery:
    """A DER OCSPRequest (RFC 6960 section 4.1) as it came in."""

    request_der: bytes
    source: str | None = None


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """A DER OCSPResponse; times and serial are None for error statuses. `cacheable` is false with a nonce."""

    response_der: bytes
    cacheable: bool
    this_update: datetime | None = None
    next_update: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """A front-end introduces itself; `version` is the port's version."""

    process: str
    version: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """What every front needs to work: the key under which all nodes make and check nonces (32 bytes)."""

    node: str
    nonce_key: bytes
    configuration: str
    staging: bool = False
    """Whether this is a staging CA, by the setting and by its issuers' certificates."""
    staging_issuers: tuple[str, ...] = ()
    """Issuers whose certificates say staging, in whatever home."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask how the core is."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the core is: empty `problems` means ready."""

    problems: tuple[str, ...]
    audit_lag_seconds: float
    token_ok: bool
    database_ok: bool
    crls_fresh: bool
    read_only: bool = False
    """Whether nothing may be changed until an operator has acted."""


class CorePort(Protocol):
    """What a front process may ask of the core: in-process or over the core's Unix socket.

    Every method raises CaError, and UNAVAILABLE (retryable) where core, token or database are away. `issue`,
    `revoke` and `register_account` are idempotent: after a lost answer, ask again with the same argument.
    """

    async def hello(self, hello: Hello) -> Welcome:
        """Introduce a front; UNAVAILABLE while the core is starting."""

    async def ping(self, ping: Ping) -> Health:
        """Tell how core, token and database are."""

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        """Issue, or find what was issued for the same enrollment key. Returns only what is committed.

        PENDING_APPROVAL where policy holds; BAD_CSR, BAD_PUBLIC_KEY, REJECTED_IDENTIFIER, POLICY_DENIED with
        `rule` where it refuses; the refusal is on record.
        """

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        """Revoke; committed, and shown by OCSP, when this returns. ALREADY_REVOKED, NOT_FOUND,
        BAD_REVOCATION_REASON.
        """

    async def respond_ocsp(self, query: OcspQuery) -> OcspAnswer:
        """Answer an OCSP request; malformed requests get a malformedRequest response, never an exception."""

    async def register_account(self, registration: AccountRegistration) -> AccountRegistered:
        """Check an external account binding, use the key up and create the account in one transaction.

        BAD_BINDING where kid, MAC, expiry or profile are not right, without telling which.
        """


@dataclass(frozen=True, slots=True)
class PublishCrl:
    """Sign and publish a new CRL of an issuer now."""

    issuer: str


@dataclass(frozen=True, slots=True)
class CreateEab:
    """Make an external account key, for one account where it is not reusable."""

    policy: EabPolicy = NO_POLICY
    owner: str | None = None
    reusable: bool = False
    lifetime_seconds: float | None = None
    max_uses: int | None = None


@dataclass(frozen=True, slots=True)
class CreatedEab:
    """A new external account key; `hmac_key` (base64url) is told this once and never again."""

    key: EabKey
    hmac_key: str


@dataclass(frozen=True, slots=True)
class UpdateEab:
    """What an external account key is to be bound to from now on: all of it."""

    kid: str
    policy: EabPolicy
    owner: str | None
    expires_at: datetime | None
    max_uses: int | None


@dataclass(frozen=True, slots=True)
class DisableEab:
    """Disable an external account key: it lets nobody in any more. `and_accounts` revokes those that it let in."""

    kid: str
    and_accounts: bool = False


@dataclass(frozen=True, slots=True)
class RevokeAccount:
    """Let an ACME account do nothing any more."""

    account_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Certify a public key no more; `spki_sha256` are 32 octets."""

    spki_sha256: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class UnblockKey:
    """Certify a public key again."""

    spki_sha256: bytes


@dataclass(frozen=True, slots=True)
class ResetLimit:
    """Give a key of a rate limit back what was taken from it."""

    key: str


@dataclass(frozen=True, slots=True)
class SignIssuerCsr:
    """Sign a CSR for an issuer's key, for another CA to certify it too."""

    issuer: str


@dataclass(frozen=True, slots=True)
class IssuerCsr:
    """A CSR (RFC 2986) in DER."""

    der: bytes


@dataclass(frozen=True, slots=True)
class ImportCrossCertificate:
    """Add a CA certificate to a key that an issuer has; `chain` is what is above it, nearest first, root last.

    Empty: one of our own issuers signed it, or it signed itself.
    """

    issuer: str
    certificate_der: bytes
    chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class CrossCertificate:
    """What was added: for which key of the issuer, and by whom it is signed."""

    issuer: str
    generation: int
    sha256: str
    signed_by: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CreateIncident:
    """Have clients renew, from now on, the certificates issued so far that any target names."""

    reason: str
    targets: tuple[Target, ...]
    explanation_url: str = ""


@dataclass(frozen=True, slots=True)
class EndIncident:
    """End an incident."""

    id: str


@dataclass(frozen=True, slots=True)
class Done:
    """Whether anything was changed."""

    changed: bool


@dataclass(frozen=True, slots=True)
class Reload:
    """Read the profiles again."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Names of the profiles that changed."""

    profiles: tuple[str, ...]


class AdminPort(Protocol):
    """What an operator may ask of the core, through its admin socket or offline; the peer's uid is the actor."""

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        """Revoke as an operator. The reason REMOVE_FROM_CRL releases from hold; BAD_REVOCATION_REASON without one."""

    async def publish_crl(self, request: PublishCrl) -> Crl:
        """Sign and publish a CRL now. NOT_FOUND."""

    async def create_eab(self, request: CreateEab) -> CreatedEab:
        """Make an external account key. NOT_FOUND where a profile does not exist; MALFORMED."""

    async def update_eab(self, request: UpdateEab) -> EabKey:
        """Change what an external account key is bound to. NOT_FOUND, MALFORMED."""

    async def disable_eab(self, request: DisableEab) -> Done:
        """Disable an external account key. What was begun is gone on with where it is asked for again."""

    async def revoke_account(self, request: RevokeAccount) -> Done:
        """Revoke an ACME account; nothing changes where there is none that is valid. MALFORMED without a reason."""

    async def block_key(self, request: BlockKey) -> Done:
        """Put a public key on the blocklist. MALFORMED where the hash has not 32 octets."""

    async def unblock_key(self, request: UnblockKey) -> Done:
        """Take a public key off the blocklist."""

    async def reset_limit(self, request: ResetLimit) -> Done:
        """Give a key of a rate limit back what was taken from it."""

    async def sign_issuer_csr(self, request: SignIssuerCsr) -> IssuerCsr:
        """Sign a CSR for an issuer's newest key. NOT_FOUND."""

    async def import_cross_certificate(self, request: ImportCrossCertificate) -> CrossCertificate:
        """Add a CA certificate to a key of an issuer: another chain to offer, nothing else changes.

        NOT_FOUND, MALFORMED; CONFLICT where it is there.
        """

    async def create_incident(self, request: CreateIncident) -> Incident:
        """Begin an incident. MALFORMED; NOT_FOUND where there is no such issuer or key."""

    async def end_incident(self, request: EndIncident) -> Done:
        """End an incident."""

    async def reload(self, request: Reload) -> Reloaded:
        """Read the profiles again; the old ones stay where the new are wrong (MALFORMED says why)."""

    async def ping(self, ping: Ping) -> Health:
        """Tell how core, token and database are."""


# --- The token ----------------------------------------------------------------------------------------------------


class SigningKey(Protocol):
    """A private key in the token."""

    label: str
    algorithm: KeyAlgorithm
    spki_der: bytes
    """Public key as a DER SubjectPublicKeyInfo."""

    async def sign(self, data: bytes) -> bytes:
        """Hash and sign `data`; return the signature as X.509 carries it.

        ECDSA: DER ECDSA-Sig-Value with SHA-256 (P-256), SHA-384 (P-384), SHA-512 (P-521); RSA: PKCS#1 v1.5 with
        SHA-256; Ed25519: the 64 raw bytes. Never blocks the event loop. UNAVAILABLE when the token is away.
        """


class KeyStore(Protocol):
    """Keys in the token, by label. Exactly one private key must match a label."""

    async def generate(self, label: str, algorithm: KeyAlgorithm) -> SigningKey:
        """Generate in the token: sensitive, non-extractable. CONFLICT where the label is taken."""

    async def find(self, label: str) -> SigningKey:
        """Open a key by label. NOT_FOUND, or CONFLICT where more than one matches."""

    async def delete(self, label: str) -> bool:
        """Destroy a key pair by label; false where there is none."""

    async def labels(self) -> tuple[str, ...]:
        """Labels of all private keys in the token."""

    async def ensure_secret_key(self, label: str) -> bool:
        """Make sure that an AES-256 key of this label is in the token, non-extractable; true where it was made."""

    async def encrypt(self, label: str, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt authentically under the AES key `label`; `context` must be given again to decrypt."""

    async def decrypt(self, label: str, ciphertext: bytes, context: bytes) -> bytes:
        """Undo `encrypt`. MALFORMED where ciphertext or context were changed."""

    async def random(self, length: int) -> bytes:
        """Random bytes from the token."""

    async def probe(self) -> None:
        """Check that the token is there, logged in, and that its keys are; recover where possible.

        UNAVAILABLE with the reason where it is not.
        """

    def uses(self) -> dict[str, int]:
        """Signatures, by key label, that this process has asked of the token since it started."""

    async def close(self) -> None:
        """Log out and release the module."""


# --- The database -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnrollmentState:
    """Where an enrollment stands: `certificate` for ISSUED, `intent` for LIVE."""

    outcome: EnrollmentOutcome
    csr_sha256: bytes | None = None
    certificate: IssuedCertificate | None = None
    intent: IssuanceIntent | None = None


@dataclass(frozen=True, slots=True)
class EabClaim:
    """The external account key that an account is said to be bound by (empty: none), and the names that it asks for."""

    kid: str = ""
    names: tuple[str, ...] = ()


NO_CLAIM: Final = EabClaim()


class IssuanceStore(Protocol):
    """Enrollments, intents and certificates."""

    async def enrollment(self, key: EnrollmentKey) -> EnrollmentState:
        """Where an enrollment stands."""

    async def reserve(
        self,
        intent: IssuanceIntent,
        csr_sha256: bytes,
        events: Sequence[AuditEvent],
        *,
        spki_sha256: bytes | None = None,
        claim: EabClaim = NO_CLAIM,
    ) -> None:
        """Transaction 1: create the enrollment if new, and its one live intent; take it from the quota of its key.

        CONFLICT where the enrollment has a live intent or a certificate, where it began with another CSR, where
        the serial was ever used under that issuer, or where the fence's boot epoch is not the node's current one;
        BAD_PUBLIC_KEY where the public key of that hash is on the blocklist; UNAUTHORIZED where the account is bound
        by another external account key than `claim` says, or by none; RATE_LIMITED with a rule of
        `ca_server.domain.bindings.QUOTA_RULES` where that key's quota has no room.
        An enrollment is taken from the rate once, whatever becomes of its attempts.
        """

    async def complete(
        self, intent_id: str, fence: Fence, record: CertificateRecord, events: Sequence[AuditEvent]
    ) -> None:
        """Transaction 2: settle the intent as issued and store the certificate.

        CONFLICT where the intent is no longer live under this fence.
        """

    async def abandon(self, intent_id: str, reason: str, events: Sequence[AuditEvent]) -> bool:
        """Settle a live intent without a certificate; its serial is never used again. False where it was settled."""

    async def live_intents(self, node: str, before_epoch: int) -> tuple[IssuanceIntent, ...]:
        """Intents of earlier boots of `node` that are not settled."""

    async def orphaned_intents(self, now: datetime) -> tuple[IssuanceIntent, ...]:
        """Unsettled intents of other nodes whose lease has run out."""

    async def certificate(self, issuer: str, serial: str) -> CertificateRecord | None:
        """A stored certificate by issuer and serial."""

    async def serial_status(self, issuer: str, serial: str) -> SerialStatus:
        """The status of a serial, reserved and abandoned ones included."""

    async def sample_certificates(self, since: datetime, limit: int) -> tuple[CertificateRecord, ...]:
        """At most `limit` certificates issued since `since`, chosen at random."""

    async def certificates_of(self, protocol: str, requester_id: str, now: datetime) -> tuple[CertificateRecord, ...]:
        """Certificates of one requester that are neither expired nor revoked, newest first; at most 100."""

    async def blocked_keys(self) -> tuple[BlockedKey, ...]:
        """The blocklist, newest first."""

    async def block_spki(self, key: BlockedKey, events: Sequence[AuditEvent]) -> bool:
        """Put a public key on the blocklist; false (and no events) where it was there."""

    async def unblock_spki(self, spki_sha256: bytes, events: Sequence[AuditEvent]) -> bool:
        """Take a public key off the blocklist; false (and no events) where it was not there."""


class RevocationStore(Protocol):
    """Revocation and CRLs."""

    async def revoke(self, entry: RevokedEntry, issuer: str, events: Sequence[AuditEvent]) -> RevokedEntry | None:
        """Revoke a stored certificate; None when done, or the entry that stood before, unchanged.

        A certificate that is revoked is changed only to KEY_COMPROMISE, or out of a hold. REMOVE_FROM_CRL lifts a
        hold, and is BAD_REVOCATION_REASON for a certificate that is not revoked. NOT_FOUND.
        """

    async def reserve_crl(self, issuer: str, issuer_key_id: int, partition: int, events: Sequence[AuditEvent]) -> int:
        """Draw the next CRL number of (issuer key, partition): strictly greater than every one drawn before."""

    async def revoked_entries(self, issuer: str, issuer_key_id: int, now: datetime) -> tuple[RevokedEntry, ...]:
        """Entries for a full CRL: revoked and not expired, or expired and not yet on a CRL since."""

    async def has_unlisted(self, issuer_key_id: int, partition: int = 0) -> bool:
        """Whether a revocation or the end of a hold was committed that the newest CRL does not surely show."""

    async def publish_crl(self, crl: Crl, events: Sequence[AuditEvent]) -> bool:
        """Store a signed CRL; false (and nothing stored) where one with a higher number stands."""

    async def latest_crl(self, issuer: str, issuer_key_id: int | None = None, partition: int = 0) -> Crl | None:
        """The CRL with the highest number; of the newest key where `issuer_key_id` is None."""


class IssuerStore(Protocol):
    """Issuers, their keys and CA certificates: three tables."""

    async def create_issuer(
        self, issuer: Issuer, record: CertificateRecord | None, events: Sequence[AuditEvent]
    ) -> Issuer:
        """Create issuer, key and CA certificate; ids are given by the store. CONFLICT where the name is taken.

        `record` is the CA certificate as issued by its parent (or itself), to be stored with the certificates.
        """

    async def issuers(self) -> tuple[Issuer, ...]:
        """All issuers with their active keys."""

    async def issuer_keys(self, issuer: str) -> tuple[IssuerKey, ...]:
        """All key generations of an issuer, newest first."""

    async def ca_certificates(self) -> tuple[CaCertificate, ...]:
        """All CA certificates of all keys."""

    async def add_ca_certificate(self, certificate: CaCertificate, events: Sequence[AuditEvent]) -> None:
        """Add a CA certificate to a key, whose preferred one stays. CONFLICT where it is there, for whatever key."""


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A profile body; `superseded_at` says since when another (or none) is in force under its name, None if it is."""

    name: str
    content_hash: str
    body: bytes
    superseded_at: datetime | None = None


class ProfileStore(Protocol):
    """Profile bodies by content hash, and which of them are in force."""

    async def profiles_in_force(self) -> dict[str, str]:
        """Content hashes by name of what is in force."""

    async def put_in_force(
        self,
        profiles: Sequence[StoredProfile],
        expected: Mapping[str, str],
        now: datetime,
        events: Sequence[AuditEvent],
    ) -> None:
        """Put these profiles in force and no others. CONFLICT where what is in force is not what was expected."""

    async def profile_body(self, content_hash: str) -> StoredProfile | None:
        """A profile by content hash."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A named right that one process holds until `expires_at`; `fence` grows with every new holder."""

    name: str
    holder: str
    expires_at: datetime
    fence: int


class CoordinationStore(Protocol):
    """Nodes, boot epochs, leases and secrets shared by all nodes."""

    async def begin_boot(self, node: str, holder: str, now: datetime, lease: timedelta) -> Fence:
        """Register a start of `node`: its boot epoch grows, which fences off its earlier processes.

        `holder` names the home that the node's name belongs to. CONFLICT while another holds it whose lease runs.
        """

    async def end_boot(self, fence: Fence, now: datetime) -> None:
        """Let the node's lease end: its work is anybody's to take over."""

    async def heartbeat(self, fence: Fence, now: datetime, lease: timedelta) -> bool:
        """Prolong the node's lease; false where a newer boot of the node exists."""

    async def acquire_lease(
        self, name: str, holder: str, now: datetime, duration: timedelta, *, node: str | None = None
    ) -> Lease | None:
        """Take or prolong a lease; None where another holds it and it has not run out.

        With `node`, what a holder of the name `NODE/...` had is taken at once: an earlier boot, which was fenced off.
        """

    async def release_lease(self, lease: Lease) -> None:
        """Give a lease back."""

    async def secret(self, name: str) -> bytes | None:
        """An encrypted secret by name."""

    async def save_secret(self, name: str, ciphertext: bytes) -> bytes:
        """Save an encrypted secret if there is none; return the one that stands."""


class EabStore(Protocol):
    """External account keys."""

    async def create_eab(self, key: EabKey, ciphertext: bytes, events: Sequence[AuditEvent]) -> None:
        """Save a key with its encrypted HMAC secret."""

    async def eab(self, kid: str) -> tuple[EabKey, bytes] | None:
        """A key with its encrypted secret."""

    async def bound_key(self, kid: str) -> EabKey | None:
        """A key without its secret: found by an index, at once."""

    async def eab_keys(self) -> tuple[EabKey, ...]:
        """All keys, newest first."""

    async def update_eab(self, key: EabKey, events: Sequence[AuditEvent]) -> None:
        """Change owner, end, number of uses and policy of a key. NOT_FOUND."""

    async def disable_eab(
        self, kid: str, now: datetime, events: Sequence[AuditEvent], *, and_accounts: bool = False
    ) -> bool:
        """Disable a key, with its accounts; false (and no events) where there is none or both were done before."""

    async def valid_accounts(self, kid: str, limit: int) -> tuple[str, ...]:
        """Ids of valid accounts that a key let in, at most `limit`."""

    async def revoke_accounts(self, account_ids: Sequence[str], events: Sequence[AuditEvent]) -> int:
        """Revoke accounts that are valid; how many were. The events only where any was."""

    async def bind_account(
        self, registration: AccountRegistration, now: datetime, events: Sequence[AuditEvent]
    ) -> AccountRegistered:
        """Use the key up and create the account. BAD_BINDING where the key can't be used (any more).

        RATE_LIMITED where one of its draws has no room. An account with the same key thumbprint is returned as it
        stands, and nothing is used up or recorded.
        """


class LimitStore(Protocol):
    """Rate limits."""

    async def reset_limit(self, key: str, now: datetime, events: Sequence[AuditEvent]) -> bool:
        """Give a key its whole burst back; false (and no events) where nothing is taken from it."""


class IncidentStore(Protocol):
    """Incidents."""

    async def create_incident(self, incident: Incident, events: Sequence[AuditEvent]) -> None:
        """Save an incident. NOT_FOUND where there is no such issuer or key."""

    async def end_incident(self, incident_id: str, now: datetime, events: Sequence[AuditEvent]) -> bool:
        """End an incident; false (and no events) where there is none of that id, or it has ended."""

    async def incidents(self) -> tuple[Incident, ...]:
        """All incidents, newest first."""


class AuditStore(Protocol):
    """Events, leaves and checkpoints."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Commit events that record no other change, such as refusals."""

    async def unfinished(self, begun: EventType, ended: Sequence[EventType]) -> tuple[tuple[str, str], ...]:
        """(Serial, issuer) of events of one type that none of the other types followed for the same serial."""

    async def pending(self, limit: int) -> tuple[tuple[str, bytes], ...]:
        """Committed events without a leaf, in the order of their commit: (event id, canonical leaf bytes)."""

    async def latest_checkpoint(self) -> tuple[Checkpoint, bytes] | None:
        """The last checkpoint with the tree's state as saved with it."""

    async def checkpoint_at(self, size: int) -> tuple[Checkpoint, bytes] | None:
        """The checkpoint of exactly this size with the tree's state, if there is one."""

    async def leaf_hashes(self, first_index: int, limit: int) -> tuple[bytes, ...]:
        """Hashes of at most `limit` leaves from `first_index` on; fewer only where an index is missing."""

    async def seal(
        self,
        lease: Lease,
        leaves: Sequence[tuple[str, bytes]],
        first_index: int,
        checkpoint: Checkpoint,
        state: bytes,
    ) -> None:
        """Give events (id, leaf hash) their leaf indexes from `first_index` on, and commit the checkpoint.

        CONFLICT where the lease's fence is not the newest or the tree does not end at `first_index`.
        """
