"""What accounts may have that an external account key let in: pure decisions, each denial with its rule.

Front-ends ask before there is an order, the core before it signs. Rules: `eab.accounts`, `eab.profile`, `eab.names`;
quotas are counted where they are taken from (`eab.live`, `eab.rate`).
"""

from collections.abc import Sequence
from functools import lru_cache

from ca_server.domain.bindings import EabKey, NamePatterns
from ca_server.domain.enrollment import Deny
from ca_server.domain.names import Identifier

_REMEDY = "ask this CA's operators for a key that allows it"


@lru_cache(maxsize=1000)
def _patterns(texts: tuple[str, ...]) -> NamePatterns:
    """What a key's patterns mean, remembered: its accounts ask again and again."""
    return NamePatterns.parse(texts)


def decide_binding(key: EabKey, profile: str, identifiers: Sequence[Identifier]) -> tuple[Deny, ...]:
    """Every reason why an account of this key can't have a certificate of a profile for these names; empty: it can.

    Neither the end of the key's time nor that it was disabled is one: both only keep new accounts out.
    """
    if key.accounts_revoked_at is not None:
        return (Deny("eab.accounts", "the accounts of this external account key were revoked"),)
    policy = key.policy
    if policy.profiles and profile not in policy.profiles:
        allowed = ", ".join(policy.profiles)
        detail = f"the account's external account key is not for profile {profile!r}, but for: {allowed}"
        return (Deny("eab.profile", f"{detail}; use the directory of such a one, or {_REMEDY}"),)
    if not policy.names:
        return ()
    patterns = _patterns(policy.names)
    return tuple(
        Deny(
            "eab.names",
            f"{identifier.value!r} is not among the names of the account's external account key; {_REMEDY}",
            identifier,
        )
        for identifier in identifiers
        if not patterns.covers(identifier)
    )
