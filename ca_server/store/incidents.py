"""Incidents: certificates that are to be renewed now."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, or_, select, update

from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.incidents import Incident, Scope, Target
from ca_server.store.acme_tables import acme_challenges, acme_order_links
from ca_server.store.audit import insert_events
from ca_server.store.database import Database
from ca_server.store.tables import incident_targets, incidents, issuer_keys, issuers
from ca_server.store.types import AnyRow

_FIELDS = ("id", "tenant", "created_at", "ended_at", "reason", "explanation_url")
_INSERT = insert(incidents).values({name: bindparam(name) for name in _FIELDS})
_ALL = select(incidents).order_by(incidents.c.created_at.desc(), incidents.c.id)
_TARGETS = select(incident_targets).order_by(incident_targets.c.scope, incident_targets.c.value)
_END = (
    update(incidents)
    .where(incidents.c.id == bindparam("of_id"), incidents.c.ended_at.is_(None))
    .values(ended_at=bindparam("now"))
)
_KNOWN = {
    Scope.ISSUER: select(issuers.c.id).where(issuers.c.name == bindparam("value")),
    Scope.KEY: select(issuer_keys.c.id).where(issuer_keys.c.label == bindparam("value")),
}


def _names(scope: Scope, value: Any) -> Any:
    return and_(incident_targets.c.scope == scope.value, incident_targets.c.value.in_(value))


_METHODS = (
    select(acme_challenges.c.type)
    .join(acme_order_links, acme_order_links.c.authorization_id == acme_challenges.c.authorization_id)
    .where(acme_order_links.c.order_id == bindparam("order_id"), acme_challenges.c.status == "valid")
)
_LABEL = select(issuer_keys.c.label).where(issuer_keys.c.id == bindparam("key_id"))
_OF_CERTIFICATE = (
    select(incidents)
    .join(incident_targets, incident_targets.c.incident_id == incidents.c.id)
    .where(
        or_(
            _names(Scope.SERIAL, [bindparam("serial")]),
            _names(Scope.ISSUER, [bindparam("issuer")]),
            _names(Scope.PROFILE, [bindparam("profile")]),
            _names(Scope.KEY, _LABEL),
            _names(Scope.METHOD, _METHODS),
        ),
        incidents.c.ended_at.is_(None),
        incidents.c.tenant == bindparam("tenant"),
        incidents.c.created_at > bindparam("issued_at"),
    )
    .order_by(incidents.c.created_at)
    .limit(1)
)


class SqlIncidentStore:
    """`ca_server.core.ports.IncidentStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_incident(self, incident: Incident, events: Sequence[AuditEvent]) -> None:
        def unit(connection: Connection) -> None:
            for target in incident.targets:
                known = _KNOWN.get(target.scope)
                if known is not None and connection.execute(known, {"value": target.value}).first() is None:
                    raise CaError(ErrorKind.NOT_FOUND, f"there is no {target.scope.value} {target.value!r}")
            connection.execute(_INSERT, {name: getattr(incident, name) for name in _FIELDS})
            rows = [
                {"scope": target.scope.value, "value": target.value, "incident_id": incident.id}
                for target in incident.targets
            ]
            connection.execute(insert(incident_targets), rows)
            insert_events(connection, events)

        await self._database.write(unit)

    async def end_incident(self, incident_id: str, now: datetime, events: Sequence[AuditEvent]) -> bool:
        def unit(connection: Connection) -> bool:
            if connection.execute(_END, {"of_id": incident_id, "now": now}).rowcount != 1:
                return False
            insert_events(connection, events)
            return True

        return await self._database.write(unit)

    async def incidents(self) -> tuple[Incident, ...]:
        def query(connection: Connection) -> tuple[Incident, ...]:
            targets: dict[str, list[Target]] = {}
            for row in connection.execute(_TARGETS):
                targets.setdefault(row.incident_id, []).append(Target(Scope(row.scope), row.value))
            return tuple(
                replace(_incident_of(row), targets=tuple(targets.get(row.id, ()))) for row in connection.execute(_ALL)
            )

        return await self._database.read(query)


def incident_of(connection: Connection, record: CertificateRecord) -> Incident | None:
    """The oldest incident under way that names a certificate issued before it, without its targets."""
    parameters = {
        "serial": record.serial,
        "issuer": record.issuer,
        "profile": record.profile,
        "key_id": record.issuer_key_id,
        "order_id": record.transaction_key,
        "tenant": record.tenant,
        "issued_at": record.issued_at,
    }
    row = connection.execute(_OF_CERTIFICATE, parameters).first()
    return None if row is None else _incident_of(row)


def _incident_of(row: AnyRow) -> Incident:
    return Incident(
        id=row.id,
        created_at=row.created_at,
        reason=row.reason,
        explanation_url=row.explanation_url,
        targets=(),
        ended_at=row.ended_at,
        tenant=row.tenant,
    )
