"""Which addresses of an applicant a validation may connect to, how TLS is spoken there, and how a failure is told.

Names and addresses are chosen by whoever asks for a certificate: an address is checked after it was looked up, and is
then the one connected to, so that no second lookup can give another.
"""

import ssl
from ipaddress import ip_address

from ca_server.domain.names import InvalidNameError, dns_identifier, ip_identifier
from protocols.acme.validation.model import IPAddress, ValidationPolicy, problem
from protocols.acme.validation.resolver import DnsFailure, Resolver

_SHOWN_ADDRESSES = 3
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: no finite fields, whose size the peer chooses."""


class FailedError(Exception):
    """Ends a validation with its problem."""

    def __init__(self, kind: str, detail: str, *, retryable: bool) -> None:
        super().__init__(detail)
        self.problem = problem(kind, detail, retryable=retryable)


async def permitted_addresses(
    host: str, where: str, policy: ValidationPolicy, resolver: Resolver
) -> tuple[IPAddress, ...]:
    """Addresses of a DNS name or an IP literal that policy lets validation connect to; at least one.

    Raises FailedError, whose detail begins with `where` unless it is about the lookup.
    """
    try:
        found = (_literal(host),) if _is_literal(host) else await resolver.addresses(_host_name(host))
    except DnsFailure as failure:
        raise FailedError("dns", failure.detail, retryable=failure.retryable) from failure
    except InvalidNameError as error:
        raise FailedError("connection", f"{where}: {error}", retryable=False) from error
    permitted = tuple(address for address in found if policy.permits(address))
    if not permitted:
        raise FailedError("connection", f"{where}: policy forbids to connect to {listed(found)}", retryable=False)
    return permitted


def client_context(*protocols: str) -> ssl.SSLContext:
    """TLS 1.2 or later, with these protocols by ALPN; the peer's certificate may be anybody's.

    Who asks for a certificate has none that could be checked (RFC 8555 section 8.3), or it is the answer (RFC 8737).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def listed(addresses: tuple[IPAddress, ...]) -> str:
    """The first addresses, as text."""
    more = ", ..." if len(addresses) > _SHOWN_ADDRESSES else ""
    return ", ".join(str(address) for address in addresses[:_SHOWN_ADDRESSES]) + more


def _is_literal(host: str) -> bool:
    # a name never ends in a number, so that what has only digits there is an address or nothing (RFC 3696 section 2)
    return ":" in host or host.rstrip(".").rpartition(".")[2].isdigit()


def _literal(host: str) -> IPAddress:
    return ip_address(ip_identifier(host).value)


def _host_name(host: str) -> str:
    return dns_identifier(host.removesuffix("."), wildcard=False).value
