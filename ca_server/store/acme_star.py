"""Auto-renewal orders (RFC 8739), inside a transaction: which are due, who is at work on them, and what they have."""

from typing import Any

from sqlalchemy import Connection, and_, bindparam, insert, select, update

from ca_server.domain.certificates import RevocationReason
from ca_server.domain.enrollment import Protocol
from ca_server.store.acme_orders import has_certificate
from ca_server.store.acme_tables import acme_orders, acme_star
from ca_server.store.certificates import IS_CHAIN, ISSUED_COLUMNS, issued_of
from ca_server.store.statements import Prepared
from ca_server.store.tables import ca_certificates, certificates, enrollments, issuers
from protocols.acme.model import Order, OrderStatus, sources_of
from protocols.acme.ports import Lessee, Work
from protocols.acme.star.ports import Newest, RenewalState
from protocols.acme.star.terms import Begun

_STATE = Prepared(select(acme_star).where(acme_star.c.order_id == bindparam("of_order")))
_NEWEST = Prepared(
    select(*ISSUED_COLUMNS, enrollments.c.epoch, certificates.c.revocation_reason)
    .select_from(enrollments)
    .join(certificates, certificates.c.enrollment_id == enrollments.c.id)
    .join(issuers, issuers.c.id == certificates.c.issuer_id)
    .join(ca_certificates, IS_CHAIN)
    .where(
        enrollments.c.transaction_key == bindparam("of_order"),
        enrollments.c.requester_scope == bindparam("of_account"),
        enrollments.c.protocol == Protocol.ACME.value,
        enrollments.c.profile == bindparam("of_profile"),
        enrollments.c.tenant == bindparam("of_tenant"),
    )
    .order_by(enrollments.c.epoch.desc())
    .limit(1)
)


def begin_renewals(connection: Connection, account_id: str, order_id: str, begun: Begun) -> None:
    """Note when an order that is finalized now is to be renewed, and that it lives until its end-date.

    What its first certificate is valid for is kept with it, so that each attempt at it asks for the same.
    """
    connection.execute(
        insert(acme_star).values(
            order_id=order_id,
            account_id=account_id,
            first_at=begun.first,
            ready_at=begun.ready_at,
            failures=0,
        )
    )
    connection.execute(
        update(acme_orders)
        .where(acme_orders.c.id == order_id)
        .values(not_before=begun.not_before, not_after=begun.not_after, expires_at=begun.end)
    )


def renewal_state(connection: Connection, order_id: str) -> RenewalState | None:
    """Where the renewals of an order stand; None where it was not finalized, or is no auto-renewal order."""
    row = _STATE.execute(connection, {"of_order": order_id}).first()
    return None if row is None else RenewalState(row.first_at, row.ready_at, row.failures)


def cancel_orders(connection: Connection, which: Any, tenant: str) -> int:
    """Cancel the auto-renewal orders among those that have a certificate; returns how many."""
    renewed = and_(which, acme_orders.c.auto_renewal.is_not(None), has_certificate(tenant))
    # An order is valid once it has its certificate; the mark comes later, in passing.
    connection.execute(
        update(acme_orders)
        .where(renewed, acme_orders.c.status.in_(sources_of(OrderStatus.VALID)))
        .values(status=OrderStatus.VALID.value)
    )
    canceled = connection.execute(
        update(acme_orders)
        .where(renewed, acme_orders.c.status.in_(sources_of(OrderStatus.CANCELED)))
        .values(status=OrderStatus.CANCELED.value)
        .returning(acme_orders.c.id)
    ).scalars()
    ids = tuple(canceled)
    if ids:
        ended = acme_star.c.order_id.in_(ids)
        connection.execute(update(acme_star).where(ended).values(ready_at=None, lease_holder=None))
    return len(ids)


def claim_renewals(connection: Connection, lessee: Lessee, limit: int) -> tuple[Work, ...]:
    """Take what is ready: who dies over it leaves it ready again when the lease runs out."""
    found = connection.execute(
        select(acme_star.c.order_id, acme_star.c.account_id)
        .where(acme_star.c.ready_at <= lessee.now)
        .order_by(acme_star.c.ready_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if found:
        connection.execute(
            update(acme_star)
            .where(acme_star.c.order_id.in_([row.order_id for row in found]))
            .values(ready_at=lessee.until, lease_holder=lessee.holder)
        )
    return tuple(Work(row.order_id, row.account_id) for row in found)


def give_back(connection: Connection, order_id: str, holder: str, values: dict[str, Any]) -> bool:
    """Settle a lease that the holder still has: an order that was canceled meanwhile is nobody's."""
    held = and_(acme_star.c.order_id == order_id, acme_star.c.lease_holder == holder)
    return connection.execute(update(acme_star).where(held).values(values)).rowcount == 1


def newest_of(connection: Connection, order: Order, tenant: str) -> Newest | None:
    """The newest certificate of an order."""
    parameters = {
        "of_order": order.id,
        "of_account": order.account_id,
        "of_profile": order.profile,
        "of_tenant": tenant,
    }
    row = _NEWEST.execute(connection, parameters).first()
    if row is None:
        return None
    reason = row.revocation_reason
    return Newest(row.epoch, issued_of(row), reason is not None, reason == RevocationReason.CERTIFICATE_HOLD.value)
