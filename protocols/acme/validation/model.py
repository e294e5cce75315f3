"""What validators take and give, and the policy that bounds what they may do to the network."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from ca_server.domain.names import Identifier

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_DETAIL = 500


@dataclass(frozen=True, slots=True)
class ValidationTarget:
    """What one challenge is to show: control over `identifier`, the name without its wildcard label."""

    identifier: Identifier
    token: str
    key_authorization: str


@dataclass(frozen=True, slots=True)
class ValidationProblem:
    """Why a validation did not succeed."""

    type: str
    """Type of the ACME error, without its URN: connection, dns, incorrectResponse, unauthorized, malformed."""
    detail: str
    """What was seen, for the client: at most 500 printable characters."""
    retryable: bool
    """Whether the same may succeed soon: the network failed or a record is not there yet."""


@dataclass(frozen=True, slots=True)
class ValidationPolicy:
    """Bounds of validation. Times are in seconds."""

    http_01_port: int = 80
    allowed_networks: tuple[IPNetwork, ...] = ()
    """Where to connect to; empty: everywhere but `denied_networks`, which win."""
    denied_networks: tuple[IPNetwork, ...] = ()
    redirect_ports: tuple[int, ...] = (80, 443)
    """Ports that redirects may name beside `http_01_port`."""
    timeout: float = 10.0
    """For one whole validation, names and redirects included."""
    max_redirects: int = 10
    max_body: int = 1024
    """Octets: a key authorization has about 90."""
    nameservers: tuple[str, ...] = ()
    """`ip`, `ip:port` or `[ipv6]:port`; empty: the system's resolver."""
    dns_timeout: float = 5.0

    def permits(self, address: IPAddress) -> bool:
        """Whether validation may connect to the address; an IPv4-mapped one counts as the IPv4 address."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.denied_networks):
            return False
        return not self.allowed_networks or any(address in network for network in self.allowed_networks)

    def permits_port(self, port: int) -> bool:
        """Whether a redirect may name the port."""
        return port == self.http_01_port or port in self.redirect_ports


class Validator(Protocol):
    """One challenge type. A validator keeps nothing between calls; when to try again is for its caller."""

    @property
    def type(self) -> str:
        """Name of the challenge type, such as `http-01`."""
        ...

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:
        """Whether the challenge can be offered for the identifier."""
        ...

    async def validate(self, target: ValidationTarget) -> ValidationProblem | None:
        """Try once, within the time of the policy: None where control was shown. Never raises for what peers do."""
        ...


def key_authorization(token: str, thumbprint: str) -> str:
    """The key authorization of RFC 8555 section 8.1."""
    return f"{token}.{thumbprint}"


def problem(kind: str, detail: str, *, retryable: bool) -> ValidationProblem:
    """A problem whose detail is made fit to be shown."""
    return ValidationProblem(kind, shown(detail, MAX_DETAIL), retryable)


def shown(text: str, limit: int) -> str:
    """The text, cut, with `?` for what can't be printed: peers choose it, and it ends in logs and terminals."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in cut)
