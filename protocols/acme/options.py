"""Options of the ACME front-end."""

from dataclasses import dataclass
from datetime import timedelta

from protocols.acme.chaos import Chaos
from protocols.acme.limits import NO_LIMITS, Limits
from protocols.acme.validation import USUAL_CHALLENGES, ValidationPolicy

MAX_JWS = 131_072
"""Octets of a request's body."""


@dataclass(frozen=True, slots=True)
class AcmeOptions:
    """How the front-end behaves; `external_url` has no slash at the end."""

    external_url: str
    validation: ValidationPolicy
    challenges: tuple[str, ...] = USUAL_CHALLENGES
    """The types that are offered, in that order."""
    default_profile: str = "default"
    tenant: str = "default"
    finalize_wait: float = 2.0
    """Seconds that finalize waits for the certificate before it answers `processing`."""
    require_eab: bool = False
    terms_of_service: str = ""
    website: str = ""
    caa_identities: tuple[str, ...] = ()
    caa_max_age: timedelta = timedelta(hours=8)
    """How old lookups of CAA records may be that let an order pass."""
    order_lifetime: timedelta = timedelta(days=7)
    authorization_lifetime: timedelta = timedelta(days=30)
    authorization_reuse_lifetime: timedelta = timedelta(days=30)
    """How long after its validation an authorization is good for new orders; zero: never, and no newAuthz."""
    nonce_lifetime: timedelta = timedelta(hours=1)
    validation_attempts: int = 4
    validation_concurrency: int = 50
    max_validations: int = 500
    """Challenges of one account that are being validated at once."""
    retention: timedelta = timedelta(days=30)
    """How long orders are kept after they, their authorizations and their certificate have expired."""
    renewal_retry_after: timedelta = timedelta(hours=6)
    """Until clients look at a certificate's renewal information again, at most; less for short lifetimes."""
    max_identifiers: int = 100
    max_contacts: int = 10
    max_open_orders: int = 300
    max_open_names: int = 3000
    """Names, and so authorizations, of one account's unfinished orders together."""
    max_open_authorizations: int = 300
    """Pending authorizations that one account asked for by themselves."""
    max_jws: int = MAX_JWS
    limits: Limits = NO_LIMITS
    chaos: Chaos | None = None
    """What tries the clients of staging profiles; None: nothing."""
    limits_help_url: str = ""
    """Where clients that are refused for a limit read more; empty: nowhere."""
    unsafe_skip_validation: bool = False
    """Challenges are valid at once, without a look: for staging CAs alone."""
