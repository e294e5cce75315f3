"""Certificates on a connection: how they are stored and read, for every store that needs them.

Statements are built once, at import: SQLAlchemy then compiles each once.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, select

from ca_server.domain.certificates import (
    BlockedKey,
    CertificateRecord,
    IssuedCertificate,
    RevocationReason,
    SerialStatus,
    StatusValue,
)
from ca_server.domain.enrollment import EnrollmentKey
from ca_server.store.der import split_der
from ca_server.store.rows import insert_rows
from ca_server.store.statements import Prepared, insert_or_ignore
from ca_server.store.tables import (
    ca_certificates,
    certificate_names,
    certificates,
    enrollments,
    intents,
    issuers,
    spki_blocklist,
)
from ca_server.store.types import AnyRow

NAMES_AT_ONCE = 500
"""How many certificates' names are read by one statement: below every driver's limit of parameters."""

BLOCKLIST_LOCK = "spki-blocklist"
"""Name of the lock under which the blocklist changes."""
_BLOCK = insert_or_ignore(spki_blocklist, ["spki_sha256", "reason", "added_at"])
_COPIED = (
    "serial",
    "profile",
    "profile_hash",
    "subject",
    "spki_sha256",
    "not_before",
    "not_after",
    "issued_at",
    "requester_protocol",
    "requester_id",
    "transaction_key",
    "tenant",
    "crl_partition",
    "invalidity_date",
    "revoked_at",
    "owner",
)
"""Columns named and typed as the fields of CertificateRecord."""

_INSERT = insert_rows(
    certificates,
    (*_COPIED, "revocation_reason", "der", "issuer_id", "issuer_key_id", "enrollment_id"),
    returning=(certificates.c.id, certificates.c.serial, certificates.c.issuer_id),
)
_INSERT_NAMES = insert_rows(certificate_names)

SELECT_RECORDS: Select[Any] = select(
    certificates.c.id,
    issuers.c.name.label("issuer"),
    certificates.c.issuer_key_id,
    certificates.c.revocation_reason,
    certificates.c.der,
    *(certificates.c[name] for name in _COPIED),
).join_from(certificates, issuers, certificates.c.issuer_id == issuers.c.id)
"""What `records_of` reads; add a WHERE clause."""

_SELECT_NAMES = (
    select(certificate_names.c.certificate_id, certificate_names.c.type, certificate_names.c.value)
    .where(certificate_names.c.certificate_id.in_(bindparam("ids", expanding=True)))
    .order_by(certificate_names.c.certificate_id, certificate_names.c.position)
)

_BY_SERIAL = SELECT_RECORDS.where(certificates.c.serial == bindparam("serial"), issuers.c.name == bindparam("issuer"))
_BY_SPKI = SELECT_RECORDS.where(certificates.c.spki_sha256 == bindparam("spki_sha256")).order_by(certificates.c.id)
_OF_REQUESTER = (
    SELECT_RECORDS.where(
        certificates.c.requester_id == bindparam("of_requester"),
        certificates.c.requester_protocol == bindparam("of_protocol"),
        certificates.c.not_after > bindparam("now"),
        certificates.c.revoked_at.is_(None),
    )
    .order_by(certificates.c.id.desc())
    .limit(100)
)
_FIRST_SINCE = (
    select(certificates.c.id)
    .where(certificates.c.issued_at >= bindparam("since"))
    .order_by(certificates.c.issued_at)
    .limit(1)
)
_LAST = select(func.max(certificates.c.id))
_SAMPLE = SELECT_RECORDS.where(
    certificates.c.id.in_(bindparam("ids", expanding=True)), certificates.c.issued_at >= bindparam("since")
)

# One statement, so that serial, intent and certificate are seen at one moment under READ COMMITTED too.
_STATUS = (
    select(
        intents.c.state,
        certificates.c.id,
        certificates.c.revoked_at,
        certificates.c.revocation_reason,
    )
    .select_from(issuers)
    .outerjoin(intents, and_(intents.c.issuer_id == issuers.c.id, intents.c.serial == bindparam("serial")))
    .outerjoin(
        certificates, and_(certificates.c.issuer_id == issuers.c.id, certificates.c.serial == bindparam("serial"))
    )
    .where(issuers.c.name == bindparam("issuer"))
)

IS_ENROLLMENT = and_(
    enrollments.c.transaction_key == bindparam("e_transaction_key"),
    enrollments.c.requester_scope == bindparam("e_requester_scope"),
    enrollments.c.protocol == bindparam("e_protocol"),
    enrollments.c.profile == bindparam("e_profile"),
    enrollments.c.tenant == bindparam("e_tenant"),
    enrollments.c.epoch == bindparam("e_epoch"),
)
"""Picks the enrollment of `enrollment_parameters(key)`."""

ISSUED_COLUMNS = (
    certificates.c.serial,
    issuers.c.name.label("issuer"),
    certificates.c.issuer_key_id,
    certificates.c.der,
    certificates.c.profile,
    certificates.c.profile_hash,
    certificates.c.not_before,
    certificates.c.not_after,
    ca_certificates.c.der.label("ca_der"),
    ca_certificates.c.chain.label("ca_chain"),
)
"""What `issued_of` reads."""

IS_CHAIN = and_(ca_certificates.c.issuer_key_id == certificates.c.issuer_key_id, ca_certificates.c.preferred)

_ISSUED_FOR = Prepared(
    select(*ISSUED_COLUMNS)
    .select_from(enrollments)
    .join(certificates, certificates.c.enrollment_id == enrollments.c.id)
    .join(issuers, issuers.c.id == certificates.c.issuer_id)
    .join(ca_certificates, IS_CHAIN)
    .where(IS_ENROLLMENT)
)


def enrollment_parameters(key: EnrollmentKey) -> dict[str, Any]:
    """The parameters of IS_ENROLLMENT."""
    return {
        "e_transaction_key": key.transaction_key,
        "e_requester_scope": key.requester_scope,
        "e_protocol": key.protocol.value,
        "e_profile": key.profile,
        "e_tenant": key.tenant,
        "e_epoch": key.epoch,
    }


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A certificate to store, and what it belongs to."""

    record: CertificateRecord
    issuer_id: int
    issuer_key_id: int
    enrollment_id: int | None


def insert_certificates(connection: Connection, new: Sequence[NewCertificate]) -> None:
    """Store certificates with their names. Raises IntegrityError where a serial is taken."""
    given = _INSERT.execute(connection, [_values_of(each) for each in new])
    ids = {(row.serial, row.issuer_id): row.id for row in given}
    _INSERT_NAMES.execute(
        connection,
        [
            _name_values(ids[each.record.serial, each.issuer_id], position, name)
            for each in new
            for position, name in enumerate(each.record.names)
        ],
    )


def _values_of(new: NewCertificate) -> dict[str, Any]:
    record = new.record
    values: dict[str, Any] = {name: getattr(record, name) for name in _COPIED}
    reason = record.revocation_reason
    if reason is None and record.revoked_at is not None:
        reason = RevocationReason.UNSPECIFIED
    values["revocation_reason"] = None if reason is None else reason.value
    values["der"] = record.certificate_der
    values["issuer_id"] = new.issuer_id
    values["issuer_key_id"] = new.issuer_key_id
    values["enrollment_id"] = new.enrollment_id
    return values


def _name_values(certificate_id: int, position: int, name: str) -> dict[str, Any]:
    kind, _, value = name.partition(":")
    return {
        "certificate_id": certificate_id,
        "position": position,
        "type": kind,
        "value": value,
        "reversed": value.lower()[::-1],
    }


def records_of(connection: Connection, rows: Sequence[AnyRow]) -> tuple[CertificateRecord, ...]:
    """Make records of rows of SELECT_RECORDS, reading their names."""
    names = _names_of(connection, [row.id for row in rows])
    return tuple(_record_of(row._mapping, tuple(names[row.id])) for row in rows)  # noqa: SLF001 - public despite its name


def _record_of(row: Mapping[Any, Any], names: tuple[str, ...]) -> CertificateRecord:
    reason = row["revocation_reason"]
    return CertificateRecord(
        issuer=row["issuer"],
        issuer_key_id=row["issuer_key_id"],
        certificate_der=row["der"],
        names=names,
        revocation_reason=None if reason is None else RevocationReason(reason),
        **{name: row[name] for name in _COPIED},
    )


def _names_of(connection: Connection, ids: Sequence[int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for begin in range(0, len(ids), NAMES_AT_ONCE):
        for row in connection.execute(_SELECT_NAMES, {"ids": ids[begin : begin + NAMES_AT_ONCE]}):
            names[row.certificate_id].append(f"{row.type}:{row.value}")
    return names


def certificate_by_serial(connection: Connection, issuer: str, serial: str) -> CertificateRecord | None:
    """A certificate by the name of its issuer and its serial."""
    rows = connection.execute(_BY_SERIAL, {"issuer": issuer, "serial": serial}).all()
    return next(iter(records_of(connection, rows)), None)


def certificates_by_spki(connection: Connection, spki_sha256: bytes) -> tuple[CertificateRecord, ...]:
    """All certificates of a public key, oldest first."""
    return records_of(connection, connection.execute(_BY_SPKI, {"spki_sha256": spki_sha256}).all())


def certificates_of_requester(
    connection: Connection, protocol: str, requester_id: str, now: datetime
) -> tuple[CertificateRecord, ...]:
    """Certificates of one requester that are neither expired nor revoked, newest first; at most 100."""
    parameters = {"of_protocol": protocol, "of_requester": requester_id, "now": now}
    return records_of(connection, connection.execute(_OF_REQUESTER, parameters).all())


def sample_certificates(connection: Connection, since: datetime, limit: int) -> tuple[CertificateRecord, ...]:
    """At most `limit` certificates issued since `since`, chosen at random.

    Ids are drawn and looked up: the cost does not grow with the number of certificates, of which any share may be new.
    """
    first = connection.execute(_FIRST_SINCE, {"since": since}).scalar()
    if first is None:
        return ()
    ids = range(first, connection.execute(_LAST).scalar_one() + 1)
    # More than are wanted: an id may be an older certificate's, or nobody's.
    drawn = random.sample(ids, min(len(ids), 4 * limit))
    rows = connection.execute(_SAMPLE, {"ids": drawn, "since": since}).all()
    return records_of(connection, random.sample(rows, min(len(rows), limit)))


def serial_status(connection: Connection, issuer: str, serial: str) -> SerialStatus:
    """The status of a serial: good, revoked, reserved, abandoned or unknown."""
    row = connection.execute(_STATUS, {"issuer": issuer, "serial": serial}).first()
    if row is None:
        return SerialStatus(StatusValue.UNKNOWN)
    if row.revoked_at is not None:
        return SerialStatus(StatusValue.REVOKED, row.revoked_at, RevocationReason(row.revocation_reason))
    if row.id is not None:
        return SerialStatus(StatusValue.GOOD)
    return SerialStatus(StatusValue.UNKNOWN if row.state is None else StatusValue(row.state))


def insert_blocked(connection: Connection, key: BlockedKey) -> bool:
    """Put a public key on the blocklist; false where it was there."""
    values = {"spki_sha256": key.spki_sha256, "reason": key.reason, "added_at": key.added_at}
    return connection.execute(_BLOCK[connection.dialect.name], values).rowcount == 1


def issued_for(connection: Connection, key: EnrollmentKey) -> IssuedCertificate | None:
    """The certificate of an enrollment, with its chain; None where it has none (yet)."""
    row = _ISSUED_FOR.execute(connection, enrollment_parameters(key)).first()
    return None if row is None else issued_of(row)


def issued_of(row: AnyRow) -> IssuedCertificate:
    """Make the value of a row of ISSUED_COLUMNS."""
    return IssuedCertificate(
        serial=row.serial,
        issuer=row.issuer,
        issuer_key_id=row.issuer_key_id,
        certificate_der=row.der,
        chain=client_chain(row.ca_der, row.ca_chain),
        profile=row.profile,
        profile_hash=row.profile_hash,
        not_before=row.not_before,
        not_after=row.not_after,
    )


def client_chain(ca_der: bytes, ca_chain: bytes) -> tuple[bytes, ...]:
    """The chain that a client is given: the leaf's issuer first, the root left out."""
    return (ca_der, *split_der(ca_chain))[:-1]
