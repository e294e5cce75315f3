"""The challenge types that this server knows. A further one is a file beside this and a line here."""

from collections.abc import Callable, Sequence

from protocols.acme.validation.device_attest_01 import DeviceAttest01Validator
from protocols.acme.validation.dns_01 import Dns01Validator
from protocols.acme.validation.dns_account_01 import DnsAccount01Validator
from protocols.acme.validation.dns_persist_01 import DnsPersist01Validator
from protocols.acme.validation.http_01 import Http01Validator
from protocols.acme.validation.model import ValidationPolicy, Validator
from protocols.acme.validation.resolver import Resolver
from protocols.acme.validation.tls_alpn_01 import TlsAlpn01Validator

_VALIDATORS: dict[str, Callable[[ValidationPolicy, Resolver], Validator]] = {
    each.type: each
    for each in (Http01Validator, Dns01Validator, TlsAlpn01Validator, DnsAccount01Validator, DnsPersist01Validator)
}


USUAL_CHALLENGES = ("http-01", "dns-01", "tls-alpn-01", "dns-account-01")
"""The types that need no configuration."""


def known_types() -> tuple[str, ...]:
    """Every challenge type that there is."""
    return tuple(_VALIDATORS)


def validators(policy: ValidationPolicy, types: Sequence[str] = USUAL_CHALLENGES) -> dict[str, Validator]:
    """The validators by challenge type, in the order of `types`.

    Raises ValueError for a nameserver in the policy that is no address, for a type that there is none of, and for one
    that wants more configuration than there is.
    """
    resolver = Resolver(policy.nameservers, policy.dns_timeout, policy.dnssec)
    unknown = [kind for kind in types if kind not in _VALIDATORS]
    if unknown:
        raise ValueError(f"there is no challenge {', '.join(unknown)}")
    made: dict[str, Validator] = {kind: _VALIDATORS[kind](policy, resolver) for kind in types}
    if policy.attestation_roots:
        made[DeviceAttest01Validator.type] = DeviceAttest01Validator(policy.attestation_roots)
    return made
