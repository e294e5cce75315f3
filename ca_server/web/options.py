"""Limits of a listener: everything that a peer may use up has one."""

import ipaddress
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Limits of one listener; sizes in octets, times in seconds."""

    max_body: int = 256 * 1024
    max_line: int = 8190
    """Request line."""
    max_header: int = 8190
    """One header field."""
    max_headers: int = 64
    """Number of header fields."""
    header_seconds: float = 10.0
    """From the first octet of a request (of a connection, for its first) to the end of its headers; TLS handshake."""
    body_seconds: float = 10.0
    """From the end of a request's headers to the end of its body."""
    request_seconds: float = 60.0
    """To answer a request, from the end of its body on."""
    write_seconds: float = 30.0
    """For a client to take more of an answer that waits for it."""
    keepalive_seconds: float = 75.0
    """A connection may idle between requests."""
    max_concurrent: int = 512
    """Requests being answered, and again so many whose body is still coming; beyond it 503."""
    max_bodies_per_address: int = 100
    """Requests of one address whose body is still coming; beyond it 503."""
    max_concurrent_per_address: int = 256
    """Requests of one address being answered; beyond it 503."""
    max_connections: int = 4096
    """Open connections; beyond it those go that have waited longest, of the address with the most that wait."""
    max_connections_per_address: int = 1000
    """Open connections of one address; beyond it that goes which has waited longest, or else nobody more comes in."""
    drain_seconds: float = 30.0
    """To finish what was begun at shutdown."""
    retry_after: int = 2
    """Of 503 and 500 answers."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose X-Request-Id is taken over."""
    hsts: bool = False
    """Send Strict-Transport-Security (RFC 6797): for TLS listeners whose plain HTTP twin is not needed by browsers."""


def address_in(address: str | None, networks: tuple[Network, ...]) -> bool:
    """Whether a peer's address is in one of the networks; IPv4-mapped IPv6 addresses count as IPv4."""
    if not address:
        return False
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)
