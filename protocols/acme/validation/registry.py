"""The challenge types that this server knows. A further one is a file beside this and a line here."""

from collections.abc import Callable

from protocols.acme.validation.dns_01 import Dns01Validator
from protocols.acme.validation.dns_account_01 import DnsAccount01Validator
from protocols.acme.validation.http_01 import Http01Validator
from protocols.acme.validation.model import ValidationPolicy, Validator
from protocols.acme.validation.resolver import Resolver
from protocols.acme.validation.tls_alpn_01 import TlsAlpn01Validator

_VALIDATORS: tuple[Callable[[ValidationPolicy, Resolver], Validator], ...] = (
    Http01Validator,
    Dns01Validator,
    TlsAlpn01Validator,
    DnsAccount01Validator,
)


def validators(policy: ValidationPolicy) -> dict[str, Validator]:
    """The validators by challenge type. Raises ValueError for a nameserver in the policy that is no address."""
    resolver = Resolver(policy.nameservers, policy.dns_timeout, policy.dnssec)
    made = [factory(policy, resolver) for factory in _VALIDATORS]
    return {validator.type: validator for validator in made}
