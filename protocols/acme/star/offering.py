"""What newOrder says of an `auto-renewal` object (RFC 8739 sections 3.1.1 and 3.2)."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ca_server.core.policy import MAX_DELAY
from ca_server.domain.enrollment import Deny
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import Profile
from protocols.acme.objects import AutoRenewal as Wanted
from protocols.acme.star.terms import AutoRenewal, padding

RULE = "acme.auto_renewal"


@dataclass(frozen=True, slots=True)
class StarOptions:
    """What is offered, and for which profiles; for none unless configured."""

    profiles: frozenset[str] = frozenset()
    min_lifetime: timedelta = timedelta(days=1)
    max_duration: timedelta = timedelta(days=365)
    allow_get: bool = True

    def meta(self, offered: Collection[str]) -> dict[str, Any] | None:
        """The directory's `auto-renewal`, where some profile that it offers has it."""
        if self.profiles.isdisjoint(offered):
            return None
        meta: dict[str, Any] = {
            "min-lifetime": int(self.min_lifetime.total_seconds()),
            "max-duration": int(self.max_duration.total_seconds()),
        }
        if self.allow_get:
            meta["allow-certificate-get"] = True
        return meta


NO_STAR: Final = StarOptions()


def agree(
    options: StarOptions, profile: Profile, order_id: str, wanted: Wanted, now: datetime
) -> AutoRenewal | tuple[Deny, ...]:
    """The terms of an order, or why there are none. MALFORMED for dates that no order could have."""
    now = now.replace(microsecond=0)
    if profile.name not in options.profiles:
        return (Deny(RULE, f"orders of profile {profile.name!r} are not renewed automatically"),)
    if wanted.start_date is not None and wanted.start_date > now + MAX_DELAY:
        return (Deny(RULE, "auto-renewal: start-date may lie a day in the future at most"),)
    start = None if wanted.start_date is None else _up(wanted.start_date)
    end = wanted.end_date.replace(microsecond=0)
    begin = now if start is None else max(start, now)
    if end <= begin:
        raise CaError(ErrorKind.MALFORMED, "auto-renewal: end-date is in the past, or not after start-date", rule=RULE)
    lifetime = timedelta(seconds=wanted.lifetime)
    padded = max(min(lifetime, timedelta(seconds=wanted.lifetime_adjust or 0)), padding(order_id, lifetime))
    refused = _out_of_bounds(options, profile, lifetime, padded, end - begin)
    if refused is not None:
        return (Deny(RULE, refused),)
    return AutoRenewal(start, end, lifetime, padded, options.allow_get and bool(wanted.allow_certificate_get))


def _out_of_bounds(
    options: StarOptions, profile: Profile, lifetime: timedelta, padded: timedelta, duration: timedelta
) -> str | None:
    if lifetime < options.min_lifetime:
        return f"auto-renewal: lifetime is {_seconds(options.min_lifetime)} at least"
    if duration > options.max_duration:
        return f"auto-renewal: from start-date to end-date it is {_seconds(options.max_duration)} at most"
    longest = profile.validity.maximum
    if lifetime + padded > longest:
        return (
            f"auto-renewal: lifetime with its padding ({_seconds(padded)}) is {_seconds(longest)} at most"
            f" by profile {profile.name!r}"
        )
    return None


def _seconds(time: timedelta) -> str:
    return f"{int(time.total_seconds())} seconds"


def _up(moment: datetime) -> datetime:
    """To a whole second that is not before: nothing begins before what the client named."""
    whole = moment.replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)
