"""Revocation and CRLs.

A list holds every entry whose `last_crl` is empty. A revoked certificate that expires stays on until one list that was
made after its expiry has shown it (RFC 5280 section 3.3); `publish_crl` then closes it. Which list has shown it
follows from numbers, not from clocks: a revocation records the last number drawn before it, and a list reads its
entries after its number was drawn. So does the end of a hold, and so a change that no list shows is found again after
a crash: its number is not below that of the newest list.

Revocations of one issuer and its lists change the same rows, so their units announce one lock (`crl_lock`): two cores
whose batches have them in opposite orders would wait for each other.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import BlockedKey, Crl, RevocationReason, RevokedEntry
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit import insert_events
from ca_server.store.audit_tables import audit_events
from ca_server.store.certificates import BLOCKLIST_LOCK, insert_blocked
from ca_server.store.database import Database
from ca_server.store.statements import insert_dialect
from ca_server.store.tables import certificates, crl_numbers, crls, issuer_keys, issuers

_FIND = (
    select(
        certificates.c.id,
        certificates.c.serial,
        certificates.c.issuer_key_id,
        certificates.c.crl_partition,
        certificates.c.revoked_at,
        certificates.c.revocation_reason,
        certificates.c.invalidity_date,
        certificates.c.spki_sha256,
    )
    .join_from(certificates, issuers, issuers.c.id == certificates.c.issuer_id)
    .where(certificates.c.serial == bindparam("serial"), issuers.c.name == bindparam("issuer"))
    .with_for_update(of=certificates)
)
_NUMBER = select(crl_numbers.c.number).where(
    crl_numbers.c.issuer_key_id == bindparam("key_id"), crl_numbers.c.partition == bindparam("of_partition")
)
# FOR SHARE: a list whose number is drawn after this reads its entries after this is committed.
_LAST_NUMBER = _NUMBER.with_for_update(read=True)
# FOR UPDATE: of two lists the higher number wins, in whatever order they come.
_DRAWN_NUMBER = _NUMBER.with_for_update()
_SET_REVOCATION = (
    update(certificates)
    .where(certificates.c.id == bindparam("certificate_id"))
    .values(
        revoked_at=bindparam("at"),
        revocation_reason=bindparam("reason"),
        invalidity_date=bindparam("invalid_since"),
        changed_after_crl=bindparam("after_crl"),
        last_crl=None,
    )
)
_SAME_REQUEST = (
    select(audit_events.c.id)
    .where(
        audit_events.c.serial == bindparam("serial"),
        audit_events.c.issuer == bindparam("issuer"),
        audit_events.c.type == bindparam("type"),
        audit_events.c.request_id == bindparam("request_id"),
    )
    .limit(1)
)
_KEY_EXISTS = (
    select(issuer_keys.c.id)
    .join(issuers, issuers.c.id == issuer_keys.c.issuer_id)
    .where(issuer_keys.c.id == bindparam("key_id"), issuers.c.name == bindparam("issuer"))
)
_DRAW_NUMBER = {
    insert_dialect(insert_number): insert_number.values(
        issuer_key_id=bindparam("key_id"), partition=bindparam("of_partition"), number=1
    )
    .on_conflict_do_update(
        index_elements=[crl_numbers.c.issuer_key_id, crl_numbers.c.partition],
        set_={"number": crl_numbers.c.number + 1},
    )
    .returning(crl_numbers.c.number)
    for insert_number in (sqlite.insert(crl_numbers), postgresql.insert(crl_numbers))
}
_ENTRIES = (
    select(
        certificates.c.serial,
        certificates.c.revoked_at,
        certificates.c.revocation_reason,
        certificates.c.invalidity_date,
    )
    .where(
        certificates.c.issuer_key_id == bindparam("key_id"),
        certificates.c.revoked_at.is_not(None),
        certificates.c.last_crl.is_(None),
    )
    .order_by(certificates.c.id)
)
_NEWEST_NUMBER = select(func.max(crls.c.number)).where(
    crls.c.issuer_key_id == bindparam("key_id"),
    crls.c.partition == bindparam("of_partition"),
    crls.c.base_number.is_(None),
)
_UNLISTED = (
    select(certificates.c.id)
    .where(
        certificates.c.issuer_key_id == bindparam("key_id"),
        certificates.c.crl_partition == bindparam("of_partition"),
        certificates.c.changed_after_crl >= func.coalesce(_NEWEST_NUMBER.scalar_subquery(), 0),
    )
    .limit(1)
)
_INSERT_CRL = insert(crls).values(
    {column.name: bindparam(column.name) for column in crls.columns if column.name not in {"id", "base_number"}}
)
_CLOSE_EXPIRED = (
    update(certificates)
    .where(
        certificates.c.issuer_key_id == bindparam("key_id"),
        certificates.c.revoked_at.is_not(None),
        certificates.c.last_crl.is_(None),
        certificates.c.crl_partition == bindparam("of_partition"),
        certificates.c.not_after < bindparam("this_update"),
        certificates.c.changed_after_crl < bindparam("of_number"),
    )
    .values(last_crl=bindparam("of_number"))
)
_LATEST = (
    select(
        issuers.c.name.label("issuer"),
        crls.c.issuer_key_id,
        crls.c.number,
        crls.c.partition,
        crls.c.this_update,
        crls.c.next_update,
        crls.c.der,
    )
    .join_from(crls, issuer_keys, issuer_keys.c.id == crls.c.issuer_key_id)
    .join(issuers, issuers.c.id == issuer_keys.c.issuer_id)
    .where(
        issuers.c.name == bindparam("issuer"),
        crls.c.partition == bindparam("of_partition"),
        crls.c.base_number.is_(None),
    )
    .limit(1)
)
_LATEST_OF_KEY = _LATEST.where(crls.c.issuer_key_id == bindparam("key_id")).order_by(crls.c.number.desc())
_LATEST_OF_NEWEST_KEY = _LATEST.order_by(issuer_keys.c.generation.desc(), crls.c.number.desc())


def crl_lock(issuer: str) -> str:
    """Name of the lock under which the certificates of an issuer are revoked, and its lists numbered and stored."""
    return f"crl:{issuer}"


class SqlRevocationStore:
    """`ca_server.core.ports.RevocationStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def revoke(self, entry: RevokedEntry, issuer: str, events: Sequence[AuditEvent]) -> RevokedEntry | None:
        """Revoke, as the port says. REMOVE_FROM_CRL lifts a hold, and is BAD_REVOCATION_REASON otherwise.

        A certificate that stays revoked keeps the time since which it is. A request that is sent again, since its
        answer was lost, is done.
        """

        def unit(connection: Connection) -> RevokedEntry | None:
            standing = _revoke(connection, entry, issuer)
            if standing is None:
                insert_events(connection, events)
            elif standing.reason is entry.reason and _is_on_record(connection, events):
                return None
            return standing

        blocks = (BLOCKLIST_LOCK,) if entry.reason is RevocationReason.KEY_COMPROMISE else ()
        return await self._database.write(unit, locks=(crl_lock(issuer), *blocks))

    async def reserve_crl(self, issuer: str, issuer_key_id: int, partition: int, events: Sequence[AuditEvent]) -> int:
        def unit(connection: Connection) -> int:
            if connection.execute(_KEY_EXISTS, {"key_id": issuer_key_id, "issuer": issuer}).first() is None:
                raise CaError(ErrorKind.NOT_FOUND, "the issuer has no such key")
            parameters = {"key_id": issuer_key_id, "of_partition": partition}
            number: int = connection.execute(_DRAW_NUMBER[connection.dialect.name], parameters).scalar_one()
            insert_events(connection, events)
            return number

        return await self._database.write(unit, locks=(crl_lock(issuer),))

    async def revoked_entries(
        self,
        issuer: str,
        issuer_key_id: int,
        now: datetime,  # noqa: ARG002 - what has left the list is on record, whatever the time
    ) -> tuple[RevokedEntry, ...]:
        def query(connection: Connection) -> tuple[RevokedEntry, ...]:
            if connection.execute(_KEY_EXISTS, {"key_id": issuer_key_id, "issuer": issuer}).first() is None:
                raise CaError(ErrorKind.NOT_FOUND, "the issuer has no such key")
            rows = connection.execute(_ENTRIES, {"key_id": issuer_key_id})
            return tuple(
                RevokedEntry(serial, revoked_at, RevocationReason(reason), invalidity_date)
                for serial, revoked_at, reason, invalidity_date in rows
            )

        return await self._database.read(query)

    async def has_unlisted(self, issuer_key_id: int, partition: int = 0) -> bool:
        parameters = {"key_id": issuer_key_id, "of_partition": partition}
        return await self._database.read(
            lambda connection: connection.execute(_UNLISTED, parameters).first() is not None
        )

    async def publish_crl(self, crl: Crl, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if not _publish(connection, crl):
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit, locks=(crl_lock(crl.issuer),))

    async def latest_crl(self, issuer: str, issuer_key_id: int | None = None, partition: int = 0) -> Crl | None:
        parameters: dict[str, object] = {"issuer": issuer, "of_partition": partition}
        statement = _LATEST_OF_NEWEST_KEY
        if issuer_key_id is not None:
            statement = _LATEST_OF_KEY
            parameters["key_id"] = issuer_key_id

        def query(connection: Connection) -> Crl | None:
            row = connection.execute(statement, parameters).first()
            return None if row is None else Crl(**row._mapping)  # noqa: SLF001 - public despite its name

        return await self._database.read(query)


def _revoke(connection: Connection, entry: RevokedEntry, issuer: str) -> RevokedEntry | None:
    row = connection.execute(_FIND, {"serial": entry.serial, "issuer": issuer}).first()
    if row is None:
        raise CaError(ErrorKind.NOT_FOUND, "no such certificate")
    standing = None
    if row.revoked_at is not None:
        standing = RevokedEntry(
            row.serial, row.revoked_at, RevocationReason(row.revocation_reason), row.invalidity_date
        )
    lifts_hold = entry.reason is RevocationReason.REMOVE_FROM_CRL
    if lifts_hold and standing is None:
        raise CaError(ErrorKind.BAD_REVOCATION_REASON, "the certificate is not on hold")
    if standing is not None and not _may_change(standing.reason, entry.reason):
        return standing
    last_number = connection.execute(
        _LAST_NUMBER, {"key_id": row.issuer_key_id, "of_partition": row.crl_partition}
    ).scalar()
    values: dict[str, object] = {
        "certificate_id": row.id,
        "at": entry.revoked_at if standing is None else standing.revoked_at,
        "reason": entry.reason.value,
        "invalid_since": entry.invalidity_date or row.invalidity_date,
        "after_crl": last_number or 0,
    }
    if lifts_hold:
        values |= {"at": None, "reason": None, "invalid_since": None}
    connection.execute(_SET_REVOCATION, values)
    if entry.reason is RevocationReason.KEY_COMPROMISE:
        why = f"certificate {entry.serial} of {issuer} was revoked for it"
        insert_blocked(connection, BlockedKey(row.spki_sha256, why, entry.revoked_at))
    return None


def _is_on_record(connection: Connection, events: Sequence[AuditEvent]) -> bool:
    """Whether the same request did the same before: request ids are unique."""
    return any(
        event.request_id is not None
        and connection.execute(
            _SAME_REQUEST,
            {"serial": event.serial, "issuer": event.issuer, "type": event.type.value, "request_id": event.request_id},
        ).first()
        is not None
        for event in events
    )


def _may_change(standing: RevocationReason, wanted: RevocationReason) -> bool:
    """Whether one reason may follow another: out of a hold, or to a compromise that became known."""
    if standing is wanted:
        return False
    return standing is RevocationReason.CERTIFICATE_HOLD or wanted is RevocationReason.KEY_COMPROMISE


def _publish(connection: Connection, crl: Crl) -> bool:
    parameters = {"key_id": crl.issuer_key_id, "of_partition": crl.partition}
    drawn = connection.execute(_DRAWN_NUMBER, parameters).scalar()
    if drawn is None or crl.number > drawn:
        raise CaError(ErrorKind.CONFLICT, "the CRL number was not drawn")
    newest = connection.execute(_NEWEST_NUMBER, parameters).scalar()
    if newest is not None and newest >= crl.number:
        return False
    connection.execute(
        _INSERT_CRL,
        {
            "issuer_key_id": crl.issuer_key_id,
            "partition": crl.partition,
            "number": crl.number,
            "this_update": crl.this_update,
            "next_update": crl.next_update,
            "der": crl.der,
        },
    )
    connection.execute(_CLOSE_EXPIRED, parameters | {"this_update": crl.this_update, "of_number": crl.number})
    return True
