"""ACME challenges under lease, inside a transaction."""

from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, select, update

from ca_server.store.acme_orders import authorizations, challenge_of, is_free, refresh_orders
from ca_server.store.acme_tables import acme_authorizations, acme_challenges
from ca_server.store.statements import Prepared
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, ChallengeStatus
from protocols.acme.ports import Lessee

_PROCESSING = ChallengeStatus.PROCESSING.value
_BY_ID = Prepared(select(acme_challenges).where(acme_challenges.c.id == bindparam("of_challenge")))
_BEGIN = Prepared(
    update(acme_challenges)
    .where(
        acme_challenges.c.id == bindparam("of_challenge"),
        acme_challenges.c.status == ChallengeStatus.PENDING.value,
        select(acme_authorizations.c.id)
        .where(
            acme_authorizations.c.id == acme_challenges.c.authorization_id,
            acme_authorizations.c.status == AuthorizationStatus.PENDING.value,
            acme_authorizations.c.expires_at > bindparam("now"),
        )
        .exists(),
    )
    .values(status=_PROCESSING, lease_holder=bindparam("for_holder"), lease_until=bindparam("until"))
)
_FINISH = Prepared(
    update(acme_challenges)
    .where(
        acme_challenges.c.id == bindparam("of_challenge"),
        acme_challenges.c.status == _PROCESSING,
        acme_challenges.c.lease_holder == bindparam("of_holder"),
    )
    .values(
        status=bindparam("to_status"),
        error=bindparam("with_error"),
        attempts=acme_challenges.c.attempts + 1,
        validated_at=bindparam("at"),
        lease_holder=None,
        lease_until=None,
    )
    .returning(acme_challenges.c.authorization_id)
)
_IS_PENDING = and_(
    acme_authorizations.c.id == bindparam("of_authorization"),
    acme_authorizations.c.status == AuthorizationStatus.PENDING.value,
)
_MAKE_VALID = Prepared(
    update(acme_authorizations)
    .where(_IS_PENDING)
    .values(status=AuthorizationStatus.VALID.value, expires_at=bindparam("valid_until"))
)
_MAKE_INVALID = Prepared(
    update(acme_authorizations).where(_IS_PENDING).values(status=AuthorizationStatus.INVALID.value)
)


def challenge_by_id(connection: Connection, challenge_id: str) -> tuple[Challenge, Authorization] | None:
    """A challenge with its authorization."""
    row = _BY_ID.execute(connection, {"of_challenge": challenge_id}).first()
    if row is None:
        return None
    (authorization,) = authorizations(connection, [row.authorization_id])
    return challenge_of(row), authorization


def begin_challenge(connection: Connection, challenge_id: str, lessee: Lessee) -> bool:
    """Take a pending challenge of a pending, unexpired authorization to processing."""
    parameters = {
        "of_challenge": challenge_id,
        "now": lessee.now,
        "for_holder": lessee.holder,
        "until": lessee.now + lessee.duration,
    }
    return _BEGIN.execute(connection, parameters).rowcount == 1


def claim_challenges(connection: Connection, lessee: Lessee, limit: int, node: str | None) -> tuple[str, ...]:
    """Take over challenges whose lease ran out, or that another process of `node` holds."""
    due = and_(acme_challenges.c.status == _PROCESSING, is_free(acme_challenges, lessee, node))
    taken = []
    for challenge_id in connection.execute(select(acme_challenges.c.id).where(due).limit(limit)).scalars().all():
        done = connection.execute(
            update(acme_challenges)
            .where(due, acme_challenges.c.id == challenge_id)
            .values(lease_holder=lessee.holder, lease_until=lessee.now + lessee.duration)
        )
        if done.rowcount == 1:
            taken.append(challenge_id)
    return tuple(taken)


def record_attempt(connection: Connection, challenge_id: str, lessee: Lessee, error: bytes) -> bool:
    """Keep what a failed attempt saw; the challenge stays in processing."""
    done = connection.execute(
        update(acme_challenges)
        .where(
            acme_challenges.c.id == challenge_id,
            acme_challenges.c.status == _PROCESSING,
            acme_challenges.c.lease_holder == lessee.holder,
        )
        .values(attempts=acme_challenges.c.attempts + 1, error=error, lease_until=lessee.now + lessee.duration)
    )
    return done.rowcount == 1


def finish_challenge(
    connection: Connection,
    challenge_id: str,
    holder: str,
    error: bytes | None,
    now: datetime,
    valid_until: datetime,
) -> bool:
    """Settle challenge, authorization and waiting orders together."""
    finished = _FINISH.execute(
        connection,
        {
            "of_challenge": challenge_id,
            "of_holder": holder,
            "to_status": (ChallengeStatus.VALID if error is None else ChallengeStatus.INVALID).value,
            "with_error": error,
            "at": now if error is None else None,
        },
    ).first()
    if finished is None:
        return False
    parameters = {"of_authorization": finished.authorization_id}
    if error is None:
        settled = _MAKE_VALID.execute(connection, parameters | {"valid_until": valid_until})
    else:
        settled = _MAKE_INVALID.execute(connection, parameters)
    if settled.rowcount == 1:
        refresh_orders(connection, finished.authorization_id, failed=error is not None)
    return True
