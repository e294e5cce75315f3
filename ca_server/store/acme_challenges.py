"""ACME challenges under lease, inside a transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme_accounts import former_thumbprints
from ca_server.store.acme_attempts import insert_attempt
from ca_server.store.acme_authorizations import (
    authorization_of,
    authorizations,
    challenge_of,
    make_valid,
    move_authorization,
)
from ca_server.store.acme_orders import fail_orders, is_free, make_ready, of_authorization
from ca_server.store.acme_tables import acme_accounts, acme_authorizations, acme_challenges
from ca_server.store.statements import Prepared, insert_dialect, is_literally, is_one_of
from protocols.acme.model import (
    DNS_PERSIST,
    Attempt,
    Authorization,
    AuthorizationStatus,
    Challenge,
    ChallengeStatus,
    sources_of,
)
from protocols.acme.ports import ChallengeWork, Lessee, Work

_PROCESSING = ChallengeStatus.PROCESSING.value
_BY_ID = Prepared(select(acme_challenges).where(acme_challenges.c.id == bindparam("challenge_id")))
_THUMBPRINT = select(acme_accounts.c.key_thumbprint).where(acme_accounts.c.id == bindparam("account_id"))
_AUTHORIZATION = select(acme_authorizations).where(acme_authorizations.c.id == bindparam("authorization_id"))
_COUNT_PROCESSING = Prepared(
    select(func.count())
    .select_from(acme_challenges)
    .where(acme_challenges.c.account_id == bindparam("of_account"), is_literally(acme_challenges.c.status, _PROCESSING))
)
_MAY_BEGIN = (
    acme_authorizations.c.status == AuthorizationStatus.PENDING.value,
    acme_authorizations.c.expires_at > bindparam("now"),
)
_NEW = (
    "id",
    "authorization_id",
    "account_id",
    "type",
    "token",
    "status",
    "attempts",
    "lease_holder",
    "lease_until",
    "response",
)
_BEGUN = select(
    bindparam("challenge_id", type_=acme_challenges.c.id.type),
    acme_authorizations.c.id,
    acme_authorizations.c.account_id,
    bindparam("type", type_=acme_challenges.c.type.type),
    acme_authorizations.c.token,
    literal(_PROCESSING),
    literal_column("1"),
    bindparam("for_holder", type_=acme_challenges.c.lease_holder.type),
    bindparam("until", type_=acme_challenges.c.lease_until.type),
    bindparam("with_response", type_=acme_challenges.c.response.type),
).where(acme_authorizations.c.id == bindparam("authorization_id"), *_MAY_BEGIN)
_BEGIN = Prepared(
    {
        insert_dialect(of_dialect): of_dialect.from_select(_NEW, _BEGUN).on_conflict_do_nothing()
        for of_dialect in (sqlite.insert(acme_challenges), postgresql.insert(acme_challenges))
    }
)
_BEGIN_OLD = Prepared(
    update(acme_challenges)
    .where(
        acme_challenges.c.id == bindparam("challenge_id"),
        is_one_of(acme_challenges.c.status, sources_of(ChallengeStatus.PROCESSING)),
        select(acme_authorizations.c.id)
        .where(acme_authorizations.c.id == acme_challenges.c.authorization_id, *_MAY_BEGIN)
        .exists(),
    )
    .values(
        status=_PROCESSING,
        attempts=1,
        lease_holder=bindparam("for_holder"),
        lease_until=bindparam("until"),
        response=bindparam("with_response"),
    )
)


def _finish(target: ChallengeStatus, *conditions: Any) -> Prepared:
    return Prepared(
        update(acme_challenges)
        .where(
            acme_challenges.c.id == bindparam("challenge_id"),
            is_one_of(acme_challenges.c.status, sources_of(target)),
            acme_challenges.c.lease_holder == bindparam("of_holder"),
            *conditions,
        )
        .values(
            status=target.value,
            error=bindparam("with_error"),
            validated_at=bindparam("at"),
            # An attestation tells more of a device than is needed once it was looked at.
            response=None,
            evidence=bindparam("with_evidence"),
            lease_holder=None,
            lease_until=None,
        )
    )


_FINISH_VALID = _finish(
    ChallengeStatus.VALID,
    select(acme_authorizations.c.id)
    .where(
        acme_authorizations.c.id == bindparam("authorization_id"),
        is_one_of(acme_authorizations.c.status, sources_of(AuthorizationStatus.VALID)),
        acme_authorizations.c.expires_at > bindparam("now"),
    )
    .exists(),
)
_FINISH_INVALID = _finish(ChallengeStatus.INVALID)


def challenge_by_id(connection: Connection, challenge_id: str) -> tuple[Challenge, Authorization] | None:
    """A challenge with its authorization."""
    authorization_id, kind = _parts(challenge_id)
    if not kind:
        row = _BY_ID.execute(connection, {"challenge_id": challenge_id}).first()
        authorization_id = "" if row is None else row.authorization_id
    for authorization in authorizations(connection, [authorization_id]):
        for challenge in authorization.challenges:
            if challenge.id == challenge_id:
                return challenge, authorization
    return None


def _parts(challenge_id: str) -> tuple[str, str]:
    """Authorization and type; without a type where the id is of a challenge that always had a row."""
    authorization_id, _, kind = challenge_id.partition("/")
    return authorization_id, kind


def challenge_work(connection: Connection, challenge_id: str) -> ChallengeWork | None:
    """A challenge in processing with what its validation needs."""
    row = _BY_ID.execute(connection, {"challenge_id": challenge_id}).first()
    if row is None or row.status != _PROCESSING:
        return None
    of = connection.execute(_AUTHORIZATION, {"authorization_id": row.authorization_id}).one()
    thumbprint = connection.execute(_THUMBPRINT, {"account_id": of.account_id}).scalar_one()
    former = former_thumbprints(connection, of.account_id) if row.type == DNS_PERSIST else ()
    return ChallengeWork(challenge_of(row), authorization_of(of, ()), thumbprint, former)


def begin_challenge(
    connection: Connection,
    account_id: str,
    challenge_id: str,
    lessee: Lessee,
    max_processing: int,
    response: bytes | None,
) -> bool:
    """Take a pending challenge of a pending, unexpired authorization to processing. RATE_LIMITED at the maximum."""
    if _COUNT_PROCESSING.execute(connection, {"of_account": account_id}).one()[0] >= max_processing:
        raise CaError(
            ErrorKind.RATE_LIMITED,
            f"{max_processing} challenges of the account are being validated; wait for some of them",
            rule="acme.max_validations",
            retry_after=10,
        )
    parameters = {
        "challenge_id": challenge_id,
        "now": lessee.now,
        "for_holder": lessee.holder,
        "until": lessee.until,
        "with_response": response,
    }
    authorization_id, kind = _parts(challenge_id)
    if not kind:
        return _BEGIN_OLD.execute(connection, parameters).rowcount == 1
    parameters |= {"authorization_id": authorization_id, "type": kind}
    return _BEGIN.execute(connection, parameters).rowcount == 1


def claim_challenges(
    connection: Connection, lessee: Lessee, limit: int, error: bytes, *, restarted: bool
) -> tuple[Work, ...]:
    """Take over challenges whose lease is free, the accounts in turn; give up those that can't succeed any more."""
    due = and_(
        is_literally(acme_challenges.c.status, _PROCESSING), is_free(acme_challenges, lessee, restarted=restarted)
    )
    turns = (
        select(
            acme_challenges.c.id,
            func.row_number()
            .over(partition_by=acme_challenges.c.account_id, order_by=acme_challenges.c.lease_until)
            .label("turn"),
        )
        .where(due)
        .subquery()
    )
    first = select(turns.c.id).order_by(turns.c.turn, turns.c.id).limit(limit)
    ids = connection.execute(first).scalars().all()
    if not ids:
        return ()
    found = connection.execute(
        select(
            acme_challenges.c.id,
            acme_challenges.c.account_id,
            acme_challenges.c.attempts,
            acme_authorizations.c.status,
            acme_authorizations.c.expires_at,
        )
        .join(acme_authorizations, acme_authorizations.c.id == acme_challenges.c.authorization_id)
        .where(acme_challenges.c.id.in_(ids), due)
        .with_for_update(skip_locked=True, of=acme_challenges)
    ).all()
    taken, given_up = [], []
    for row in found:
        if row.status == AuthorizationStatus.PENDING.value and row.expires_at > lessee.now:
            taken.append(Work(row.id, row.account_id, row.attempts + 1))
        else:
            given_up.append(row.id)
    if taken:
        connection.execute(
            update(acme_challenges)
            .where(acme_challenges.c.id.in_([work.id for work in taken]))
            .values(attempts=acme_challenges.c.attempts + 1, lease_holder=lessee.holder, lease_until=lessee.until)
        )
    if given_up:
        connection.execute(
            update(acme_challenges)
            .where(
                acme_challenges.c.id.in_(given_up), acme_challenges.c.status.in_(sources_of(ChallengeStatus.INVALID))
            )
            .values(
                status=ChallengeStatus.INVALID.value, error=error, lease_holder=None, lease_until=None, response=None
            )
        )
    return tuple(taken)


def keep_challenges(connection: Connection, lessee: Lessee, challenge_ids: Sequence[str]) -> frozenset[str]:
    """Prolong the leases that the holder still has."""
    own = and_(
        acme_challenges.c.id.in_(challenge_ids),
        acme_challenges.c.status == _PROCESSING,
        acme_challenges.c.lease_holder == lessee.holder,
    )
    locked = select(acme_challenges.c.id).where(own).order_by(acme_challenges.c.id).with_for_update()
    kept = frozenset(connection.execute(locked).scalars())
    connection.execute(update(acme_challenges).where(acme_challenges.c.id.in_(kept)).values(lease_until=lessee.until))
    return kept


def record_attempt(
    connection: Connection, challenge_id: str, lessee: Lessee, error: bytes, attempt: Attempt | None
) -> bool:
    """Keep what a failed attempt saw, and count the next; the challenge stays in processing."""
    done = connection.execute(
        update(acme_challenges)
        .where(
            acme_challenges.c.id == challenge_id,
            acme_challenges.c.status == _PROCESSING,
            acme_challenges.c.lease_holder == lessee.holder,
        )
        .values(attempts=acme_challenges.c.attempts + 1, error=error, lease_until=lessee.until)
    )
    if done.rowcount != 1:
        return False
    if attempt is not None:
        insert_attempt(connection, challenge_id, attempt)
    return True


def finish_challenge(
    connection: Connection,
    work: ChallengeWork,
    holder: str,
    error: bytes | None,
    now: datetime,
    valid_until: datetime,
    tenant: str,
    evidence: bytes | None,
    attempt: Attempt | None,
) -> bool:
    """Settle challenge, authorization and waiting orders together."""
    authorization_id = work.authorization.id
    parameters = {
        "challenge_id": work.challenge.id,
        "of_holder": holder,
        "with_error": error,
        "at": now if error is None else None,
        "with_evidence": evidence,
    }
    if error is None:
        done = _FINISH_VALID.execute(connection, parameters | {"authorization_id": authorization_id, "now": now})
    else:
        done = _FINISH_INVALID.execute(connection, parameters)
    if done.rowcount != 1:
        return False
    if attempt is not None:
        insert_attempt(connection, work.challenge.id, attempt)
    if error is None:
        make_valid(connection, authorization_id, now, valid_until)
        make_ready(connection, authorization_id)
    # An authorization that another challenge made valid stays so.
    elif move_authorization(connection, authorization_id, AuthorizationStatus.INVALID):
        fail_orders(connection, of_authorization(authorization_id), error, tenant)
    return True
