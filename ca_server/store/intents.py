"""The two transactions of the pipeline, each for all the enrollments that wait for it at one moment.

What must never happen is excluded by constraints, and by the fence:

- one live intent for each enrollment (partial unique index), and one certificate (unique);
- a serial once under an issuer, whatever became of it (unique over intents of every state, and over certificates);
- a process that was replaced by a newer boot of its node reserves and completes nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Connection,
    LargeBinary,
    String,
    and_,
    bindparam,
    cast,
    false,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from ca_server.core.keycheck import blocked_key
from ca_server.core.ports import NO_CLAIM, EabClaim
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.enrollment import EnrollmentKey, Fence, IssuanceIntent, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme_tables import acme_accounts
from ca_server.store.audit_insert import insert_events
from ca_server.store.certificates import IS_ENROLLMENT, NewCertificate, enrollment_parameters, insert_certificates
from ca_server.store.database import Bulk
from ca_server.store.eab_quota import take
from ca_server.store.rows import PreparedRows, in_row, insert_rows, insert_rows_or_ignore
from ca_server.store.statements import Prepared
from ca_server.store.tables import (
    certificates,
    eab_keys,
    enrollments,
    intents,
    issuer_keys,
    issuers,
    nodes,
    spki_blocklist,
)

FIND_ENROLLMENT: Final = Prepared(select(enrollments.c.id, enrollments.c.csr_sha256).where(IS_ENROLLMENT))
"""With `enrollment_parameters`: the id of an enrollment, and its CSR's hash."""
_HAS_CERTIFICATE = select(certificates.c.id).where(certificates.c.enrollment_id == bindparam("enrollment_id"))
_ENROLLMENT_COLUMNS = tuple(column.name for column in enrollments.columns if column.name != "id")
_KEY_COLUMNS = ("tenant", "protocol", "profile", "requester_scope", "transaction_key", "epoch")
_INSERT_ENROLLMENTS = insert_rows_or_ignore(
    enrollments,
    _ENROLLMENT_COLUMNS,
    returning=(enrollments.c.id, *(enrollments.c[name] for name in _KEY_COLUMNS)),
)
# FOR SHARE: no newer boot of the node begins until this transaction ends. SQLite has one writer, and ignores it.
_FENCE_AND_KEY = Prepared(
    select(nodes.c.boot_epoch, issuer_keys.c.issuer_id)
    .select_from(nodes)
    .outerjoin(
        issuer_keys,
        and_(
            issuer_keys.c.id == bindparam("key_id"),
            issuer_keys.c.issuer_id
            == select(issuers.c.id).where(issuers.c.name == bindparam("issuer")).scalar_subquery(),
        ),
    )
    .where(nodes.c.node == bindparam("of_node"))
    .with_for_update(read=True, of=nodes)
)
_INSERT_INTENTS = insert_rows(
    intents, tuple(column.name for column in intents.columns if column.name not in {"settled_at", "reason"})
)
_TAKEN = PreparedRows(
    lambda count: select(certificates.c.id).where(
        or_(
            *(
                and_(
                    certificates.c.serial == in_row("serial", number, certificates.c.serial),
                    certificates.c.issuer_id == in_row("issuer_id", number, certificates.c.issuer_id),
                )
                for number in range(count)
            )
        )
    ),
    repeatable=True,
)
# Blocked keys, and accounts that an external account key let in: in most reservations there is neither.
_OBJECTIONS = PreparedRows(
    lambda count: union_all(
        select(
            spki_blocklist.c.spki_sha256,
            cast(null(), String).label("account_id"),
            cast(null(), String).label("eab_kid"),
            false().label("counts"),
        ).where(
            spki_blocklist.c.spki_sha256.in_(
                [in_row("spki_sha256", number, spki_blocklist.c.spki_sha256) for number in range(count)]
            )
        ),
        select(
            cast(null(), LargeBinary),
            acme_accounts.c.id,
            acme_accounts.c.eab_kid,
            or_(eab_keys.c.live.is_not(None), eab_keys.c.rate.is_not(None)),
        )
        .outerjoin(eab_keys, eab_keys.c.kid == acme_accounts.c.eab_kid)
        .where(
            acme_accounts.c.id.in_([in_row("account_id", number, acme_accounts.c.id) for number in range(count)]),
            acme_accounts.c.eab_kid.is_not(None),
        ),
    ),
    repeatable=True,
)
_SETTLE_ISSUED = PreparedRows(
    lambda count: (
        update(intents)
        .where(
            intents.c.id.in_([in_row("intent_id", number, intents.c.id) for number in range(count)]),
            intents.c.state == "reserved",
            intents.c.node == bindparam("of_node"),
            intents.c.boot_epoch == bindparam("of_epoch"),
            select(nodes.c.boot_epoch).where(nodes.c.node == bindparam("of_node")).scalar_subquery()
            == bindparam("of_epoch"),
        )
        .values(state="issued", settled_at=bindparam("at"))
        .returning(
            intents.c.id, intents.c.enrollment_id, intents.c.issuer_id, intents.c.issuer_key_id, intents.c.serial
        )
    ),
    repeatable=True,
)

# --- Reserving ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reservation:
    """The arguments of IssuanceStore.reserve."""

    intent: IssuanceIntent
    csr_sha256: bytes
    events: Sequence[AuditEvent]
    spki_sha256: bytes | None
    claim: EabClaim = NO_CLAIM

    @property
    def account_id(self) -> str:
        """The ACME account that asks; empty where another protocol does."""
        enrollment = self.intent.enrollment
        return enrollment.requester_scope if enrollment.protocol is Protocol.ACME else ""


def _reserve(connection: Connection, reservations: Sequence[Reservation]) -> list[None]:
    wanted = [reservation.intent for reservation in reservations]
    issuer_ids = {key: _issuer_id(connection, *key) for key in {_fence_and_key(intent) for intent in wanted}}
    serials = [{"serial": intent.serial, "issuer_id": issuer_ids[_fence_and_key(intent)]} for intent in wanted]
    if _TAKEN.execute(connection, serials):
        raise CaError(ErrorKind.CONFLICT, "the serial was used")
    counting = _check_standing(connection, reservations)
    created = _create_enrollments(connection, reservations)
    known = {}
    for intent, csr_sha256 in ((each.intent, each.csr_sha256) for each in reservations):
        if intent.enrollment not in created:
            known[intent.enrollment] = _known_enrollment(connection, intent.enrollment, csr_sha256)
    ids = created | known
    try:
        _INSERT_INTENTS.execute(
            connection,
            [
                {
                    "id": intent.id,
                    "enrollment_id": ids[intent.enrollment],
                    "issuer_id": issuer_ids[_fence_and_key(intent)],
                    "issuer_key_id": intent.issuer_key_id,
                    "serial": intent.serial,
                    "state": "reserved",
                    "node": intent.fence.node,
                    "boot_epoch": intent.fence.boot_epoch,
                    "reserved_at": intent.reserved_at,
                    "profile": intent.profile,
                    "profile_hash": intent.profile_hash,
                    "tenant": intent.tenant,
                    "tbs_sha256": intent.tbs_sha256,
                }
                for intent in wanted
            ],
        )
    except IntegrityError as error:
        raise CaError(ErrorKind.CONFLICT, "the enrollment has a live intent, or the serial was used") from error
    # Asked after the intent is in: by now every earlier intent is settled, and its certificate is seen.
    for enrollment_id in known.values():
        if connection.execute(_HAS_CERTIFICATE, {"enrollment_id": enrollment_id}).first() is not None:
            raise CaError(ErrorKind.CONFLICT, "the enrollment has a certificate")
    for each in reservations:
        if each.account_id in counting:
            enrollment = each.intent.enrollment
            take(
                connection,
                each.claim.kid,
                each.account_id,
                each.claim.names,
                ids[enrollment],
                each.intent.reserved_at,
                is_new=enrollment in created,
            )
    insert_events(connection, [event for reservation in reservations for event in reservation.events])
    return [None] * len(reservations)


RESERVE: Final = Bulk(_reserve)
"""IssuanceStore.reserve for many: creates enrollments that are new, and their intents."""


def _check_standing(connection: Connection, reservations: Sequence[Reservation]) -> set[str]:
    """Refuse blocked keys, and accounts of another external account key than their front-end said.

    Returns the accounts whose certificates are counted: what their keys say now, under the lock of each.
    """
    bound: dict[str, str] = {}
    counting: set[str] = set()
    keys = [{"spki_sha256": each.spki_sha256, "account_id": each.account_id} for each in reservations]
    for row in _OBJECTIONS.execute(connection, keys):
        if row.account_id is None:
            raise blocked_key()
        bound[row.account_id] = row.eab_kid
        if row.counts:
            counting.add(row.account_id)
    if any(bound.get(each.account_id, "") != each.claim.kid for each in reservations):
        raise CaError(
            ErrorKind.UNAUTHORIZED, "the account is bound by another external account key", rule="eab.binding"
        )
    return counting


def _fence_and_key(intent: IssuanceIntent) -> tuple[Fence, int, str]:
    return (intent.fence, intent.issuer_key_id, intent.issuer)


def _issuer_id(connection: Connection, fence: Fence, key_id: int, issuer: str) -> int:
    """The id of an issuer that has such a key, where no newer process of the node is running."""
    standing = _FENCE_AND_KEY.execute(connection, {"of_node": fence.node, "key_id": key_id, "issuer": issuer}).first()
    if standing is None or standing.boot_epoch != fence.boot_epoch:
        raise CaError(ErrorKind.CONFLICT, "a newer process of this node is running")
    if standing.issuer_id is None:
        raise CaError(ErrorKind.CONFLICT, "the issuer has no such key")
    issuer_id: int = standing.issuer_id
    return issuer_id


def _create_enrollments(connection: Connection, reservations: Sequence[Reservation]) -> dict[EnrollmentKey, int]:
    """Create the enrollments that are new; return their ids."""
    rows = []
    for intent, csr_sha256 in ((each.intent, each.csr_sha256) for each in reservations):
        key = intent.enrollment
        rows.append(
            {
                "tenant": key.tenant,
                "protocol": key.protocol.value,
                "profile": key.profile,
                "requester_scope": key.requester_scope,
                "transaction_key": key.transaction_key,
                "epoch": key.epoch,
                "created_at": intent.reserved_at,
                "csr_sha256": csr_sha256,
            }
        )
    return {
        EnrollmentKey(
            Protocol(row.protocol), row.profile, row.requester_scope, row.transaction_key, row.epoch, row.tenant
        ): row.id
        for row in _INSERT_ENROLLMENTS.execute(connection, rows)
    }


def _known_enrollment(connection: Connection, key: EnrollmentKey, csr_sha256: bytes) -> int:
    row = FIND_ENROLLMENT.execute(connection, enrollment_parameters(key)).one()
    if row.csr_sha256 != csr_sha256:
        raise CaError(ErrorKind.CONFLICT, "the enrollment began with another CSR")
    enrollment_id: int = row.id
    return enrollment_id


# --- Completing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """The arguments of IssuanceStore.complete."""

    intent_id: str
    fence: Fence
    record: CertificateRecord
    events: Sequence[AuditEvent]


def _complete(connection: Connection, completions: Sequence[Completion]) -> list[None]:
    by_fence: dict[Fence, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_fence[completion.fence].append(completion)
    settled: dict[str, Any] = {}
    for fence, group in by_fence.items():
        rows = _SETTLE_ISSUED.execute(
            connection,
            [{"intent_id": completion.intent_id} for completion in group],
            {
                "of_node": fence.node,
                "of_epoch": fence.boot_epoch,
                "at": max(completion.record.issued_at for completion in group),
            },
        )
        settled |= {row.id: row for row in rows}
    new = []
    for intent_id, record in ((each.intent_id, each.record) for each in completions):
        intent = settled.pop(intent_id, None)
        if intent is None:
            raise CaError(ErrorKind.CONFLICT, "the intent is no longer live")
        if intent.serial != record.serial or intent.issuer_key_id != record.issuer_key_id:
            raise CaError(ErrorKind.CONFLICT, "the certificate is not the one that was reserved")
        new.append(NewCertificate(record, intent.issuer_id, intent.issuer_key_id, intent.enrollment_id))
    try:
        insert_certificates(connection, new)
    except IntegrityError as error:
        raise CaError(ErrorKind.CONFLICT, "the enrollment has a certificate, or the serial was used") from error
    insert_events(connection, [event for completion in completions for event in completion.events])
    return [None] * len(completions)


COMPLETE: Final = Bulk(_complete)
"""IssuanceStore.complete for many: settles intents, and stores their certificates."""
