"""Checks of what DNS says to this server."""

from collections.abc import AsyncIterator

from ca_server.bootstrap.caa import system_resolver
from ca_server.bootstrap.checkup.model import Check, bad, good, warning
from ca_server.bootstrap.profiles import load_profiles
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.profile_rules import CaaMode
from ca_server.settings import Home, Settings
from protocols.acme.caa.checking import look_up
from protocols.acme.caa.evaluation import CaaLookup


async def caa(home: Home, settings: Settings) -> AsyncIterator[Check]:
    """CAA records can be looked up, from a domain of each profile that wants them up to the top-level domain."""
    try:
        profiles = load_profiles(home, settings)
    except ConfigurationError as error:
        yield bad("profiles", str(error))
        return
    wanted = {
        name: min(domains)
        for name, profile in profiles.items()
        if profile.caa is not CaaMode.OFF and (domains := profile.names.dns_suffixes | profile.names.dns)
    }
    found = await look_up(system_resolver(settings), sorted({*wanted.values()})) if wanted else {}
    for profile, domain in wanted.items():
        name, answer = f"caa lookups of {profile}", found[domain]
        if isinstance(answer, CaaLookup):
            records = f"{len(answer.records)} records at {answer.found_at}" if answer.records else "no records"
            yield good(name, f"{domain}: {records}, {'' if answer.authenticated else 'not '}authenticated (DNSSEC)")
        else:
            told = f"{domain}: {answer.detail}; let dns.nameservers be resolvers that answer for every name"
            yield bad(name, told) if profiles[profile].caa is CaaMode.ENFORCE else warning(name, told)
