"""Attempts at ACME challenges, inside a transaction: written once, with what came of them, and never changed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, select

from ca_server.store.acme_tables import acme_attempts, acme_challenges
from ca_server.store.rows import insert_rows
from protocols.acme.model import Attempt

_INSERT: Final = insert_rows(acme_attempts)
_OF_CHALLENGES: Final = (
    select(acme_attempts)
    .where(acme_attempts.c.challenge_id.in_(bindparam("ids", expanding=True)))
    .order_by(acme_attempts.c.challenge_id, acme_attempts.c.number)
)
_LINE: Final = "\n"
_MILLISECOND: Final = timedelta(milliseconds=1)


def insert_attempt(connection: Connection, challenge_id: str, attempt: Attempt) -> None:
    """Keep an attempt. IntegrityError where the challenge has one of this number."""
    row = {
        "challenge_id": challenge_id,
        "number": attempt.number,
        "started_at": attempt.started_at,
        "milliseconds": attempt.duration // _MILLISECOND,
        "front": attempt.front,
        "seen": _LINE.join(attempt.seen),
        "outcome": attempt.outcome,
        "detail": attempt.detail,
    }
    _INSERT.execute(connection, [row])


def attempts_of(connection: Connection, challenge_ids: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """Attempts by challenge, in the order in which they were made; nothing for challenges without one."""
    found: dict[str, tuple[Attempt, ...]] = {}
    for row in connection.execute(_OF_CHALLENGES, {"ids": list(challenge_ids)}):
        attempt = Attempt(
            number=row.number,
            started_at=row.started_at,
            duration=row.milliseconds * _MILLISECOND,
            front=row.front,
            seen=tuple(row.seen.split(_LINE)) if row.seen else (),
            outcome=row.outcome,
            detail=row.detail,
        )
        found[row.challenge_id] = (*found.get(row.challenge_id, ()), attempt)
    return found


def forget_attempts(connection: Connection, of_challenges: Any) -> None:
    """Delete the attempts at challenges that meet a condition."""
    challenges = select(acme_challenges.c.id).where(of_challenges)
    connection.execute(delete(acme_attempts).where(acme_attempts.c.challenge_id.in_(challenges)))
