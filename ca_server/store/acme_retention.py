"""Forgetting ACME orders, authorizations and challenges that nobody can use any more."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, literal_column, select

from ca_server.store.acme_attempts import forget_attempts
from ca_server.store.acme_orders import has_certificate
from ca_server.store.acme_tables import acme_authorizations, acme_challenges, acme_order_links, acme_orders
from ca_server.store.tables import certificates
from protocols.acme.model import OrderStatus

_LINKS = acme_order_links


def expired_orders(connection: Connection, before: datetime, tenant: str, limit: int) -> tuple[str, ...]:
    """Orders of the past: they and what they stand on expired before, and so did their certificate.

    An order with an unexpired certificate is where its client finds it; one in processing is being worked on.
    """
    standing = exists(
        select(_LINKS.c.order_id)
        .join(acme_authorizations, acme_authorizations.c.id == _LINKS.c.authorization_id)
        .where(_LINKS.c.order_id == acme_orders.c.id, acme_authorizations.c.expires_at >= before)
    )
    query = (
        select(acme_orders.c.id)
        .where(
            acme_orders.c.expires_at < before,
            acme_orders.c.status != OrderStatus.PROCESSING.value,
            ~standing,
            ~has_certificate(tenant, certificates.c.not_after >= before),
        )
        .order_by(acme_orders.c.expires_at)
        .limit(limit)
    )
    return tuple(connection.execute(query).scalars())


def forget_orders(connection: Connection, order_ids: Sequence[str]) -> None:
    """Delete orders, and the authorizations that are left without one."""
    linked = select(_LINKS.c.authorization_id).where(_LINKS.c.order_id.in_(order_ids)).distinct()
    candidates = tuple(connection.execute(linked).scalars())
    connection.execute(delete(_LINKS).where(_LINKS.c.order_id.in_(order_ids)))
    connection.execute(delete(acme_orders).where(acme_orders.c.id.in_(order_ids)))
    needed = select(_LINKS.c.authorization_id).where(_LINKS.c.authorization_id.in_(candidates))
    kept = set(connection.execute(needed).scalars())
    _forget_authorizations(connection, [each for each in candidates if each not in kept])


def forget_preauthorizations(connection: Connection, before: datetime, limit: int) -> int:
    """Delete authorizations asked for by themselves that expired before and that no order has; returns how many."""
    query = (
        select(acme_authorizations.c.id)
        .where(
            # Written out, so that the database sees that its partial index serves.
            literal_column("acme_authorizations.preauthorized"),
            acme_authorizations.c.expires_at < before,
            ~exists(select(_LINKS.c.order_id).where(_LINKS.c.authorization_id == acme_authorizations.c.id)),
        )
        .order_by(acme_authorizations.c.expires_at)
        .limit(limit)
    )
    found = tuple(connection.execute(query).scalars())
    _forget_authorizations(connection, found)
    return len(found)


def _forget_authorizations(connection: Connection, ids: Sequence[str]) -> None:
    if ids:
        forget_attempts(connection, acme_challenges.c.authorization_id.in_(ids))
        connection.execute(delete(acme_challenges).where(acme_challenges.c.authorization_id.in_(ids)))
        connection.execute(delete(acme_authorizations).where(acme_authorizations.c.id.in_(ids)))
