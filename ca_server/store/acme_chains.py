"""Certificates of issuers as ACME's clients are told of them, inside a transaction."""

from sqlalchemy import Connection, bindparam, select

from ca_server.store.statements import Prepared
from ca_server.store.tables import ca_certificates, issuer_keys, issuers

_PREFERRED = Prepared(
    select(ca_certificates.c.der)
    .select_from(issuers)
    .join(issuer_keys, (issuer_keys.c.issuer_id == issuers.c.id) & issuer_keys.c.active)
    .join(ca_certificates, (ca_certificates.c.issuer_key_id == issuer_keys.c.id) & ca_certificates.c.preferred)
    .where(issuers.c.tenant == bindparam("of_tenant"), issuers.c.name == bindparam("of_issuer"))
)


def issuer_certificate(connection: Connection, tenant: str, issuer: str) -> bytes | None:
    """The CA certificate of an issuer's active key; None where there is no such issuer."""
    row = _PREFERRED.execute(connection, {"of_tenant": tenant, "of_issuer": issuer}).first()
    return None if row is None else bytes(row[0])
