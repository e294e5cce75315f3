"""Reads the profiles of a home."""

from collections.abc import Mapping
from pathlib import Path

from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.profile_rules import CaaMode
from ca_server.domain.profiles import Profile, load_profile
from ca_server.settings import Home, Settings


def load_profiles(home: Home, settings: Settings) -> dict[str, Profile]:
    """Read and validate every profile. ConfigurationError names file, key, value and remedy."""
    profiles = {}
    try:
        files = sorted(home.profiles.glob("*.toml"))
    except OSError as error:
        raise ConfigurationError(str(home.profiles), "profiles", None, f"can't be read: {error}") from None
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(str(file), "file", None, f"can't be read: {error}") from None
        profile = load_profile(file.stem, text, where=str(file), extra_domains=settings.policy.extra_domains)
        _check(home, settings, file, profile)
        profiles[file.stem] = profile
    _check_chaos(home, settings, profiles)
    default = settings.policy.default_profile
    if default not in profiles:
        known = ", ".join(sorted(profiles))
        raise ConfigurationError(
            str(home.configuration),
            "policy.default_profile",
            default,
            f"no such file in {home.profiles}; known: {known}",
        )
    for needed in ("listener", "ocsp-responder"):
        if needed not in profiles:
            raise ConfigurationError(str(home.profiles), f"{needed}.toml", None, "this profile is missing; put it back")
    serves_acme = any("acme" in listener.serves for listener in settings.listeners.values())
    if serves_acme and Protocol.ACME not in profiles[default].frontends:
        raise ConfigurationError(
            str(home.configuration),
            "policy.default_profile",
            default,
            "this profile is not for ACME, which a listener serves; name another",
        )
    return profiles


def _check(home: Home, settings: Settings, file: Path, profile: Profile) -> None:
    """Hold a profile against the settings. ConfigurationError."""
    if profile.issuer not in settings.issuers:
        raise ConfigurationError(
            str(file), "issuer", profile.issuer, f"no such issuer; known: {', '.join(sorted(settings.issuers))}"
        )
    if not settings.issuers[profile.issuer].parent:
        raise ConfigurationError(
            str(file), "issuer", profile.issuer, "a root issues to nobody but CAs; name an issuing CA"
        )
    if profile.caa is not CaaMode.OFF and not settings.acme.caa_identities:
        raise ConfigurationError(
            str(file),
            "caa",
            profile.caa.value,
            f"acme.caa_identities in {home.configuration} is empty; write there what CAA records call this CA",
        )


def _check_chaos(home: Home, settings: Settings, profiles: Mapping[str, Profile]) -> None:
    """Clients are tried by profiles of staging issuers alone. ConfigurationError."""
    for name in settings.acme.chaos.profiles:
        if name not in profiles:
            remedy = f"no such file in {home.profiles}; known: {', '.join(sorted(profiles))}"
        elif not settings.is_staging_issuer(profiles[name].issuer):
            remedy = f"issuer {profiles[name].issuer!r} of this profile is no staging issuer; leave the profile out"
        else:
            continue
        raise ConfigurationError(str(home.configuration), "acme.chaos.profiles", name, remedy)
