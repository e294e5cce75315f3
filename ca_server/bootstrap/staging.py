"""A staging directory beside the real one: twins of the default profile and its issuers, for clients to test with."""

import os
import shutil
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit import TOMLDocument

from ca_server.core.staging import staging_name
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings

PROFILE: Final = "staging"
_PREFIX: Final = "staging-"
_MAX_COMMON_NAME: Final = 64


def add_staging_directory(home: Home) -> None:
    """Write the twins into configuration and profiles of a home; what is there stays as it is. ConfigurationError.

    The twin of an issuer has its name with `staging-` before it, and a staging issuer above it.
    """
    document = tomlkit.parse(home.configuration.read_text("utf-8"))
    default = document.get("policy", {}).get("default_profile", Settings().policy.default_profile)
    source = home.profiles / f"{default}.toml"
    body = tomlkit.parse(source.read_text("utf-8"))
    issuer = str(body["issuer"])
    _add_issuers(home, document, issuer)
    _replace(home.configuration, tomlkit.dumps(document), like=home.configuration)
    target = home.profiles / f"{PROFILE}.toml"
    if not target.exists():
        body["issuer"] = _PREFIX + issuer
        body["description"] = "For clients to test with: from a staging CA that nobody trusts"
        _replace(target, tomlkit.dumps(body), like=source)


def _add_issuers(home: Home, document: TOMLDocument, issuer: str) -> None:
    issuers: Any = document.get("issuers", {})
    name = issuer
    while name:
        if name not in issuers:
            raise ConfigurationError(
                str(home.configuration), "issuers", name, "declare it, to have a staging twin of it"
            )
        parent = str(issuers[name].get("parent", ""))
        twin = tomlkit.table()
        for key, value in issuers[name].items():
            twin.add(key, value)
        twin["common_name"] = staging_name(str(issuers[name]["common_name"]))[:_MAX_COMMON_NAME]
        twin["staging"] = True
        if parent:
            twin["parent"] = _PREFIX + parent
        if _PREFIX + name not in issuers:
            issuers[_PREFIX + name] = twin
        name = parent


def _replace(file: Path, text: str, *, like: Path) -> None:
    """Write a file at once, with owner and mode of another."""
    temporary = file.with_suffix(".new")
    temporary.write_text(text, "utf-8")
    shutil.copymode(like, temporary)
    if os.getuid() == 0:
        os.chown(temporary, like.stat().st_uid, like.stat().st_gid)
    temporary.replace(file)
