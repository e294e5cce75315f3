"""ACME authorizations with their challenges, inside a transaction.

Most challenges are never begun: until one is, its authorization's row tells all of it. Challenges of authorizations
made before that was so have rows, and ids of their own.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, func, literal_column, select, update

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.store.acme_tables import acme_authorizations, acme_challenges
from ca_server.store.rows import insert_rows
from ca_server.store.statements import Prepared, is_one_of
from ca_server.store.types import AnyRow
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    ChallengeStatus,
    challenge_id,
    sources_of,
)
from protocols.acme.ports import Reuse

_NEW = (
    "id",
    "account_id",
    "type",
    "value",
    "wildcard",
    "status",
    "created_at",
    "expires_at",
    "preauthorized",
    "token",
    "offered",
    "subdomains",
)
_INSERT = insert_rows(acme_authorizations, _NEW)
_BY_ID = Prepared(select(acme_authorizations).where(acme_authorizations.c.id == bindparam("authorization_id")))
_CHALLENGES_OF = Prepared(
    select(acme_challenges)
    .where(acme_challenges.c.authorization_id == bindparam("authorization_id"))
    .order_by(acme_challenges.c.type, acme_challenges.c.id)
)
_MAKE_VALID = Prepared(
    update(acme_authorizations)
    .where(
        acme_authorizations.c.id == bindparam("authorization_id"),
        is_one_of(acme_authorizations.c.status, sources_of(AuthorizationStatus.VALID)),
    )
    .values(status=AuthorizationStatus.VALID.value, expires_at=bindparam("valid_until"), validated_at=bindparam("at"))
)
_BY_IDS = select(acme_authorizations).where(acme_authorizations.c.id.in_(bindparam("ids", expanding=True)))
_CHALLENGES = (
    select(acme_challenges)
    .where(acme_challenges.c.authorization_id.in_(bindparam("ids", expanding=True)))
    .order_by(acme_challenges.c.type, acme_challenges.c.id)
)
_REUSABLE_ALL = select(
    acme_authorizations.c.id,
    acme_authorizations.c.type,
    acme_authorizations.c.value,
    acme_authorizations.c.wildcard,
    acme_authorizations.c.subdomains,
    acme_authorizations.c.expires_at,
).where(
    acme_authorizations.c.account_id == bindparam("of_account"),
    acme_authorizations.c.status == AuthorizationStatus.VALID.value,
    acme_authorizations.c.expires_at > bindparam("until"),
    acme_authorizations.c.validated_at >= bindparam("since"),
)
_REUSABLE = _REUSABLE_ALL.where(acme_authorizations.c.value.in_(bindparam("names", expanding=True)))
_REUSABLE_ONE = Prepared(_REUSABLE_ALL.where(acme_authorizations.c.value == bindparam("name")))

_COUNT_OPEN = Prepared(
    select(func.count())
    .select_from(acme_authorizations)
    .where(
        acme_authorizations.c.account_id == bindparam("of_account"),
        # Written out, so that the database sees that its partial index serves.
        literal_column("preauthorized AND status = 'pending'"),
        acme_authorizations.c.expires_at > bindparam("now"),
    )
)

_BEGINNING = datetime.fromtimestamp(0, UTC)
LEAST_REMAINING = timedelta(minutes=5)
"""An authorization that expires sooner is not reused: it would leave a client no time."""
_RETRY_AFTER = 300
"""Seconds until an account with too much unfinished should ask again."""

Found = tuple[str, datetime]
"""A valid authorization: its id and its expiry."""


class Standing:
    """Valid authorizations of an account, found by what they are for; of each kind the one that lasts longest."""

    def __init__(self, rows: Iterable[AnyRow], *, subdomains: bool) -> None:
        """`subdomains`: those for all names below count for these."""
        self._of_names: dict[tuple[Identifier, bool], Found] = {}
        self._of_domains: dict[Identifier, Found] = {}
        self._subdomains = subdomains
        for row in rows:
            name, found = Identifier(IdentifierType(row.type), row.value), (row.id, row.expires_at)
            _keep(self._of_names, (name, bool(row.wildcard)), found)
            if row.subdomains:
                _keep(self._of_domains, name, found)

    def of(self, name: Identifier, *, subdomains: bool = False) -> Found | None:
        """The authorization for a name, which may be a wildcard's; `subdomains`: for all names below it too."""
        if subdomains:
            return self._of_domains.get(name)
        exactly = self._of_names.get((name.base, name.is_wildcard))
        if exactly is not None or name.is_wildcard or not self._subdomains:
            return exactly
        return next((self._of_domains[each] for each in name.domains_above if each in self._of_domains), None)


def _keep(known: dict[Any, Found], key: object, found: Found) -> None:
    if key not in known or known[key][1] < found[1]:
        known[key] = found


def insert_authorizations(
    connection: Connection, made: Sequence[Authorization], *, preauthorized: bool = False
) -> None:
    """Create authorizations, with pending challenges."""
    _INSERT.execute(
        connection,
        [
            {
                "id": each.id,
                "account_id": each.account_id,
                "type": each.identifier.type.value,
                "value": each.identifier.value,
                "wildcard": each.wildcard,
                "status": each.status.value,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
                "preauthorized": preauthorized,
                "token": each.challenges[0].token,
                "offered": ",".join(challenge.type for challenge in each.challenges),
                "subdomains": each.subdomains,
            }
            for each in made
        ],
    )


def preauthorize(
    connection: Connection, candidate: Authorization, max_open: int, reuse: Reuse
) -> tuple[Authorization, bool]:
    """The account's valid authorization for a name, or else the candidate, created, and whether it was.

    RATE_LIMITED where the account has `max_open` pending ones that it asked for by themselves.
    """
    standing = standing_of(connection, candidate.account_id, [candidate.identifier], candidate.created_at, reuse)
    if (found := standing.of(candidate.identifier, subdomains=candidate.subdomains)) is not None:
        return authorizations(connection, [found[0]])[0], False
    parameters = {"of_account": candidate.account_id, "now": candidate.created_at}
    count = _COUNT_OPEN.execute(connection, parameters).one()[0]
    if count >= max_open:
        raise CaError(
            ErrorKind.RATE_LIMITED,
            f"the account has {count} pending authorizations; finish them, or wait until they expire",
            rule="acme.max_open_authorizations",
            retry_after=_RETRY_AFTER,
        )
    insert_authorizations(connection, [candidate], preauthorized=True)
    return candidate, True


def standing_of(
    connection: Connection, account_id: str, names: Iterable[Identifier], now: datetime, reuse: Reuse
) -> Standing:
    """The account's valid authorizations that may count for these names, and that last for a while yet.

    None of devices: what they attested is one key, and each certificate has its own.
    """
    named = [name for name in names if not name.is_device]
    wanted = {name.base.value for name in named}
    if reuse.subdomains:
        wanted |= {each.value for name in named for each in name.domains_above}
    if not wanted:
        return Standing((), subdomains=False)
    parameters = {
        "of_account": account_id,
        "until": now + LEAST_REMAINING,
        "since": _BEGINNING if reuse.since is None else reuse.since,
    }
    rows: Iterable[Any]
    if len(wanted) == 1:
        rows = _REUSABLE_ONE.execute(connection, parameters | {"name": wanted.pop()})
    else:
        rows = connection.execute(_REUSABLE, parameters | {"names": sorted(wanted)})
    return Standing((row for row in rows if not _is_device(row)), subdomains=reuse.subdomains)


def _is_device(row: AnyRow) -> bool:
    return Identifier(IdentifierType(row.type), row.value).is_device


def authorizations(connection: Connection, ids: Sequence[str]) -> tuple[Authorization, ...]:
    """Authorizations with their challenges, in the order of `ids`."""
    if not ids:
        return ()
    if len(ids) == 1:
        parameter = {"authorization_id": ids[0]}
        row = _BY_ID.execute(connection, parameter).first()
        if row is None:
            return ()
        return (authorization_of(row, [challenge_of(each) for each in _CHALLENGES_OF.execute(connection, parameter)]),)
    parameters = {"ids": list(ids)}
    challenges: dict[str, list[Challenge]] = {}
    for row in connection.execute(_CHALLENGES, parameters):
        challenges.setdefault(row.authorization_id, []).append(challenge_of(row))
    found = {
        row.id: authorization_of(row, challenges.get(row.id, ())) for row in connection.execute(_BY_IDS, parameters)
    }
    return tuple(found[each] for each in ids if each in found)


def make_valid(connection: Connection, authorization_id: str, at: datetime, valid_until: datetime) -> bool:
    """Make an authorization valid; false where it stands in no state that leads there."""
    parameters = {"authorization_id": authorization_id, "at": at, "valid_until": valid_until}
    return _MAKE_VALID.execute(connection, parameters).rowcount == 1


def move_authorization(
    connection: Connection, authorization_id: str, target: AuthorizationStatus, *conditions: Any, **values: object
) -> bool:
    """Take an authorization to another state by the table of transitions; false where none leads there."""
    done = connection.execute(
        update(acme_authorizations)
        .where(
            acme_authorizations.c.id == authorization_id,
            acme_authorizations.c.status.in_(sources_of(target)),
            *conditions,
        )
        .values(status=target.value, **values)
    )
    return done.rowcount == 1


def authorization_of(row: AnyRow, begun: Sequence[Challenge]) -> Authorization:
    """Make the value of a row and of its challenges that have rows."""
    challenges = tuple(begun)
    if row.offered is not None:
        by_type = {each.type: each for each in begun}
        challenges = tuple(
            by_type.get(kind) or Challenge(challenge_id(row.id, kind), row.id, kind, row.token)
            for kind in row.offered.split(",")
        )
    return Authorization(
        id=row.id,
        account_id=row.account_id,
        identifier=Identifier(IdentifierType(row.type), row.value),
        wildcard=row.wildcard,
        status=AuthorizationStatus(row.status),
        created_at=row.created_at,
        expires_at=row.expires_at,
        challenges=challenges,
        subdomains=row.subdomains,
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
        response=row.response,
        evidence=row.evidence,
    )
