"""What validators take and give, and the policy that bounds what they may do to the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Protocol

from ca_server.domain.names import Identifier
from protocols.acme.attestation import Roots

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_DETAIL = 500
_MAX_SIGHTING = 300
_MAX_SIGHTINGS = 12
_NOTED_RECORDS = 5

_IPV4_SUFFIXED = (
    ip_network("64:ff9b::/96"),  # NAT64 (RFC 6052 section 2.1)
    ip_network("64:ff9b:1::/48"),  # NAT64 inside one network (RFC 8215)
    ip_network("::ffff:0:0:0/96"),  # IPv4-translated (RFC 2765)
)
_LAST_COMPATIBLE = 0xFFFF_FFFF
"""The last IPv4-compatible address (RFC 4291 section 2.5.5.1), as a number; `::` and `::1` are none of them."""


class Dnssec(StrEnum):
    """What the nameserver's word is worth that it authenticated an answer (the AD bit, RFC 4035 section 3.2.3)."""

    OFF = "off"
    """It is not asked for."""
    OPPORTUNISTIC = "opportunistic"
    """Asked for with CAA records, and put on record."""
    REQUIRE = "require"
    """Asked for with every lookup; an answer without it is none."""


class Sightings:
    """Where one attempt looked and what it found there, for operators; owned by the task that makes the attempt.

    Peers choose much of it, so that each line is cut and made printable, and only the first lines are kept.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, line: str) -> None:
        """Keep a line: an address with its port, or a DNS record with its content."""
        if len(self._lines) < _MAX_SIGHTINGS:
            self._lines.append(shown(line, _MAX_SIGHTING))

    @property
    def lines(self) -> tuple[str, ...]:
        """What was noted, in order: at most 12 lines of 300 characters."""
        return tuple(self._lines)


@dataclass(frozen=True, slots=True)
class ValidationTarget:
    """What one challenge is to show: control over `identifier`, the name without its wildcard label."""

    identifier: Identifier
    token: str
    key_authorization: str
    account_url: str
    """The `kid` of the account that asks."""
    account_hash_prefix: str = ""
    """What its hashed URIs begin with."""
    thumbprints: tuple[str, ...] = ()
    """Of the account's key and, for records that outlive it, of those that it had before."""
    covers_more: bool = False
    """Whether control of wildcards, or of all names below, is to be shown."""
    response: bytes = b""
    """What the client sent to be looked at; empty for challenges that look elsewhere."""
    sightings: Sightings = field(default_factory=Sightings, compare=False)
    """Where the validator tells what it sees on the way to its answer."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a validation saw that is kept with it, and until when at most it is worth anything."""

    details: Mapping[str, str]
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ValidationProblem:
    """Why a validation did not succeed."""

    type: str
    """Type of the ACME error, without its URN: connection, dns, incorrectResponse, tls, unauthorized."""
    detail: str
    """What was seen, for the client: at most 500 printable characters."""
    retryable: bool
    """Whether the same may succeed soon: the network failed or a record is not there yet."""


@dataclass(frozen=True, slots=True)
class ValidationPolicy:
    """Bounds of validation. Times are in seconds."""

    http_01_port: int = 80
    tls_alpn_01_port: int = 443
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
    max_handshake: int = 65_536
    """Octets of a TLS handshake that tls-alpn-01 reads: one with a certificate of an RSA key has about 3,000."""
    nameservers: tuple[str, ...] = ()
    """`ip`, `ip:port` or `[ipv6]:port`; empty: the system's resolver."""
    dns_timeout: float = 5.0
    dnssec: Dnssec = Dnssec.OPPORTUNISTIC
    issuer_domain_names: tuple[str, ...] = ()
    """What records of dns-persist-01 call this CA, in lower-case A-labels; 10 at most."""
    attestation_roots: Roots = field(default_factory=Roots)
    """What attestations of devices must lead to; none: device-attest-01 is not offered."""

    def permits(self, address: IPAddress) -> bool:
        """Whether validation may connect to the address: nothing that it leads to is denied, all is allowed.

        An IPv4-mapped address is the IPv4 address; one of a transition mechanism leads to its IPv4 addresses too.
        Unspecified addresses (which connect to this very machine) and multicast are never permitted.
        """
        readings = _readings(address)
        if any(each.is_unspecified or each.is_multicast or _is_in(each, self.denied_networks) for each in readings):
            return False
        return not self.allowed_networks or all(_is_in(each, self.allowed_networks) for each in readings)

    def permits_port(self, port: int) -> bool:
        """Whether a redirect may name the port."""
        return port == self.http_01_port or port in self.redirect_ports


def _is_in(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    return any(address in network for network in networks)


def _readings(address: IPAddress) -> tuple[IPAddress, ...]:
    """The address, and the IPv4 addresses to which a packet for it may be carried on."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    found: list[IPAddress] = [address]
    number = int(address)
    if 1 < number <= _LAST_COMPATIBLE or _is_in(address, _IPV4_SUFFIXED):
        found.append(IPv4Address(number & _LAST_COMPATIBLE))
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    found += address.teredo or ()
    return tuple(found)


class Validator(Protocol):
    """One challenge type. A validator keeps nothing between calls; when to try again is for its caller."""

    @property
    def type(self) -> str:
        """Name of the challenge type, such as `http-01`."""
        ...

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:
        """Whether the challenge can be offered for the identifier."""
        ...

    async def validate(self, target: ValidationTarget) -> ValidationProblem | Evidence | None:
        """Try once, within the time of the policy: no problem where control was shown, and its evidence if it has any.

        Never raises for what peers do.
        """
        ...


def key_authorization(token: str, thumbprint: str) -> str:
    """The key authorization of RFC 8555 section 8.1."""
    return f"{token}.{thumbprint}"


def problem(kind: str, detail: str, *, retryable: bool) -> ValidationProblem:
    """A problem whose detail is made fit to be shown."""
    return ValidationProblem(kind, shown(detail, MAX_DETAIL), retryable)


def note_records(sightings: Sightings, name: str, records: Sequence[str]) -> None:
    """Tell which TXT records a name has: the first of them, and how many there are."""
    sightings.note(f"TXT {name}: {len(records)} records")
    for record in records[:_NOTED_RECORDS]:
        sightings.note(f"TXT {name}: {record!r}")


def shown(text: str, limit: int) -> str:
    """The text, cut, with `?` for what can't be printed: peers choose it, and it ends in logs and terminals."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in cut)
