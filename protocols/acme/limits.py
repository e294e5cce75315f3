"""Which rate limits a request is held to, and by which keys; `ca_server.domain.rates` has the arithmetic.

Nothing is limited but what is configured. What a request does not take it only looks at, so that a client is told at
newOrder, and not after its validations, that there is no certificate for it now.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.rates import Draw, Rate
from protocols.acme.model import Authorization, Order


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a limit counts; `what` is for people."""

    rule: str
    what: str

    def draws(self, rate: Rate | None, tenant: str, subjects: Iterable[str], *, takes: bool = True) -> tuple[Draw, ...]:
        """One for each subject; none without a rate."""
        if rate is None:
            return ()
        name = self.rule.rpartition(".")[2]
        keys = dict.fromkeys(f"{tenant}/{name}/{subject}" for subject in subjects)
        return tuple(Draw(self.rule, self.what, key, rate, takes) for key in keys)


_ACCOUNTS_PER_NETWORK = _Counted(rule="acme.limits.accounts_per_network", what="new accounts of this network")
_ORDERS_PER_ACCOUNT = _Counted(rule="acme.limits.orders_per_account", what="new orders of this account")
_ORDERS_PER_NETWORK = _Counted(rule="acme.limits.orders_per_network", what="new orders of this network")
_ORDERS = _Counted(rule="acme.limits.orders", what="new orders")
_PER_NAME = _Counted(rule="acme.limits.certificates_per_name", what="certificates with one of these names")
_PER_DOMAIN = _Counted(rule="acme.limits.certificates_per_domain", what="certificates with names of this domain")
_PER_SET = _Counted(rule="acme.limits.certificates_per_set", what="certificates with just these names")
_FAILURES = _Counted(rule="acme.limits.failures_per_name", what="failed validations of this account and name")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a configuration; None: there is none."""

    accounts_per_network: Rate | None = None
    orders_per_account: Rate | None = None
    orders_per_network: Rate | None = None
    orders: Rate | None = None
    certificates_per_name: Rate | None = None
    certificates_per_domain: Rate | None = None
    certificates_per_set: Rate | None = None
    failures_per_name: Rate | None = None
    ipv4_prefix: int = 32
    ipv6_prefix: int = 64
    tenant: str = "default"

    def new_account(self, source: str | None) -> tuple[Draw, ...]:
        """What an account takes that did not exist."""
        return _ACCOUNTS_PER_NETWORK.draws(self.accounts_per_network, self.tenant, self._networks(source))

    def new_order(self, order: Order, *, renews: bool = False) -> tuple[Draw, ...]:
        """What an order takes, and what must have room for its certificate and its validations.

        A renewal in its window takes nothing, so that no limit makes a fleet's certificates expire: validations that
        failed alone are in its way.
        """
        names = tuple(item.identifier for item in order.identifiers)
        failures = _FAILURES.draws(
            self.failures_per_name, self.tenant, (f"{order.account_id}/{name.base}" for name in names), takes=False
        )
        if renews:
            return failures
        return (
            *_ORDERS_PER_ACCOUNT.draws(self.orders_per_account, self.tenant, (order.account_id,)),
            *_ORDERS_PER_NETWORK.draws(self.orders_per_network, self.tenant, self._networks(order.source)),
            *_ORDERS.draws(self.orders, self.tenant, ("all",)),
            *self._certificate(names, takes=False),
            *failures,
        )

    def certificate(self, order: Order) -> tuple[Draw, ...]:
        """What an order takes that is finalized; a renewal in its window does not."""
        return self._certificate(tuple(item.identifier for item in order.identifiers), takes=True)

    def _certificate(self, names: tuple[Identifier, ...], *, takes: bool) -> tuple[Draw, ...]:
        domains = (domain for domain in map(_parent, names) if domain)
        return (
            *_PER_NAME.draws(self.certificates_per_name, self.tenant, map(str, names), takes=takes),
            *_PER_DOMAIN.draws(self.certificates_per_domain, self.tenant, domains, takes=takes),
            *_PER_SET.draws(self.certificates_per_set, self.tenant, map(_digest, (names,)), takes=takes),
        )

    def validation(self, authorization: Authorization, *, failed: bool) -> tuple[Draw, ...]:
        """What a validation that failed takes; one that is to begin looks at it."""
        subject = f"{authorization.account_id}/{authorization.identifier}"
        return _FAILURES.draws(self.failures_per_name, self.tenant, (subject,), takes=failed)

    def _networks(self, source: str | None) -> tuple[str, ...]:
        """The network of a client's address; none where there is no address."""
        try:
            address = ipaddress.ip_address((source or "").partition("%")[0])
        except ValueError:
            return ()
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        prefix = self.ipv4_prefix if isinstance(address, ipaddress.IPv4Address) else self.ipv6_prefix
        return (str(ipaddress.ip_network(f"{address}/{prefix}", strict=False)),)


NO_LIMITS = Limits()


def _digest(names: Iterable[Identifier]) -> str:
    """What stands for a set of names."""
    return sha256("\n".join(sorted(map(str, names))).encode()).hexdigest()


def _parent(name: Identifier) -> str:
    """The domain that a DNS name is directly below, which is that of a wildcard; empty where there is none."""
    return name.value.partition(".")[2] if name.type is IdentifierType.DNS else ""
