"""Quotas of external account keys: counted in the transaction that reserves a certificate, under the key's lock.

A certificate counts from its reservation until it expires or is revoked; on hold it keeps its place. A renewal, that is
a certificate of the same account for the same names as one that is inside its window (RFC 9773) and that no other
renews, takes that one's place: it is not taken from the rate, and of the two one counts. What renews what is on record
here, in rows that the core alone writes; clients need not say `replaces`.

How many are live is counted when a bound on it (`live_bound`) that grows with each is at the quota, and seldom else: it
falls by itself, as certificates expire and are revoked, and nothing but a reservation makes it grow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Integer, bindparam, exists, func, insert, or_, select, type_coerce, update

from ca_server.domain.bindings import EabKey
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.enrollment import EnrollmentKey, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.rates import Rate, admit
from ca_server.store.acme_tables import acme_accounts
from ca_server.store.certificates import SELECT_RECORDS, records_of
from ca_server.store.eab_rows import read_key
from ca_server.store.incidents import incident_of
from ca_server.store.statements import Prepared, is_literally
from ca_server.store.tables import certificate_names, certificates, eab_keys, eab_renewals, enrollments, intents
from protocols.acme.renewal_window import is_due

_ACME: Final = Protocol.ACME.value
_MICROSECOND: Final = timedelta(microseconds=1)

_successors = certificates.alias("successors")
# What renews a certificate has one itself, or is about to.
_IS_RENEWED = exists(
    select(eab_renewals.c.certificate_id).where(
        eab_renewals.c.certificate_id == certificates.c.id,
        exists(
            select(_successors.c.id).where(
                _successors.c.enrollment_id == eab_renewals.c.enrollment_id,
                _successors.c.revoked_at.is_(None),
                _successors.c.not_after > bindparam("now"),
            )
        )
        | exists(
            select(intents.c.id).where(
                intents.c.enrollment_id == eab_renewals.c.enrollment_id, is_literally(intents.c.state, "reserved")
            )
        ),
    )
)
_HOLDS_A_PLACE = or_(
    certificates.c.revoked_at.is_(None),
    certificates.c.revocation_reason == RevocationReason.CERTIFICATE_HOLD.value,
)
_OF_KEY = (
    acme_accounts.c.eab_kid == bindparam("of_kid"),
    certificates.c.requester_id == acme_accounts.c.id,
    certificates.c.requester_protocol == _ACME,
    certificates.c.not_after > bindparam("now"),
    _HOLDS_A_PLACE,
    ~_IS_RENEWED,
)
_RESERVED = (
    select(func.count())
    .select_from(intents)
    .join(enrollments, enrollments.c.id == intents.c.enrollment_id)
    .join(acme_accounts, acme_accounts.c.id == enrollments.c.requester_scope)
    .where(
        is_literally(intents.c.state, "reserved"),
        enrollments.c.protocol == _ACME,
        acme_accounts.c.eab_kid == bindparam("of_kid"),
    )
)
_STORED = select(func.count()).select_from(acme_accounts, certificates).where(*_OF_KEY)
# One statement, so that what is being stored just now is seen once, under READ COMMITTED too.
_COUNT_LIVE = Prepared(
    select(type_coerce(_STORED.scalar_subquery() + _RESERVED.scalar_subquery(), Integer).label("live"))
)
_FIRST_END = select(func.min(certificates.c.not_after)).select_from(acme_accounts, certificates).where(*_OF_KEY)
# Most certificates are for names that the account has none for: one index tells that.
_WITH_NAME = Prepared(
    select(certificates.c.id)
    .join(certificate_names, certificate_names.c.certificate_id == certificates.c.id)
    .where(
        certificate_names.c.reversed == bindparam("first_reversed"),
        # No column for an index: that of an account's certificates is longer than that of a name's.
        certificates.c.requester_id.concat("") == bindparam("of_account"),
        certificates.c.requester_protocol == _ACME,
        certificates.c.not_after > bindparam("now"),
        certificates.c.revoked_at.is_(None),
        ~_IS_RENEWED,
    )
)
_BY_IDS = SELECT_RECORDS.where(certificates.c.id.in_(bindparam("ids", expanding=True))).order_by(certificates.c.id)
_BEFORE = Prepared(
    select(certificates.c.id)
    .select_from(enrollments)
    .join(certificates, certificates.c.enrollment_id == enrollments.c.id)
    .where(
        enrollments.c.transaction_key == bindparam("of_order"),
        enrollments.c.requester_scope == bindparam("of_account"),
        enrollments.c.protocol == _ACME,
        enrollments.c.profile == bindparam("of_profile"),
        enrollments.c.tenant == bindparam("of_tenant"),
        enrollments.c.epoch < bindparam("before_epoch"),
        certificates.c.not_after > bindparam("now"),
        certificates.c.revoked_at.is_(None),
    )
    .order_by(enrollments.c.epoch.desc())
    .limit(1)
)
_OWN_RENEWAL = Prepared(
    select(eab_renewals.c.certificate_id).where(eab_renewals.c.enrollment_id == bindparam("of_enrollment"))
)
_TAKE_OVER = (
    update(eab_renewals)
    .where(eab_renewals.c.certificate_id == bindparam("of_certificate"))
    .values(enrollment_id=bindparam("of_enrollment"))
)
_TAKE = Prepared(
    update(eab_keys)
    .where(eab_keys.c.kid == bindparam("of_kid"))
    .values(arrival=bindparam("next_arrival"), live_bound=bindparam("next_bound"))
)
_ACCOUNTS = select(acme_accounts.c.status, func.count()).where(acme_accounts.c.eab_kid == bindparam("of_kid"))
_ISSUED = (
    select(func.count(), func.max(certificates.c.issued_at))
    .select_from(acme_accounts, certificates)
    .where(
        acme_accounts.c.eab_kid == bindparam("of_kid"),
        certificates.c.requester_id == acme_accounts.c.id,
        certificates.c.requester_protocol == _ACME,
    )
)


@dataclass(frozen=True, slots=True)
class EabUsage:
    """What the accounts of a key have: `live` as the quota counts it."""

    accounts: dict[str, int]
    """How many by status."""
    issued: int
    last_issued_at: datetime | None
    live: int


def eab_lock(kid: str) -> str:
    """Name of the lock under which a key, its uses and its quota change."""
    return f"eab:{kid}"


def usage(connection: Connection, kid: str, now: datetime) -> EabUsage:
    """What the accounts of a key have."""
    accounts = connection.execute(_ACCOUNTS.group_by(acme_accounts.c.status), {"of_kid": kid}).all()
    issued, last = connection.execute(_ISSUED, {"of_kid": kid}).one()
    return EabUsage({row[0]: row[1] for row in accounts}, issued, last, _live(connection, kid, now))


def look(connection: Connection, key: EabKey, account_id: str, names: Sequence[str], now: datetime) -> CaError | None:
    """The refusal that a certificate for these names would meet now; nothing is taken."""
    if not key.policy.counts or _renewed(connection, account_id, names, now) is not None:
        return None
    live = key.policy.live
    may_be_used_up = live is not None and (key.live_bound is None or key.live_bound >= live)
    if live is not None and may_be_used_up and _live(connection, key.kid, now) >= live:
        return _no_place(connection, key.kid, live, now)
    rate = key.policy.parsed_rate
    if rate is not None and _next_arrival(key, rate, now) is None:
        return _too_many(key, rate, now)
    return None


def take(
    connection: Connection,
    kid: str,
    account_id: str,
    names: Sequence[str],
    enrollment_id: int,
    now: datetime,
    *,
    is_new: bool,
    renews: EnrollmentKey | None = None,
) -> None:
    """Take a certificate whose intent is reserved in this transaction from the quota of a key, under its lock.

    `is_new` says that the enrollment is: an attempt after the first takes nothing from the rate. `renews` is the
    enrollment where the server renews its order by itself (RFC 8739): that takes the place of the certificate before,
    whatever the room. RATE_LIMITED, and the caller's transaction must not stand, where there is no room.
    """
    key = read_key(connection, kid)
    if key is None or not key.policy.counts:
        return
    if not is_new and _OWN_RENEWAL.execute(connection, {"of_enrollment": enrollment_id}).first() is not None:
        return
    renewed = _renewed(connection, account_id, names, now) if renews is None else _before(connection, renews, now)
    if renewed is not None:
        _record_renewal(connection, renewed, enrollment_id)
        return
    live = None if renews is not None else key.policy.live
    bound = None if key.live_bound is None else key.live_bound + 1
    if live is not None and (bound is None or bound > live):
        # The intent is counted already.
        bound = _live(connection, kid, now)
        if bound > live:
            raise _no_place(connection, kid, live, now)
    arrival = key.arrival
    rate = key.policy.parsed_rate if renews is None else None
    if rate is not None and is_new:
        arrival = _next_arrival(key, rate, now)
        if arrival is None:
            raise _too_many(key, rate, now)
    _TAKE.execute(connection, {"of_kid": kid, "next_arrival": arrival, "next_bound": bound})


def _before(connection: Connection, renewal: EnrollmentKey, now: datetime) -> int | None:
    """The id of the certificate of the same order that stands before a renewal; None where it has expired."""
    parameters = {
        "of_order": renewal.transaction_key,
        "of_account": renewal.requester_scope,
        "of_profile": renewal.profile,
        "of_tenant": renewal.tenant,
        "before_epoch": renewal.epoch,
        "now": now,
    }
    return _BEFORE.execute(connection, parameters).scalar()


def _live(connection: Connection, kid: str, now: datetime) -> int:
    return int(_COUNT_LIVE.execute(connection, {"of_kid": kid, "now": now}).one().live)


def _renewed(connection: Connection, account_id: str, names: Sequence[str], now: datetime) -> int | None:
    """The id of the oldest certificate that one for these names renews now."""
    if not names:
        return None
    wanted = frozenset(names)
    first = min(wanted).partition(":")[2]
    parameters = {"first_reversed": first.lower()[::-1], "of_account": account_id, "now": now}
    candidates = _WITH_NAME.execute(connection, parameters).scalars()
    if not candidates:
        return None
    rows = connection.execute(_BY_IDS, {"ids": candidates}).all()
    for row, record in zip(rows, records_of(connection, rows), strict=True):
        if frozenset(record.names) != wanted:
            continue
        if is_due(record, None, now) or is_due(record, incident_of(connection, record), now):
            return int(row.id)
    return None


def _record_renewal(connection: Connection, certificate_id: int, enrollment_id: int) -> None:
    parameters = {"of_certificate": certificate_id, "of_enrollment": enrollment_id}
    # There may be the row of an enrollment that came to nothing.
    if connection.execute(_TAKE_OVER, parameters).rowcount == 0:
        connection.execute(insert(eab_renewals), {"certificate_id": certificate_id, "enrollment_id": enrollment_id})


def _next_arrival(key: EabKey, rate: Rate, now: datetime) -> datetime | None:
    arrival = None if key.arrival is None else _micro(key.arrival)
    admitted = admit(arrival, _micro(now), rate)
    return None if admitted is None else now + (admitted - _micro(now)) * _MICROSECOND


def _micro(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, moment.tzinfo)) // _MICROSECOND


def _too_many(key: EabKey, rate: Rate, now: datetime) -> CaError:
    assert key.arrival is not None
    seconds = -((_micro(now) + rate.slack - _micro(key.arrival)) // 1_000_000)
    return CaError(
        ErrorKind.RATE_LIMITED,
        "the account's external account key has no certificate left of its quota "
        f"(eab.rate: {rate.text}); come again in {max(1, seconds)} seconds, or ask this CA's operators for more",
        rule="eab.rate",
        retry_after=max(1, seconds),
    )


def _no_place(connection: Connection, kid: str, live: int, now: datetime) -> CaError:
    end = connection.execute(_FIRST_END, {"of_kid": kid, "now": now}).scalar()
    until = "" if end is None else f", wait until {end:%Y-%m-%dT%H:%M:%SZ}"
    return CaError(
        ErrorKind.RATE_LIMITED,
        f"the account's external account key has {live} valid certificates, all of its quota (eab.live); "
        f"revoke one that is not needed{until}, or ask this CA's operators for more",
        rule="eab.live",
        retry_after=None if end is None else max(1, int((end - now).total_seconds())),
    )
