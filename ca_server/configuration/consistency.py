"""What types alone can't check about the settings: names, addresses, networks, URLs, and what refers to what."""

import ipaddress
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from ca_server.configuration.wording import Mistake
from ca_server.domain.names import InvalidNameError, dns_identifier, ip_identifier
from ca_server.domain.rates import parse_rate
from ca_server.domain.syslog import SyslogAddress
from ca_server.settings import Settings

_POSTGRESQL = ("postgresql", "postgres", "postgresql+asyncpg")
MAX_ISSUER_DOMAIN_NAMES = 10
_DATABASES = ("sqlite", "sqlite+aiosqlite", *_POSTGRESQL)


def check_consistency(settings: Settings) -> Mistake | None:
    """The first setting that its type allows and that can't be; None where all can."""
    return next(
        (
            mistake
            for check in (
                _listeners,
                _hosts,
                _networks,
                _nameservers,
                _urls,
                _roles,
                _domains,
                _challenges,
                _issuers,
                _syslog,
                _limits,
                _unsafe,
            )
            for mistake in check(settings)
        ),
        None,
    )


def _listeners(settings: Settings) -> Iterator[Mistake]:
    if not settings.listeners:
        yield Mistake("listeners", None, "declare at least one [listeners.NAME]")
    taken: dict[int, str] = {}
    for name, listener in settings.listeners.items():
        other = taken.setdefault(listener.port, name)
        if other != name:
            remedy = f"already taken by listeners.{other}; choose another"
            yield Mistake(f"listeners.{name}.port", listener.port, remedy)
        try:
            ipaddress.ip_address(listener.address)
        except ValueError:
            yield Mistake(f"listeners.{name}.address", listener.address, "write an IPv4 or IPv6 address")


def _hosts(settings: Settings) -> Iterator[Mistake]:
    hosts = [("server.names", name) for name in settings.server.names]
    if settings.server.external_host:
        hosts.insert(0, ("server.external_host", settings.server.external_host))
    for key, host in hosts:
        try:
            ip_identifier(host)
            continue
        except InvalidNameError:
            pass
        try:
            dns_identifier(host, wildcard=False)
        except InvalidNameError as error:
            yield Mistake(key, host, f"write a DNS name or an address, without scheme and port ({error})")


def _networks(settings: Settings) -> Iterator[Mistake]:
    for key, networks in (
        ("acme.allowed_networks", settings.acme.allowed_networks),
        ("acme.denied_networks", settings.acme.denied_networks),
        ("metrics.allow_from", settings.metrics.allow_from),
        ("audit.log_allow_from", settings.audit.log_allow_from),
    ):
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                yield Mistake(key, network, f"write a network such as 10.0.0.0/8 ({error})")


def _syslog(settings: Settings) -> Iterator[Mistake]:
    if settings.audit.syslog:
        try:
            SyslogAddress.parse(settings.audit.syslog)
        except ValueError as error:
            yield Mistake("audit.syslog", settings.audit.syslog, str(error))


def _limits(settings: Settings) -> Iterator[Mistake]:
    limits = settings.acme.limits
    for name in limits.__struct_fields__:
        text = getattr(limits, name)
        if not isinstance(text, str) or name == "help_url":
            continue
        try:
            parse_rate(text)
        except ValueError as error:
            yield Mistake(f"acme.limits.{name}", text, str(error))


def _nameservers(settings: Settings) -> Iterator[Mistake]:
    for server in settings.dns.nameservers:
        host, port = server, ""
        if server.startswith("["):
            host, _, port = server[1:].partition("]")
            port = port.removeprefix(":")
        elif server.count(":") == 1:
            host, _, port = server.partition(":")
        try:
            ipaddress.ip_address(host)
            is_valid = not port or 1 <= int(port) <= 65_535  # noqa: PLR2004 - the last port
        except ValueError:
            is_valid = False
        if not is_valid:
            remedy = "write an address, with a port where it is not 53: 10.0.0.53, 10.0.0.53:5353, [fd00::53]:5353"
            yield Mistake("dns.nameservers", server, remedy)


def _urls(settings: Settings) -> Iterator[Mistake]:
    for key, url, schemes in (
        ("server.external_https_url", settings.server.external_https_url, ("https",)),
        ("server.external_http_url", settings.server.external_http_url, ("http",)),
        ("acme.terms_of_service", settings.acme.terms_of_service, ("https", "http")),
        ("acme.website", settings.acme.website, ("https", "http")),
        ("acme.limits.help_url", settings.acme.limits.help_url, ("https", "http")),
    ):
        if url and not _is_url(url, schemes):
            yield Mistake(key, url, f"write a URL in ASCII that begins with {schemes[0]}://")
        elif key.startswith("server.") and not _is_base_url(url):
            yield Mistake(key, url, f"write {schemes[0]}://HOST[:PORT][/PATH], nothing behind it")
    scheme, colon, _ = settings.database.url.partition(":")
    if settings.database.url and (not colon or scheme not in _DATABASES):
        # The URL itself is not shown: somebody may have put a password in it.
        yield Mistake("database.url", None, "write postgresql://user@host/name or sqlite:////path/of/file")


def _roles(settings: Settings) -> Iterator[Mistake]:
    """Roles of one database: each another, none with a password where the others' processes read it."""
    database = settings.database
    others = (("database.front_url", database.front_url), ("database.owner_url", database.owner_url))
    if not any(url for _, url in others):
        return
    taken: dict[str, str] = {}
    for key, url in (("database.url", database.url), *others):
        if key != "database.url" and not url:
            continue
        if url.partition(":")[0] not in _POSTGRESQL:
            yield Mistake(key, None, "write postgresql://role@host/name: roles are PostgreSQL's")
            continue
        parts = urlsplit(url)
        if parts.password is not None or "password" in parse_qs(parts.query):
            remedy = "put no password here, for all to read, but ?passfile=FILE behind it, a file of its reader alone"
            yield Mistake(key, None, remedy)
        elif not parts.username:
            yield Mistake(key, None, "name the role: postgresql://role@host/name")
        elif (other := taken.setdefault(parts.username, key)) != key:
            yield Mistake(key, None, f"names the role of {other}; give it one of its own, or leave it out")


def _is_url(url: str, schemes: tuple[str, ...]) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_base_url(url: str) -> bool:
    parts = urlsplit(url)
    return not (parts.query or parts.fragment or parts.username)


def _domains(settings: Settings) -> Iterator[Mistake]:
    for key, domains, prefix in (
        ("policy.extra_domains", settings.policy.extra_domains, "."),
        ("acme.caa_identities", settings.acme.caa_identities, ""),
    ):
        for domain in domains:
            try:
                dns_identifier(domain.removeprefix(prefix), wildcard=False)
            except InvalidNameError as error:
                yield Mistake(key, domain, f"write a domain such as corp.example ({error})")


def _challenges(settings: Settings) -> Iterator[Mistake]:
    """draft-ietf-acme-dns-persist-02 section 3.1: one to ten names of this CA."""
    number = len(settings.acme.caa_identities)
    if "dns-persist-01" in settings.acme.challenges and not 1 <= number <= MAX_ISSUER_DOMAIN_NAMES:
        remedy = f"dns-persist-01 needs 1 to {MAX_ISSUER_DOMAIN_NAMES} names in acme.caa_identities"
        yield Mistake("acme.challenges", settings.acme.challenges, remedy)


def _issuers(settings: Settings) -> Iterator[Mistake]:
    for name, issuer in settings.issuers.items():
        if issuer.parent and issuer.parent not in settings.issuers:
            yield Mistake(f"issuers.{name}.parent", issuer.parent, "name an issuer of this file, or leave it out")
        elif issuer.parent and issuer.staging is not settings.issuers[issuer.parent].staging:
            kind = "a staging issuer" if issuer.staging else "no staging issuer"
            yield Mistake(f"issuers.{name}.parent", issuer.parent, f"{name} is {kind}, its parent must be the same")
        seen = {name}
        ancestor = issuer.parent
        while ancestor:
            if ancestor in seen:
                yield Mistake(f"issuers.{name}.parent", issuer.parent, "parents must not form a circle")
                break
            seen.add(ancestor)
            ancestor = settings.issuers[ancestor].parent if ancestor in settings.issuers else ""
        if issuer.crl_interval > issuer.crl_lifetime / 2:
            yield Mistake(f"issuers.{name}.crl_interval", issuer.crl_interval, "at most half of crl_lifetime")


def _unsafe(settings: Settings) -> Iterator[Mistake]:
    if settings.acme.unsafe_skip_validation and not settings.server.staging:
        yield Mistake(
            "acme.unsafe_skip_validation",
            value=True,
            remedy="only for a home made by 'ca-server init --staging'; leave it out",
        )
