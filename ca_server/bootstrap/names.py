"""The names of the server's own TLS certificate."""

import ipaddress

from ca_server.domain.errors import ConfigurationError
from ca_server.domain.names import Identifier, InvalidNameError, dns_identifier, ip_identifier
from ca_server.settings import Settings


def listener_identifiers(settings: Settings) -> tuple[Identifier, ...]:
    """External host, configured names, `localhost` and the loopback addresses. ConfigurationError."""
    found: dict[Identifier, None] = {}
    for key, name in (
        ("server.external_host", settings.external_host),
        *(("server.names", name) for name in settings.server.names),
        ("server.names", "localhost"),
        ("server.names", "127.0.0.1"),
        ("server.names", "::1"),
    ):
        try:
            found[_identifier(name)] = None
        except InvalidNameError as error:
            raise ConfigurationError("configuration", key, name, str(error)) from None
    return tuple(found)


def _identifier(name: str) -> Identifier:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return dns_identifier(name, wildcard=False)
    return ip_identifier(name)
