"""The inventory: searching and counting certificates, for operators."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, func, or_, select

from ca_server.domain.certificates import CertificateRecord
from ca_server.store.certificates import SELECT_RECORDS, records_of
from ca_server.store.database import Database
from ca_server.store.tables import certificate_names, certificates, issuers

_AFTER_HEXADECIMAL = "g"
_AFTER_TEXT = "\U0010ffff"


class InventoryStatus(StrEnum):
    """What a certificate counts as: revoked ones stay revoked when they expire."""

    VALID = "valid"
    REVOKED = "revoked"
    EXPIRED = "expired"


_CURSOR = (
    select(certificates.c.id)
    .join(issuers, issuers.c.id == certificates.c.issuer_id)
    .where(issuers.c.name == bindparam("after_issuer"), certificates.c.serial == bindparam("after_serial"))
    .scalar_subquery()
)
_STATUS = case(
    (certificates.c.revoked_at.is_not(None), InventoryStatus.REVOKED.value),
    (certificates.c.not_after < bindparam("now"), InventoryStatus.EXPIRED.value),
    else_=InventoryStatus.VALID.value,
).label("status")
_COUNT = select(_STATUS, func.count()).group_by(_STATUS)


class SqlInventory:
    """Reads what was issued; changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def search(
        self,
        *,
        issuer: str | None = None,
        serial_prefix: str | None = None,
        name: str | None = None,
        profile: str | None = None,
        status: InventoryStatus | None = None,
        requester: str | None = None,
        owner: str | None = None,
        ends_before: datetime | None = None,
        now: datetime | None = None,
        limit: int = 100,
        after: tuple[str, str] | None = None,
    ) -> tuple[CertificateRecord, ...]:
        """Find certificates, newest first.

        `name` is a subject alternative name, exactly, or with a leading dot every name under it; `requester` is an
        id or `protocol:id`, `owner` that of its external account key; `ends_before` is a limit of notAfter. `after` is
        (issuer, serial) of the last certificate of the page before.
        """
        statement = SELECT_RECORDS.order_by(certificates.c.id.desc()).limit(limit)
        parameters: dict[str, Any] = {}
        exactly = ((issuers.c.name, issuer), (certificates.c.profile, profile), (certificates.c.owner, owner))
        for column, value in exactly:
            if value is not None:
                statement = statement.where(column == value)
        if serial_prefix:
            statement = statement.where(_begins_with(certificates.c.serial, serial_prefix.lower(), _AFTER_HEXADECIMAL))
        if name:
            statement = statement.where(_has_name(name))
        if requester is not None:
            statement = statement.where(_is_requester(requester))
        if ends_before is not None:
            statement = statement.where(certificates.c.not_after < bindparam("ends_before"))
            parameters["ends_before"] = ends_before
        if status is not None:
            statement = statement.where(_STATUS.element == status.value)
            parameters["now"] = now or datetime.now(UTC)
        if after is not None:
            statement = statement.where(certificates.c.id < _CURSOR)
            parameters |= {"after_issuer": after[0], "after_serial": after[1]}

        def query(connection: Connection) -> tuple[CertificateRecord, ...]:
            return records_of(connection, connection.execute(statement, parameters).all())

        return await self._database.read(query)

    async def count_by_status(self, now: datetime | None = None) -> dict[InventoryStatus, int]:
        """How many certificates are valid, revoked and expired."""
        parameters = {"now": now or datetime.now(UTC)}

        def query(connection: Connection) -> dict[InventoryStatus, int]:
            counts = {InventoryStatus(status): count for status, count in connection.execute(_COUNT, parameters)}
            return {status: counts.get(status, 0) for status in InventoryStatus}

        return await self._database.read(query)


def _begins_with(column: ColumnElement[Any], prefix: str, beyond: str) -> ColumnElement[bool]:
    # A range, unlike LIKE, uses the index on every database, and knows no wildcards.
    return and_(column >= prefix, column < prefix + beyond)


def _has_name(name: str) -> ColumnElement[bool]:
    backwards = name.lower()[::-1]
    matches = certificate_names.c.reversed == backwards
    if name.startswith("."):
        matches = _begins_with(certificate_names.c.reversed, backwards, _AFTER_TEXT)
    return certificates.c.id.in_(select(certificate_names.c.certificate_id).where(matches))


def _is_requester(requester: str) -> ColumnElement[bool]:
    protocol, _, identity = requester.partition(":")
    return or_(
        certificates.c.requester_id == requester,
        and_(certificates.c.requester_protocol == protocol, certificates.c.requester_id == identity),
    )
