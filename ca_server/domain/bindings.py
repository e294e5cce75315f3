"""What an external account key lets its accounts have: profiles, names, and how many certificates."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from ca_server.domain.names import Identifier, IdentifierType, InvalidNameError, dns_identifier
from ca_server.domain.rates import Rate, parse_rate

QUOTA_RULES: Final = frozenset({"eab.live", "eab.rate"})
"""Rules that refuse a certificate for want of room, not for what it is."""


@dataclass(frozen=True, slots=True)
class NamePatterns:
    """Names that are allowed: exact ones, all below a domain (`*.corp.example`), addresses of networks."""

    exact: frozenset[str]
    below: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "NamePatterns":
        """Read patterns as an operator writes them. ValueError names the one that is none."""
        exact: set[str] = set()
        below: set[str] = set()
        networks = []
        for text in texts:
            if text.startswith("*."):
                below.add(_dns(text, text[2:]))
            elif "/" in text or ":" in text or text.replace(".", "").isdigit():
                networks.append(_network(text))
            else:
                exact.add(_dns(text, text))
        return cls(frozenset(exact), frozenset(below), tuple(networks))

    def covers(self, identifier: Identifier) -> bool:
        """Whether a name is allowed. A wildcard is where every name that it stands for is; no other kind ever is."""
        if identifier.type is IdentifierType.IP:
            address = ip_address(identifier.value)
            return any(address in network for network in self.networks)
        if identifier.type is not IdentifierType.DNS:
            return False
        domain = identifier.base.value if identifier.is_wildcard else identifier.value.partition(".")[2]
        while domain:
            if domain in self.below:
                return True
            domain = domain.partition(".")[2]
        return identifier.value in self.exact


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        # Python takes a zone behind an address too.
        return ip_network(text.replace("%", "no zone"))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address or network such as 10.0.0.0/8") from None


def _dns(text: str, name: str) -> str:
    try:
        return dns_identifier(name, wildcard=False).value
    except InvalidNameError as error:
        raise ValueError(
            f"{text!r} is none of host.corp.example, *.corp.example, 10.0.0.0/8 and 10.1.2.3 ({error})"
        ) from None


@dataclass(frozen=True, slots=True)
class EabPolicy:
    """What is bound to an external account key, and holds for its accounts as it stands at each of their orders."""

    profiles: tuple[str, ...] = ()
    """Profiles that it may be used for; any where empty."""
    names: tuple[str, ...] = ()
    """Patterns of names; whatever the profile allows where empty."""
    live: int | None = None
    """How many certificates of its accounts may be valid at once; one that another renews is not counted."""
    rate: str = ""
    """How many certificates its accounts may get, such as `100 per 7d`; renewals are not counted."""

    @property
    def counts(self) -> bool:
        """Whether certificates are counted at all."""
        return self.live is not None or bool(self.rate)

    @property
    def parsed_rate(self) -> Rate | None:
        """The rate; None without."""
        return parse_rate(self.rate)


NO_POLICY: Final = EabPolicy()


@dataclass(frozen=True, slots=True)
class EabKey:
    """An external account key as listed: never with its secret."""

    kid: str
    created_at: datetime
    expires_at: datetime | None
    """Until when it lets accounts in; those that it let in stay bound to it."""
    reusable: bool
    disabled_at: datetime | None
    owner: str | None
    uses: int
    last_used_at: datetime | None
    tenant: str = "default"
    max_uses: int | None = None
    """How many accounts a reusable key lets in; any number where None."""
    policy: EabPolicy = NO_POLICY
    accounts_revoked_at: datetime | None = None
    """Since when its accounts get nothing any more."""
    arrival: datetime | None = None
    """Of the quota's rate (`ca_server.domain.rates`)."""
    live_bound: int | None = None
    """Its certificates that are live are no more than these; None: nobody has counted."""

    @property
    def is_used_up(self) -> bool:
        """Whether it let in as many accounts as it may."""
        most = self.max_uses if self.reusable else 1
        return most is not None and self.uses >= most
