"""Enrollments, intents, certificates and blocked keys: what the pipeline reads and writes."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, and_, bindparam, delete, select, update

from ca_server.core.ports import NO_CLAIM, EabClaim, EnrollmentState
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import BlockedKey, CertificateRecord, SerialStatus
from ca_server.domain.enrollment import (
    EnrollmentKey,
    EnrollmentOutcome,
    Fence,
    IssuanceIntent,
    Protocol,
)
from ca_server.store.audit import insert_events
from ca_server.store.certificates import (
    BLOCKLIST_LOCK,
    IS_CHAIN,
    IS_ENROLLMENT,
    ISSUED_COLUMNS,
    certificate_by_serial,
    certificates_by_spki,
    certificates_of_requester,
    enrollment_parameters,
    insert_blocked,
    issued_of,
    sample_certificates,
    serial_status,
)
from ca_server.store.database import Database
from ca_server.store.eab_quota import eab_lock
from ca_server.store.intents import COMPLETE, FIND_ENROLLMENT, RESERVE, Completion, Reservation
from ca_server.store.statements import Prepared, is_literally
from ca_server.store.tables import (
    ca_certificates,
    certificates,
    enrollments,
    intents,
    issuers,
    nodes,
    spki_blocklist,
)
from ca_server.store.types import AnyRow

_INTENT_COLUMNS = (
    intents.c.id.label("intent_id"),
    intents.c.issuer_key_id.label("intent_issuer_key_id"),
    intents.c.serial.label("intent_serial"),
    intents.c.tbs_sha256,
    intents.c.profile.label("intent_profile"),
    intents.c.profile_hash.label("intent_profile_hash"),
    intents.c.node,
    intents.c.boot_epoch,
    intents.c.reserved_at,
    intents.c.tenant.label("intent_tenant"),
    enrollments.c.protocol,
    enrollments.c.profile.label("enrollment_profile"),
    enrollments.c.requester_scope,
    enrollments.c.transaction_key,
    enrollments.c.epoch,
    enrollments.c.tenant.label("enrollment_tenant"),
)

_intent_issuers = issuers.alias("intent_issuers")

# One statement, so that certificate and intent are seen at one moment under READ COMMITTED too.
_ENROLLMENT = Prepared(
    select(
        enrollments.c.csr_sha256,
        certificates.c.id.label("certificate_id"),
        *ISSUED_COLUMNS,
        _intent_issuers.c.name.label("intent_issuer"),
        *_INTENT_COLUMNS,
    )
    .select_from(enrollments)
    .outerjoin(certificates, certificates.c.enrollment_id == enrollments.c.id)
    .outerjoin(issuers, issuers.c.id == certificates.c.issuer_id)
    .outerjoin(ca_certificates, IS_CHAIN)
    .outerjoin(intents, and_(intents.c.enrollment_id == enrollments.c.id, is_literally(intents.c.state, "reserved")))
    .outerjoin(_intent_issuers, _intent_issuers.c.id == intents.c.issuer_id)
    .where(IS_ENROLLMENT)
)

_LIVE_INTENTS = (
    select(_intent_issuers.c.name.label("intent_issuer"), *_INTENT_COLUMNS)
    .join_from(intents, enrollments, enrollments.c.id == intents.c.enrollment_id)
    .join(_intent_issuers, _intent_issuers.c.id == intents.c.issuer_id)
    .where(is_literally(intents.c.state, "reserved"))
    .order_by(intents.c.reserved_at, intents.c.id)
)
_INTENTS_OF_NODE = _LIVE_INTENTS.where(
    intents.c.node == bindparam("of_node"), intents.c.boot_epoch < bindparam("before_epoch")
)
_ORPHANED_INTENTS = _LIVE_INTENTS.join(nodes, nodes.c.node == intents.c.node).where(
    nodes.c.lease_expires < bindparam("now")
)

_SETTLE_ABANDONED = (
    update(intents)
    .where(intents.c.id == bindparam("intent_id"), intents.c.state == "reserved")
    .values(state="abandoned", settled_at=bindparam("at"), reason=bindparam("why"))
)
_BLOCKED = Prepared(
    select(spki_blocklist.c.spki_sha256).where(spki_blocklist.c.spki_sha256 == bindparam("spki_sha256"))
)
_BLOCKLIST = select(spki_blocklist.c.spki_sha256, spki_blocklist.c.reason, spki_blocklist.c.added_at).order_by(
    spki_blocklist.c.added_at.desc(), spki_blocklist.c.spki_sha256
)
_UNBLOCK = delete(spki_blocklist).where(spki_blocklist.c.spki_sha256 == bindparam("spki_sha256"))


class SqlIssuanceStore:
    """`ca_server.core.ports.IssuanceStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enrollment(self, key: EnrollmentKey) -> EnrollmentState:
        return await self._database.glance(lambda connection: read_enrollment(connection, key), one_moment=False)

    async def reserve(
        self,
        intent: IssuanceIntent,
        csr_sha256: bytes,
        events: Sequence[AuditEvent],
        *,
        spki_sha256: bytes | None = None,
        claim: EabClaim = NO_CLAIM,
    ) -> None:
        lock = f"enrollment:{intent.enrollment.transaction_key}"
        locks = (lock, eab_lock(claim.kid)) if claim.kid else (lock,)
        reservation = Reservation(intent, csr_sha256, events, spki_sha256, claim)
        await self._database.write_in_bulk(RESERVE, reservation, locks=locks)

    async def complete(
        self, intent_id: str, fence: Fence, record: CertificateRecord, events: Sequence[AuditEvent]
    ) -> None:
        await self._database.write_in_bulk(COMPLETE, Completion(intent_id, fence, record, events))

    async def abandon(self, intent_id: str, reason: str, events: Sequence[AuditEvent]) -> bool:
        at = datetime.now(UTC)

        def unit(connection: Connection) -> bool:
            settled = connection.execute(_SETTLE_ABANDONED, {"intent_id": intent_id, "at": at, "why": reason})
            if settled.rowcount == 0:
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit)

    async def live_intents(self, node: str, before_epoch: int) -> tuple[IssuanceIntent, ...]:
        parameters = {"of_node": node, "before_epoch": before_epoch}
        return await self._database.read(
            lambda connection: tuple(map(_intent_of, connection.execute(_INTENTS_OF_NODE, parameters)))
        )

    async def orphaned_intents(self, now: datetime) -> tuple[IssuanceIntent, ...]:
        return await self._database.read(
            lambda connection: tuple(map(_intent_of, connection.execute(_ORPHANED_INTENTS, {"now": now})))
        )

    async def certificate(self, issuer: str, serial: str) -> CertificateRecord | None:
        return await self._database.read(lambda connection: certificate_by_serial(connection, issuer, serial))

    async def certificates_by_spki(self, spki_sha256: bytes) -> tuple[CertificateRecord, ...]:
        """All certificates of a public key, whoever issued them, oldest first."""
        return await self._database.read(lambda connection: certificates_by_spki(connection, spki_sha256))

    async def serial_status(self, issuer: str, serial: str) -> SerialStatus:
        return await self._database.read(lambda connection: serial_status(connection, issuer, serial))

    async def sample_certificates(self, since: datetime, limit: int) -> tuple[CertificateRecord, ...]:
        return await self._database.read(lambda connection: sample_certificates(connection, since, limit))

    async def certificates_of(self, protocol: str, requester_id: str, now: datetime) -> tuple[CertificateRecord, ...]:
        return await self._database.read(
            lambda connection: certificates_of_requester(connection, protocol, requester_id, now)
        )

    async def blocked_keys(self) -> tuple[BlockedKey, ...]:
        return await self._database.read(
            lambda connection: tuple(BlockedKey(*row) for row in connection.execute(_BLOCKLIST))
        )

    async def block_spki(self, key: BlockedKey, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if not insert_blocked(connection, key):
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit, locks=(BLOCKLIST_LOCK,))

    async def unblock_spki(self, spki_sha256: bytes, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if connection.execute(_UNBLOCK, {"spki_sha256": spki_sha256}).rowcount == 0:
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit, locks=(BLOCKLIST_LOCK,))


def read_spki_blocked(connection: Connection, spki_sha256: bytes) -> bool:
    """Whether a public key is on the blocklist, on a connection."""
    return _BLOCKED.execute(connection, {"spki_sha256": spki_sha256}).first() is not None


def read_enrollment(connection: Connection, key: EnrollmentKey) -> EnrollmentState:
    """Where an enrollment stands, on a connection."""
    parameters = enrollment_parameters(key)
    # Most are new: one index tells that for a tenth of what the joins cost. The second statement stands for itself.
    if FIND_ENROLLMENT.execute(connection, parameters).first() is None:
        return EnrollmentState(EnrollmentOutcome.NONE)
    row = _ENROLLMENT.execute(connection, parameters).first()
    if row is None:
        return EnrollmentState(EnrollmentOutcome.NONE)
    if row.certificate_id is not None:
        return EnrollmentState(EnrollmentOutcome.ISSUED, row.csr_sha256, certificate=issued_of(row))
    if row.intent_id is not None:
        return EnrollmentState(EnrollmentOutcome.LIVE, row.csr_sha256, intent=_intent_of(row))
    return EnrollmentState(EnrollmentOutcome.NONE, row.csr_sha256)


def _intent_of(row: AnyRow) -> IssuanceIntent:
    return IssuanceIntent(
        id=row.intent_id,
        enrollment=EnrollmentKey(
            Protocol(row.protocol),
            row.enrollment_profile,
            row.requester_scope,
            row.transaction_key,
            row.epoch,
            row.enrollment_tenant,
        ),
        issuer=row.intent_issuer,
        issuer_key_id=row.intent_issuer_key_id,
        serial=row.intent_serial,
        tbs_sha256=row.tbs_sha256,
        profile=row.intent_profile,
        profile_hash=row.intent_profile_hash,
        fence=Fence(row.node, row.boot_epoch),
        reserved_at=row.reserved_at,
        tenant=row.intent_tenant,
    )
