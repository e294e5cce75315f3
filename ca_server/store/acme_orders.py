"""ACME orders, inside a transaction."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, exists, func, insert, literal_column, or_, select, update

from ca_server.domain.accounts import AccountStatus
from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.enrollment import EnrollmentKey, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.rates import Draw
from ca_server.store.acme_authorizations import authorizations, insert_authorizations, standing_of
from ca_server.store.acme_limits import draw
from ca_server.store.acme_tables import acme_accounts, acme_authorizations, acme_order_links, acme_orders
from ca_server.store.certificates import IS_ENROLLMENT, enrollment_parameters, issued_for
from ca_server.store.rows import insert_rows
from ca_server.store.statements import Prepared, is_literally, is_one_of
from ca_server.store.tables import certificates, enrollments, intents, spki_blocklist
from ca_server.store.types import AnyRow
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Order,
    OrderIdentifier,
    OrderStatus,
    sources_of,
)
from protocols.acme.ports import ANY_VALID, AlreadyReplacedError, Lessee, OpenBounds, OrderWork, Reuse, Work
from protocols.acme.star.terms import AutoRenewal

_LINKS = acme_order_links
_PROCESSING = OrderStatus.PROCESSING.value
_MARKED_AT_ONCE = 1_000
_RETRY_AFTER = 300
"""Seconds until an account with too much unfinished should ask again."""

_COUNT_OPEN = Prepared(
    select(func.count())
    .select_from(acme_orders)
    .where(
        acme_orders.c.account_id == bindparam("of_account"),
        # Written out, so that the database sees that its partial index serves.
        literal_column("status IN ('pending', 'ready')"),
        acme_orders.c.expires_at > bindparam("now"),
    )
)
_COUNT_NAMES = Prepared(
    select(func.count())
    .select_from(acme_orders)
    .join(_LINKS, _LINKS.c.order_id == acme_orders.c.id)
    .where(
        acme_orders.c.account_id == bindparam("of_account"),
        literal_column("acme_orders.status IN ('pending', 'ready')"),
        acme_orders.c.expires_at > bindparam("now"),
    )
)
_NEW = (
    "id",
    "account_id",
    "profile",
    "profile_hash",
    "status",
    "created_at",
    "expires_at",
    "not_before",
    "not_after",
    "source",
    "request_id",
    "identifiers",
    "authorization_ids",
    "replaces",
    "auto_renewal",
)
_INSERT = Prepared(insert(acme_orders).values({name: bindparam(name) for name in _NEW}))
_INSERT_LINKS = insert_rows(_LINKS)
_BY_ID = Prepared(select(acme_orders).where(acme_orders.c.id == bindparam("order_id")))
_BEGIN_FINALIZE = Prepared(
    update(acme_orders)
    .where(
        acme_orders.c.id == bindparam("order_id"),
        is_one_of(acme_orders.c.status, sources_of(OrderStatus.PROCESSING)),
    )
    .values(
        status=_PROCESSING,
        csr=bindparam("with_csr"),
        lease_holder=bindparam("for_holder"),
        lease_until=bindparam("until"),
    )
)
_NEEDS_IT = acme_orders.c.id.in_(
    select(_LINKS.c.order_id).where(_LINKS.c.authorization_id == bindparam("authorization_id"))
)
_MAKE_READY = Prepared(
    update(acme_orders)
    .where(
        _NEEDS_IT,
        is_one_of(acme_orders.c.status, sources_of(OrderStatus.READY)),
        ~exists(
            select(_LINKS.c.order_id)
            .join(acme_authorizations, acme_authorizations.c.id == _LINKS.c.authorization_id)
            .where(
                _LINKS.c.order_id == acme_orders.c.id,
                acme_authorizations.c.status != AuthorizationStatus.VALID.value,
            )
        ),
    )
    .values(status=OrderStatus.READY.value)
)
IS_ITS_KEY = spki_blocklist.c.spki_sha256 == acme_accounts.c.spki_sha256
KEY_BLOCKED = spki_blocklist.c.spki_sha256.is_not(None).label("key_blocked")
"""Of an account that is joined by IS_ITS_KEY to the blocklist: whether its key is there."""
_ACCOUNT = Prepared(
    select(acme_accounts.c.status, acme_accounts.c.eab_kid, KEY_BLOCKED)
    .outerjoin(spki_blocklist, IS_ITS_KEY)
    .where(acme_accounts.c.id == bindparam("account_id"))
)
_IS_LIVE = Prepared(
    select(intents.c.id)
    .join(enrollments, enrollments.c.id == intents.c.enrollment_id)
    .where(IS_ENROLLMENT, is_literally(intents.c.state, "reserved"))
)


def enrollment_key(profile: str, account_id: str, order_id: str, tenant: str) -> EnrollmentKey:
    """The enrollment of an order: one order, one enrollment, one certificate."""
    return EnrollmentKey(Protocol.ACME, profile, account_id, order_id, tenant=tenant)


# --- New orders ---------------------------------------------------------------------------------------------------


def insert_order(
    connection: Connection,
    order: Order,
    candidates: Sequence[Authorization],
    bounds: OpenBounds,
    tenant: str,
    reuse: Reuse | None = ANY_VALID,
    afresh: Collection[str] = (),
) -> Order:
    """Create an order, with valid authorizations of the account reused. RATE_LIMITED, AlreadyReplacedError.

    The number of statements hardly grows with the number of names. Orders that replace one certificate are all of
    one account, and so one is made after the other.
    """
    planned = plan_order(connection, order, candidates, bounds, tenant, reuse, afresh)
    insert_authorizations(connection, planned.made)
    _INSERT.execute(connection, _order_values(planned.order))
    _INSERT_LINKS.execute(
        connection,
        [
            {"order_id": order.id, "position": position, "authorization_id": authorization_id}
            for position, authorization_id in enumerate(planned.order.authorization_ids)
        ],
    )
    return planned.order


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """An order with its authorizations, of which those in `made` are yet to be created."""

    order: Order
    made: tuple[Authorization, ...]


def plan_order(
    connection: Connection,
    order: Order,
    candidates: Sequence[Authorization],
    bounds: OpenBounds,
    tenant: str,
    reuse: Reuse | None,
    afresh: Collection[str],
    take: Callable[[Connection, Sequence[Draw], datetime], None] = draw,
) -> PlannedOrder:
    """What `insert_order` is to insert, decided; `take` has the bounds' draws. Raises as `insert_order`."""
    _check_bounds(connection, order, len(candidates), bounds)
    if order.replaces is not None and is_replaced(connection, order.replaces, order.created_at, tenant):
        raise AlreadyReplacedError
    take(connection, bounds.draws, order.created_at)
    names = [item.identifier for item in order.identifiers]
    standing = None
    if reuse is not None:
        standing = standing_of(connection, order.account_id, names, order.created_at, reuse)
    # By id, in the order of the names: one may be for several.
    chosen: dict[str, Authorization | None] = {}
    expires_at = order.expires_at
    for name, candidate in zip(names, candidates, strict=True):
        found = None if standing is None else standing.of(name)
        if found is None or candidate.id in afresh:
            chosen[candidate.id] = candidate
        else:
            # What the order stands on must not expire before it.
            chosen[found[0]] = None
            expires_at = min(expires_at, found[1])
    made = tuple(candidate for candidate in chosen.values() if candidate is not None)
    status = OrderStatus.PENDING if made else OrderStatus.READY
    planned = replace(order, status=status, expires_at=expires_at, authorization_ids=tuple(chosen))
    return PlannedOrder(planned, made)


def is_replaced(connection: Connection, certid: str, now: datetime, tenant: str) -> bool:
    """Whether some order replaces a certificate: one that may yet be issued, or that has a certificate.

    What `Order.status_at` tells a client decides, not the status as stored.
    """
    unfinished = acme_orders.c.status.in_((OrderStatus.PENDING.value, OrderStatus.READY.value))
    holds = or_(
        and_(unfinished, acme_orders.c.expires_at > now),
        acme_orders.c.status.in_((OrderStatus.PROCESSING.value, OrderStatus.VALID.value)),
        has_certificate(tenant),
    )
    query = select(acme_orders.c.id).where(acme_orders.c.replaces == certid, holds).limit(1)
    return connection.execute(query).first() is not None


def _check_bounds(connection: Connection, order: Order, names: int, bounds: OpenBounds) -> None:
    parameters = {"of_account": order.account_id, "now": order.created_at}
    open_orders = _COUNT_OPEN.execute(connection, parameters).one()[0]
    if open_orders >= bounds.orders:
        raise CaError(
            ErrorKind.RATE_LIMITED,
            f"the account has {open_orders} unfinished orders; finish them, or wait until they expire",
            rule="acme.max_open_orders",
            retry_after=_RETRY_AFTER,
        )
    # One order alone is bounded by its own number of names.
    open_names = _COUNT_NAMES.execute(connection, parameters).one()[0] if open_orders else 0
    if open_names and open_names + names > bounds.names:
        raise CaError(
            ErrorKind.RATE_LIMITED,
            f"the account's unfinished orders have {open_names} names; finish them, or wait until they expire",
            rule="acme.max_open_names",
            retry_after=_RETRY_AFTER,
        )


def _order_values(order: Order) -> dict[str, Any]:
    identifiers = [
        [item.identifier.type.value, item.identifier.value, item.sent]
        + ([] if item.ancestor is None else [item.ancestor.value])
        for item in order.identifiers
    ]
    return {name: getattr(order, name) for name in _NEW} | {
        "status": order.status.value,
        "identifiers": json.dumps(identifiers, separators=(",", ":")).encode(),
        "authorization_ids": json.dumps(order.authorization_ids, separators=(",", ":")).encode(),
        "auto_renewal": None if order.auto_renewal is None else order.auto_renewal.encode(),
    }


# --- Reading ------------------------------------------------------------------------------------------------------


def order_by_id(connection: Connection, order_id: str, tenant: str) -> Order | None:
    """An order with its certificate."""
    row = _BY_ID.execute(connection, {"order_id": order_id}).first()
    if row is None:
        return None
    certificate = None
    if row.csr is not None:
        certificate = issued_for(connection, enrollment_key(row.profile, row.account_id, row.id, tenant))
    return order_of(row, certificate)


def order_of(row: AnyRow, certificate: IssuedCertificate | None) -> Order:
    """Make the value of a row."""
    return Order(
        id=row.id,
        account_id=row.account_id,
        profile=row.profile,
        profile_hash=row.profile_hash,
        status=OrderStatus(row.status),
        identifiers=tuple(_order_identifier(*each) for each in json.loads(row.identifiers)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        not_before=row.not_before,
        not_after=row.not_after,
        csr_der=row.csr,
        error=row.error,
        authorization_ids=tuple(json.loads(row.authorization_ids)),
        certificate=certificate,
        source=row.source,
        request_id=row.request_id,
        lease_until=row.lease_until,
        replaces=row.replaces,
        auto_renewal=None if row.auto_renewal is None else AutoRenewal.decode(row.auto_renewal),
    )


def _order_identifier(kind: str, value: str, sent: str, ancestor: str | None = None) -> OrderIdentifier:
    above = None if ancestor is None else Identifier(IdentifierType.DNS, ancestor)
    return OrderIdentifier(Identifier(IdentifierType(kind), value), sent, above)


def order_work(connection: Connection, order_id: str, tenant: str) -> OrderWork | None:
    """An order with what decides whether it may be issued."""
    order = order_by_id(connection, order_id, tenant)
    if order is None:
        return None
    key = enrollment_key(order.profile, order.account_id, order.id, tenant)
    account = _ACCOUNT.execute(connection, {"account_id": order.account_id}).one()
    return OrderWork(
        order=order,
        account_status=AccountStatus(account.status),
        eab_kid=account.eab_kid,
        key_blocked=account.key_blocked,
        authorizations=authorizations(connection, order.authorization_ids),
        is_live=_IS_LIVE.execute(connection, enrollment_parameters(key)).first() is not None,
    )


def order_ids(connection: Connection, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
    """A page of an account's orders, oldest first. NOT_FOUND where `after` is none of them."""
    query = select(acme_orders.c.id).where(acme_orders.c.account_id == account_id)
    if after is not None:
        own = select(acme_orders.c.number).where(acme_orders.c.id == after, acme_orders.c.account_id == account_id)
        number = connection.execute(own).scalar()
        if number is None:
            raise CaError(ErrorKind.NOT_FOUND, "there is no such page (any more); begin with the first one")
        query = query.where(acme_orders.c.number > number)
    return tuple(connection.execute(query.order_by(acme_orders.c.number).limit(limit)).scalars())


# --- States -------------------------------------------------------------------------------------------------------


def begin_finalize(connection: Connection, order_id: str, csr_der: bytes, lessee: Lessee) -> bool:
    """Take an order to processing with its CSR; false where it stands in no state that leads there."""
    parameters = {
        "order_id": order_id,
        "with_csr": csr_der,
        "for_holder": lessee.holder,
        "until": lessee.until,
    }
    return _BEGIN_FINALIZE.execute(connection, parameters).rowcount == 1


def has_certificate(tenant: str, *conditions: Any) -> Any:
    """The condition that an order has a certificate."""
    return exists(
        select(certificates.c.id)
        .join(enrollments, enrollments.c.id == certificates.c.enrollment_id)
        .where(
            enrollments.c.transaction_key == acme_orders.c.id,
            enrollments.c.requester_scope == acme_orders.c.account_id,
            enrollments.c.protocol == Protocol.ACME.value,
            enrollments.c.profile == acme_orders.c.profile,
            enrollments.c.tenant == tenant,
            enrollments.c.epoch == 0,
            *conditions,
        )
    )


def fail_orders(connection: Connection, which: Any, error: bytes, tenant: str) -> int:
    """Make invalid what has no certificate yet, processing or not; returns how many."""
    return connection.execute(
        update(acme_orders)
        .where(which, acme_orders.c.status.in_(sources_of(OrderStatus.INVALID)), ~has_certificate(tenant))
        .values(status=OrderStatus.INVALID.value, error=error)
    ).rowcount


def fail_processing(connection: Connection, order_id: str, error: bytes, tenant: str) -> bool:
    """Make a processing order without a certificate invalid."""
    processing = and_(acme_orders.c.id == order_id, acme_orders.c.status == _PROCESSING)
    return fail_orders(connection, processing, error, tenant) == 1


def of_authorization(authorization_id: str) -> Any:
    """The condition that an order needs an authorization."""
    return acme_orders.c.id.in_(select(_LINKS.c.order_id).where(_LINKS.c.authorization_id == authorization_id))


def make_ready(connection: Connection, authorization_id: str) -> None:
    """Move the orders that waited for this authorization alone: all of theirs are valid now."""
    _MAKE_READY.execute(connection, {"authorization_id": authorization_id})


# --- Leases -------------------------------------------------------------------------------------------------------


def is_free(table: Table, lessee: Lessee, *, restarted: bool) -> Any:
    """The condition that a lease may be taken: it ran out, or an earlier run of the same process has it."""
    run_out = table.c.lease_until <= lessee.now
    if not restarted:
        return run_out
    earlier = table.c.lease_holder.startswith(lessee.earlier, autoescape=True)
    return or_(run_out, and_(earlier, table.c.lease_holder != lessee.holder))


def claim_orders(
    connection: Connection, lessee: Lessee, limit: int, tenant: str, *, restarted: bool
) -> tuple[Work, ...]:
    """Take over processing orders whose lease is free; those with a certificate are marked valid in passing.

    The mark is housekeeping, off the path of any request: it keeps the index of processing orders small. What another
    process looks at just now is left to it.
    """
    due = and_(is_literally(acme_orders.c.status, _PROCESSING), is_free(acme_orders, lessee, restarted=restarted))
    found = connection.execute(
        select(acme_orders.c.id, acme_orders.c.account_id, has_certificate(tenant).label("issued"))
        .where(due)
        .limit(_MARKED_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    issued = [row.id for row in found if row.issued]
    taken = [Work(row.id, row.account_id) for row in found if not row.issued][:limit]
    if issued:
        connection.execute(
            update(acme_orders)
            .where(acme_orders.c.id.in_(issued), acme_orders.c.status.in_(sources_of(OrderStatus.VALID)))
            .values(status=OrderStatus.VALID.value)
        )
    if taken:
        connection.execute(
            update(acme_orders)
            .where(acme_orders.c.id.in_([work.id for work in taken]))
            .values(lease_holder=lessee.holder, lease_until=lessee.until)
        )
    return tuple(taken)


def prolong_order(connection: Connection, order_id: str, lessee: Lessee) -> bool:
    """Prolong a lease on a processing order."""
    done = connection.execute(
        update(acme_orders)
        .where(
            acme_orders.c.id == order_id,
            acme_orders.c.status == _PROCESSING,
            acme_orders.c.lease_holder == lessee.holder,
        )
        .values(lease_until=lessee.until)
    )
    return done.rowcount == 1
