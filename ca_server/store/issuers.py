"""Issuers, their keys and their CA certificates: three tables, joined to what the domain calls an issuer."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CaCertificate, CertificateRecord, Issuer, IssuerKey, IssuerKind
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.audit import insert_events
from ca_server.store.certificates import NewCertificate, insert_certificates
from ca_server.store.database import Database
from ca_server.store.der import join_der, split_der
from ca_server.store.statements import Prepared
from ca_server.store.tables import ca_certificates, issuer_keys, issuers
from ca_server.store.types import AnyRow

_parents = issuers.alias("parents")

_KEYS = (
    select(
        issuers.c.name,
        issuers.c.kind,
        issuers.c.tenant,
        _parents.c.name.label("parent"),
        issuer_keys.c.id.label("key_id"),
        issuer_keys.c.generation,
        issuer_keys.c.label,
        issuer_keys.c.algorithm,
        issuer_keys.c.spki,
        ca_certificates.c.der,
        ca_certificates.c.chain,
    )
    .join_from(issuers, issuer_keys, issuer_keys.c.issuer_id == issuers.c.id)
    .join(ca_certificates, (ca_certificates.c.issuer_key_id == issuer_keys.c.id) & ca_certificates.c.preferred)
    .outerjoin(_parents, _parents.c.id == issuers.c.parent_id)
)

_ACTIVE_KEYS = _KEYS.where(issuer_keys.c.active).order_by(issuers.c.id)
_KEYS_OF_ISSUER = _KEYS.where(issuers.c.name == bindparam("issuer")).order_by(issuer_keys.c.generation.desc())
_CA_CERTIFICATES = Prepared(
    select(
        ca_certificates.c.issuer_key_id,
        ca_certificates.c.preferred,
        ca_certificates.c.created_at,
        ca_certificates.c.der,
        ca_certificates.c.chain,
    ).order_by(ca_certificates.c.id)
)
_ISSUER_ID = select(issuers.c.id).where(issuers.c.name == bindparam("issuer"))
_ISSUER_ID_OF_KEY = select(issuer_keys.c.issuer_id).where(issuer_keys.c.id == bindparam("key_id"))


class SqlIssuerStore:
    """`ca_server.core.ports.IssuerStore` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_issuer(
        self, issuer: Issuer, record: CertificateRecord | None, events: Sequence[AuditEvent]
    ) -> Issuer:
        """Create an issuer, as the port says; NOT_FOUND where its parent, or the key that signed `record`, is none.

        A record whose issuer is the new one itself (a root) is stored under the new key, whatever id it has.
        """
        created_at = datetime.now(UTC)

        def unit(connection: Connection) -> Issuer:
            try:
                created = _create(connection, issuer, record, created_at)
            except IntegrityError as error:
                raise CaError(ErrorKind.CONFLICT, "the issuer, its key or its certificate exists") from error
            insert_events(connection, events)
            return created

        return await self._database.write(unit)

    async def issuers(self) -> tuple[Issuer, ...]:
        return await self._database.read(lambda connection: tuple(map(_issuer_of, connection.execute(_ACTIVE_KEYS))))

    async def issuer_keys(self, issuer: str) -> tuple[IssuerKey, ...]:
        parameters = {"issuer": issuer}
        return await self._database.read(
            lambda connection: tuple(map(_key_of, connection.execute(_KEYS_OF_ISSUER, parameters)))
        )

    async def ca_certificates(self) -> tuple[CaCertificate, ...]:
        return await self._database.read(ca_certificates_of)

    async def add_ca_certificate(self, certificate: CaCertificate, events: Sequence[AuditEvent]) -> None:
        def unit(connection: Connection) -> None:
            try:
                _insert_certificate(connection, certificate)
            except IntegrityError as error:
                raise CaError(ErrorKind.CONFLICT, "this CA certificate is there already") from error
            insert_events(connection, events)

        await self._database.write(unit)


def ca_certificates_of(connection: Connection) -> tuple[CaCertificate, ...]:
    """All CA certificates of all keys: as few as were created or imported."""
    return tuple(
        CaCertificate(row.issuer_key_id, row.der, split_der(row.chain), row.created_at, bool(row.preferred))
        for row in _CA_CERTIFICATES.execute(connection, {})
    )


def _insert_certificate(connection: Connection, certificate: CaCertificate) -> None:
    connection.execute(
        insert(ca_certificates).values(
            issuer_key_id=certificate.issuer_key_id,
            preferred=certificate.preferred,
            sha256=hashlib.sha256(certificate.der).digest(),
            created_at=certificate.created_at,
            der=certificate.der,
            chain=join_der(certificate.chain),
        )
    )


def _create(connection: Connection, issuer: Issuer, record: CertificateRecord | None, created_at: datetime) -> Issuer:
    key = issuer.key
    issuer_id = _inserted_id(
        connection,
        insert(issuers).values(
            tenant=issuer.tenant,
            name=issuer.name,
            kind=issuer.kind.value,
            parent_id=_parent_id(connection, issuer),
            created_at=created_at,
        ),
    )
    key_id = _inserted_id(
        connection,
        insert(issuer_keys).values(
            issuer_id=issuer_id,
            generation=key.generation,
            label=key.label,
            algorithm=key.algorithm.value,
            active=True,
            created_at=created_at,
            spki=key.spki_der,
        ),
    )
    _insert_certificate(connection, CaCertificate(key_id, key.certificate_der, key.chain, created_at, preferred=True))
    if record is not None:
        _insert_ca_certificate(connection, issuer, record, issuer_id, key_id)
    row = connection.execute(_KEYS_OF_ISSUER, {"issuer": issuer.name}).first()
    if row is None:
        raise CaError(ErrorKind.INTERNAL, "the issuer is not there after it was created")
    return _issuer_of(row)


def _inserted_id(connection: Connection, statement: Any) -> int:
    key = connection.execute(statement).inserted_primary_key
    if key is None:
        raise CaError(ErrorKind.INTERNAL, "the database numbered no row")
    identity: int = key[0]
    return identity


def _parent_id(connection: Connection, issuer: Issuer) -> int | None:
    if issuer.parent is None:
        return None
    parent_id: int | None = connection.execute(_ISSUER_ID, {"issuer": issuer.parent}).scalar()
    if parent_id is None:
        raise CaError(ErrorKind.NOT_FOUND, "the parent issuer does not exist")
    return parent_id


def _insert_ca_certificate(
    connection: Connection, issuer: Issuer, record: CertificateRecord, issuer_id: int, key_id: int
) -> None:
    signer_key_id = record.issuer_key_id
    if record.issuer == issuer.name:
        signer_key_id = key_id
    else:
        signer = connection.execute(_ISSUER_ID, {"issuer": record.issuer}).scalar()
        of_key = connection.execute(_ISSUER_ID_OF_KEY, {"key_id": signer_key_id}).scalar()
        if signer is None or signer != of_key:
            raise CaError(ErrorKind.NOT_FOUND, "the issuer has no such key")
        issuer_id = signer
    insert_certificates(connection, [NewCertificate(record, issuer_id, signer_key_id, None)])


def _issuer_of(row: AnyRow) -> Issuer:
    return Issuer(row.name, IssuerKind(row.kind), _key_of(row), row.parent, row.tenant)


def _key_of(row: AnyRow) -> IssuerKey:
    return IssuerKey(
        id=row.key_id,
        issuer=row.name,
        generation=row.generation,
        label=row.label,
        algorithm=KeyAlgorithm(row.algorithm),
        spki_der=row.spki,
        certificate_der=row.der,
        chain=split_der(row.chain),
    )
