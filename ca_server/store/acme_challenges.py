"""ACME challenges under lease, inside a transaction."""

from datetime import datetime

from sqlalchemy import Connection, and_, select, update

from ca_server.store.acme_orders import authorizations, challenge_of, is_free, refresh_orders
from ca_server.store.acme_tables import acme_authorizations, acme_challenges
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, ChallengeStatus
from protocols.acme.ports import Lessee

_PROCESSING = ChallengeStatus.PROCESSING.value


def challenge_by_id(connection: Connection, challenge_id: str) -> tuple[Challenge, Authorization] | None:
    """A challenge with its authorization."""
    row = connection.execute(select(acme_challenges).where(acme_challenges.c.id == challenge_id)).first()
    if row is None:
        return None
    (authorization,) = authorizations(connection, [row.authorization_id])
    return challenge_of(row), authorization


def begin_challenge(connection: Connection, challenge_id: str, lessee: Lessee) -> bool:
    """Take a pending challenge of a pending, unexpired authorization to processing."""
    pending = (
        select(acme_authorizations.c.id)
        .where(
            acme_authorizations.c.id == acme_challenges.c.authorization_id,
            acme_authorizations.c.status == AuthorizationStatus.PENDING.value,
            acme_authorizations.c.expires_at > lessee.now,
        )
        .exists()
    )
    done = connection.execute(
        update(acme_challenges)
        .where(
            acme_challenges.c.id == challenge_id,
            acme_challenges.c.status == ChallengeStatus.PENDING.value,
            pending,
        )
        .values(status=_PROCESSING, lease_holder=lessee.holder, lease_until=lessee.now + lessee.duration)
    )
    return done.rowcount == 1


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
    status = ChallengeStatus.INVALID if error is not None else ChallengeStatus.VALID
    done = connection.execute(
        update(acme_challenges)
        .where(
            acme_challenges.c.id == challenge_id,
            acme_challenges.c.status == _PROCESSING,
            acme_challenges.c.lease_holder == holder,
        )
        .values(
            status=status.value,
            error=error,
            attempts=acme_challenges.c.attempts + 1,
            validated_at=None if error is not None else now,
            lease_holder=None,
            lease_until=None,
        )
    )
    if done.rowcount != 1:
        return False
    authorization_id = connection.execute(
        select(acme_challenges.c.authorization_id).where(acme_challenges.c.id == challenge_id)
    ).scalar_one()
    changed = {"status": AuthorizationStatus.INVALID.value}
    if error is None:
        changed = {"status": AuthorizationStatus.VALID.value, "expires_at": valid_until}  # type: ignore[dict-item]
    settled = connection.execute(
        update(acme_authorizations)
        .where(
            acme_authorizations.c.id == authorization_id,
            acme_authorizations.c.status == AuthorizationStatus.PENDING.value,
        )
        .values(**changed)
    )
    if settled.rowcount == 1:
        refresh_orders(connection, authorization_id, failed=error is not None)
    return True
