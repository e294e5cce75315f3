"""ACME orders and authorizations, inside a transaction."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Table,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from ca_server.domain.enrollment import EnrollmentKey, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.store.acme_tables import (
    acme_authorizations,
    acme_challenges,
    acme_order_links,
    acme_orders,
)
from ca_server.store.certificates import issued_for
from ca_server.store.statements import Prepared
from ca_server.store.tables import certificates, enrollments
from ca_server.store.types import AnyRow
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    ChallengeStatus,
    Order,
    OrderIdentifier,
    OrderStatus,
    sources_of,
)
from protocols.acme.ports import Lessee

_LINKS = acme_order_links
_OPEN = (OrderStatus.PENDING.value, OrderStatus.READY.value)
_LEAST_REMAINING = timedelta(minutes=5)
"""An authorization that expires sooner is not reused: its order would leave a client no time."""


def _insertion(table: Table, *without: str) -> Prepared:
    return Prepared(
        insert(table).values({name: bindparam(name) for name in table.columns.keys() if name not in without})  # noqa: SIM118
    )


def _is_one_of(column: Any, values: Iterable[str]) -> Any:
    """`IN` with constants, for prepared statements."""
    return or_(*(column == value for value in values))


_COUNT_OPEN = Prepared(
    select(func.count().label("open_orders"))
    .select_from(acme_orders)
    .where(
        acme_orders.c.account_id == bindparam("of_account"),
        # Written out, not bound: so the database sees that its partial index serves.
        literal_column("status IN ('pending', 'ready')"),
        acme_orders.c.expires_at > bindparam("now"),
    )
)
_INSERT_ORDER = _insertion(acme_orders, "number", "lease_holder", "lease_until", "csr", "error")
_INSERT_LINK = _insertion(_LINKS)
_INSERT_AUTHORIZATION = _insertion(acme_authorizations)
_INSERT_CHALLENGE = _insertion(acme_challenges, "validated_at", "lease_holder", "lease_until", "error")
_REUSABLE = Prepared(
    select(acme_authorizations.c.id, acme_authorizations.c.expires_at)
    .where(
        acme_authorizations.c.account_id == bindparam("of_account"),
        acme_authorizations.c.value == bindparam("of_value"),
        acme_authorizations.c.type == bindparam("of_type"),
        acme_authorizations.c.wildcard == bindparam("is_wildcard"),
        acme_authorizations.c.status == AuthorizationStatus.VALID.value,
        acme_authorizations.c.expires_at > bindparam("until"),
    )
    .order_by(acme_authorizations.c.expires_at.desc())
    .limit(literal_column("1"))
    .with_for_update(read=True)
)
_ORDER = Prepared(select(acme_orders).where(acme_orders.c.id == bindparam("of_order")))
_LINKS_OF = Prepared(
    select(_LINKS.c.authorization_id).where(_LINKS.c.order_id == bindparam("of_order")).order_by(_LINKS.c.position)
)
_AUTHORIZATION = Prepared(select(acme_authorizations).where(acme_authorizations.c.id == bindparam("of_authorization")))
_CHALLENGES_OF = Prepared(
    select(acme_challenges)
    .where(acme_challenges.c.authorization_id == bindparam("of_authorization"))
    .order_by(acme_challenges.c.type, acme_challenges.c.id)
)
_BEGIN_FINALIZE = Prepared(
    update(acme_orders)
    .where(
        acme_orders.c.id == bindparam("of_order"),
        _is_one_of(acme_orders.c.status, sources_of(OrderStatus.PROCESSING)),
    )
    .values(
        status=OrderStatus.PROCESSING.value,
        csr=bindparam("with_csr"),
        lease_holder=bindparam("for_holder"),
        lease_until=bindparam("until"),
    )
)
_WAITING = select(_LINKS.c.order_id).where(_LINKS.c.authorization_id == bindparam("of_authorization"))
_LOCK_WAITING = (
    select(acme_orders.c.id).where(acme_orders.c.id.in_(_WAITING)).order_by(acme_orders.c.id).with_for_update()
)
_INVALIDATE_WAITING = Prepared(
    update(acme_orders)
    .where(acme_orders.c.id.in_(_WAITING), _is_one_of(acme_orders.c.status, _OPEN))
    .values(status=OrderStatus.INVALID.value)
)
_UNFINISHED = exists(
    select(_LINKS.c.order_id)
    .join(acme_authorizations, acme_authorizations.c.id == _LINKS.c.authorization_id)
    .where(
        _LINKS.c.order_id == acme_orders.c.id,
        acme_authorizations.c.status != AuthorizationStatus.VALID.value,
    )
)
_READY_WAITING = Prepared(
    update(acme_orders)
    .where(acme_orders.c.id.in_(_WAITING), acme_orders.c.status == OrderStatus.PENDING.value, ~_UNFINISHED)
    .values(status=OrderStatus.READY.value)
)


def enrollment_key(profile: str, account_id: str, order_id: str, tenant: str) -> EnrollmentKey:
    """The enrollment of an order: one order, one enrollment, one certificate."""
    return EnrollmentKey(Protocol.ACME, profile, account_id, order_id, tenant=tenant)


# --- Orders -------------------------------------------------------------------------------------------------------


def insert_order(connection: Connection, order: Order, candidates: Sequence[Authorization], max_open: int) -> Order:
    """Create an order, with valid authorizations of the account reused. RATE_LIMITED at `max_open`."""
    parameters = {"of_account": order.account_id, "now": order.created_at}
    open_orders: int = _COUNT_OPEN.execute(connection, parameters).one().open_orders
    if open_orders >= max_open:
        raise CaError(
            ErrorKind.RATE_LIMITED,
            f"the account has {open_orders} unfinished orders; finish them, or wait until they expire",
            rule="acme.max_open_orders",
            retry_after=300,
        )
    chosen = []
    all_valid = True
    expires_at = order.expires_at
    for candidate in candidates:
        standing = _reusable(connection, candidate, order.created_at + _LEAST_REMAINING)
        if standing is None:
            insert_authorization(connection, candidate)
            all_valid = False
            chosen.append(candidate.id)
        else:
            # What the order stands on must not expire before it: nothing looks at an authorization again.
            expires_at = min(expires_at, standing.expires_at)
            chosen.append(standing.id)
    created = replace(
        order,
        status=OrderStatus.READY if all_valid else OrderStatus.PENDING,
        expires_at=expires_at,
        authorization_ids=tuple(chosen),
    )
    _INSERT_ORDER.execute(connection, _order_values(created))
    links = [
        {"order_id": order.id, "position": position, "authorization_id": authorization_id}
        for position, authorization_id in enumerate(chosen)
    ]
    _INSERT_LINK.execute_many(connection, links)
    return created


def _order_values(order: Order) -> dict[str, Any]:
    identifiers = [[item.identifier.type.value, item.identifier.value, item.sent] for item in order.identifiers]
    return {
        "id": order.id,
        "account_id": order.account_id,
        "profile": order.profile,
        "profile_hash": order.profile_hash,
        "status": order.status.value,
        "created_at": order.created_at,
        "expires_at": order.expires_at,
        "not_before": order.not_before,
        "not_after": order.not_after,
        "source": order.source,
        "request_id": order.request_id,
        "identifiers": json.dumps(identifiers, separators=(",", ":")).encode(),
    }


def _reusable(connection: Connection, candidate: Authorization, until: datetime) -> Any | None:
    """A valid authorization for the same name; it is not deactivated before this transaction ends."""
    return _REUSABLE.execute(
        connection,
        {
            "of_account": candidate.account_id,
            "of_value": candidate.identifier.value,
            "of_type": candidate.identifier.type.value,
            "is_wildcard": candidate.wildcard,
            "until": until,
        },
    ).first()


def order_by_id(connection: Connection, order_id: str, tenant: str) -> Order | None:
    """An order with its authorizations and certificate."""
    row = _ORDER.execute(connection, {"of_order": order_id}).first()
    if row is None:
        return None
    links = authorization_ids_of(connection, order_id)
    certificate = None
    if row.status in {OrderStatus.PROCESSING.value, OrderStatus.VALID.value}:
        certificate = issued_for(connection, enrollment_key(row.profile, row.account_id, row.id, tenant))
    return Order(
        id=row.id,
        account_id=row.account_id,
        profile=row.profile,
        profile_hash=row.profile_hash,
        status=OrderStatus(row.status),
        identifiers=tuple(
            OrderIdentifier(Identifier(IdentifierType(kind), value), sent)
            for kind, value, sent in json.loads(row.identifiers)
        ),
        created_at=row.created_at,
        expires_at=row.expires_at,
        not_before=row.not_before,
        not_after=row.not_after,
        csr_der=row.csr,
        error=row.error,
        authorization_ids=links,
        certificate=certificate,
        source=row.source,
        request_id=row.request_id,
        lease_until=row.lease_until,
    )


def order_ids(connection: Connection, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
    """A page of an account's orders, oldest first."""
    query = select(acme_orders.c.id).where(acme_orders.c.account_id == account_id)
    if after is not None:
        number = select(acme_orders.c.number).where(acme_orders.c.id == after).scalar_subquery()
        query = query.where(acme_orders.c.number > number)
    return tuple(connection.execute(query.order_by(acme_orders.c.number).limit(limit)).scalars())


def begin_finalize(connection: Connection, order_id: str, csr_der: bytes, lessee: Lessee) -> bool:
    """Take an order to processing with its CSR; false where it stands in no state that leads there."""
    parameters = {
        "of_order": order_id,
        "with_csr": csr_der,
        "for_holder": lessee.holder,
        "until": lessee.now + lessee.duration,
    }
    return _BEGIN_FINALIZE.execute(connection, parameters).rowcount == 1


def _has_certificate(tenant: str) -> Any:
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
        )
    )


def is_free(table: Table, lessee: Lessee, node: str | None) -> Any:
    """The condition that a lease may be taken: it ran out, or another process of `node` has it, which is restarted."""
    run_out = table.c.lease_until <= lessee.now
    if node is None:
        return run_out
    own = table.c.lease_holder.startswith(f"{node}/", autoescape=True)
    return or_(run_out, and_(own, table.c.lease_holder != lessee.holder))


def claim_orders(connection: Connection, lessee: Lessee, limit: int, tenant: str, node: str | None) -> tuple[str, ...]:
    """Take over processing orders whose lease is free; those with a certificate are marked valid in passing.

    The mark is housekeeping, off the path of any request: it keeps the index of processing orders small.
    """
    due = and_(acme_orders.c.status == OrderStatus.PROCESSING.value, is_free(acme_orders, lessee, node))
    connection.execute(update(acme_orders).where(due, _has_certificate(tenant)).values(status=OrderStatus.VALID.value))
    ids = tuple(connection.execute(select(acme_orders.c.id).where(due).limit(limit)).scalars())
    taken = []
    for order_id in ids:
        done = connection.execute(
            update(acme_orders)
            .where(due, acme_orders.c.id == order_id)
            .values(lease_holder=lessee.holder, lease_until=lessee.now + lessee.duration)
        )
        if done.rowcount == 1:
            taken.append(order_id)
    return tuple(taken)


def prolong_order(connection: Connection, order_id: str, lessee: Lessee) -> bool:
    """Prolong a lease on a processing order."""
    done = connection.execute(
        update(acme_orders)
        .where(
            acme_orders.c.id == order_id,
            acme_orders.c.status == OrderStatus.PROCESSING.value,
            acme_orders.c.lease_holder == lessee.holder,
        )
        .values(lease_until=lessee.now + lessee.duration)
    )
    return done.rowcount == 1


def fail_order(connection: Connection, order_id: str, error: bytes, tenant: str) -> bool:
    """Make a processing order without a certificate invalid."""
    done = connection.execute(
        update(acme_orders)
        .where(
            acme_orders.c.id == order_id,
            acme_orders.c.status == OrderStatus.PROCESSING.value,
            ~_has_certificate(tenant),
        )
        .values(status=OrderStatus.INVALID.value, error=error)
    )
    return done.rowcount == 1


# --- Authorizations -----------------------------------------------------------------------------------------------


def insert_authorization(connection: Connection, authorization: Authorization) -> None:
    """Create an authorization with its challenges."""
    _INSERT_AUTHORIZATION.execute(
        connection,
        {
            "id": authorization.id,
            "account_id": authorization.account_id,
            "type": authorization.identifier.type.value,
            "value": authorization.identifier.value,
            "wildcard": authorization.wildcard,
            "status": authorization.status.value,
            "created_at": authorization.created_at,
            "expires_at": authorization.expires_at,
        },
    )
    _INSERT_CHALLENGE.execute_many(
        connection,
        [
            {
                "id": challenge.id,
                "authorization_id": challenge.authorization_id,
                "type": challenge.type,
                "token": challenge.token,
                "status": challenge.status.value,
                "attempts": 0,
            }
            for challenge in authorization.challenges
        ],
    )


def authorizations(connection: Connection, ids: Sequence[str]) -> tuple[Authorization, ...]:
    """Authorizations with their challenges, in the order of `ids`."""
    if len(ids) == 1:
        row = _AUTHORIZATION.execute(connection, {"of_authorization": ids[0]}).first()
        if row is None:
            return ()
        challenges_of = _CHALLENGES_OF.execute(connection, {"of_authorization": ids[0]})
        return (authorization_of(row, tuple(map(challenge_of, challenges_of))),)
    return _many_authorizations(connection, ids)


def _many_authorizations(connection: Connection, ids: Sequence[str]) -> tuple[Authorization, ...]:
    if not ids:
        return ()
    challenges: dict[str, list[Challenge]] = {}
    rows = connection.execute(
        select(acme_challenges)
        .where(acme_challenges.c.authorization_id.in_(ids))
        .order_by(acme_challenges.c.type, acme_challenges.c.id)
    )
    for row in rows:
        challenges.setdefault(row.authorization_id, []).append(challenge_of(row))
    found = {
        row.id: authorization_of(row, tuple(challenges.get(row.id, ())))
        for row in connection.execute(select(acme_authorizations).where(acme_authorizations.c.id.in_(ids)))
    }
    return tuple(found[each] for each in ids if each in found)


def authorization_ids_of(connection: Connection, order_id: str) -> tuple[str, ...]:
    """Ids of an order's authorizations, in order."""
    return _LINKS_OF.execute(connection, {"of_order": order_id}).scalars()


def authorization_of(row: AnyRow, challenges: tuple[Challenge, ...]) -> Authorization:
    """Make the value of a row."""
    return Authorization(
        id=row.id,
        account_id=row.account_id,
        identifier=Identifier(IdentifierType(row.type), row.value),
        wildcard=row.wildcard,
        status=AuthorizationStatus(row.status),
        created_at=row.created_at,
        expires_at=row.expires_at,
        challenges=challenges,
    )


def challenge_of(row: AnyRow) -> Challenge:
    """Make the value of a row."""
    return Challenge(
        id=row.id,
        authorization_id=row.authorization_id,
        type=row.type,
        token=row.token,
        status=ChallengeStatus(row.status),
        validated_at=row.validated_at,
        error=row.error,
        attempts=row.attempts,
    )


def refresh_orders(connection: Connection, authorization_id: str, *, failed: bool) -> None:
    """Move the open orders of an authorization that changed: all valid makes ready, one lost makes invalid."""
    parameters = {"of_authorization": authorization_id}
    # Two authorizations of one order that are settled at once, by two nodes, would each see the other unfinished:
    # the second waits for the first here. SQLite has one writer.
    if connection.dialect.name != "sqlite":
        connection.execute(_LOCK_WAITING, parameters)
    (_INVALIDATE_WAITING if failed else _READY_WAITING).execute(connection, parameters)
