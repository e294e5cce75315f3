"""`ca-server init --join`: a home for another node of a CA, made from a copy of a node's home.

Nodes of one CA share its PostgreSQL database and have the same keys: one HSM that all of them reach, or, with the
embedded token, a copy of it each. What a home is told apart by (its id, its lock, its sockets, the key of its
listeners) is made anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit

from ca_server.bootstrap.core import AnchorAcceptance, CoreRuntime
from ca_server.bootstrap.initialise import (
    InitialChoices,
    is_initialised,
    keep_pin,
    make_home,
    mark_initialised,
)
from ca_server.bootstrap.logkey import read_log_keys
from ca_server.bootstrap.resources import shipped_softhsm
from ca_server.bootstrap.token import module_path
from ca_server.bootstrap.users import check_reachable, create_folders, hand_over, resolve_users
from ca_server.configuration import load_settings
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.settings import Home, Settings
from ca_server.store.migrate import schema_state
from hsm.provision import configure_softhsm

_OTHER_DATABASE = "there is no CA in this database; name that of the other node"


async def join_home(home: Home, source: Home, node: str, choices: InitialChoices, overrides: Sequence[str]) -> Settings:
    """Make the home of the node `node` of the CA that `source` is (a copy of) a home of.

    What an interrupted run left is taken up. ConfigurationError where the two can't be nodes of one CA, or something
    is in the way.
    """
    if is_initialised(home):
        raise ConfigurationError(str(home.path), "home", None, "is initialised already; 'ca-server serve' takes it up")
    before = _settings_of(source, node, overrides)
    make_home(home)
    if not home.configuration.exists():
        _write_configuration(home, source, before, node, choices)
    settings = load_settings(home.configuration, overrides)
    if settings.server.node != node:
        raise ConfigurationError(
            str(home.configuration),
            "server.node",
            settings.server.node,
            f"this file was written for another node than {node}; remove it, or choose another --home",
        )
    users = resolve_users(settings.processes, str(home.configuration))
    check_reachable(home, users)
    create_folders(home, users)
    for profile in sorted(source.profiles.glob("*.toml")):
        shutil.copyfile(profile, home.profiles / profile.name)
    shutil.copyfile(source.log_key, home.log_key)
    _copy_token(home, source, settings, choices)
    _copy_private(source.anchor, home.anchor)
    hand_over(home, users)
    await _take_part(home, settings)
    hand_over(home, users)
    mark_initialised(home)
    return settings


def _settings_of(source: Home, node: str, overrides: Sequence[str]) -> Settings:
    """The settings of the home that is joined. ConfigurationError where it can have no second node, or not this."""
    if not is_initialised(source):
        raise ConfigurationError(str(source.path), "--join", None, "is no initialised home, nor a copy of one")
    settings = load_settings(source.configuration, overrides)
    if not settings.database.url:
        raise ConfigurationError(
            str(source.configuration),
            "database.url",
            "",
            "the nodes of a CA share a PostgreSQL database, and this one has its own SQLite file",
        )
    if settings.server.node == node:
        raise ConfigurationError("--node", "server.node", node, "is the node that is joined; give each node its own")
    if not os.access(source.core, os.R_OK | os.X_OK):
        raise ConfigurationError(str(source.core), "permissions", None, "can't be read; copy and join as root")
    return settings


def _write_configuration(home: Home, source: Home, before: Settings, node: str, choices: InitialChoices) -> None:
    """The other node's file with this one's name and ports: clients and certificates go on seeing the same URLs."""
    document: Any = tomlkit.parse(source.configuration.read_text("utf-8"))
    server = document.setdefault("server", tomlkit.table())
    server["node"] = node
    server["external_https_url"] = before.https_url
    server["external_http_url"] = before.http_url
    for name, port in (("https", choices.https_port), ("http", choices.http_port)):
        if port is None:
            continue
        if name not in document.get("listeners", {}):
            raise ConfigurationError(str(source.configuration), f"listeners.{name}", None, "there is no such listener")
        document["listeners"][name]["port"] = port
    draft = home.configuration.with_suffix(".new")
    draft.write_text(tomlkit.dumps(document), "utf-8")
    draft.replace(home.configuration)


def _copy_token(home: Home, source: Home, settings: Settings, choices: InitialChoices) -> None:
    """Take the PINs, and the embedded token with its keys; an HSM is where it is."""
    module_path(home, settings)
    if not settings.token.pin_environment and not settings.token.pin_file:
        _copy_private(source.pin_file, home.pin_file)
        keep_pin(home, settings, choices)
    if settings.token.module:
        return
    _copy_private(source.so_pin_file, home.so_pin_file)
    if not home.tokens.exists():
        draft = home.tokens.with_name("tokens.new")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source.tokens, draft)
        draft.chmod(0o700)
        draft.rename(home.tokens)
    configure_softhsm(
        template=(shipped_softhsm() / "softhsm2.conf").read_text("utf-8"),
        configuration=home.softhsm_configuration,
        token_directory=home.tokens,
    )


def _copy_private(source: Path, target: Path) -> None:
    """Copy what its owner alone may read, where it is there and the target is not."""
    if not source.exists() or target.exists():
        return
    draft = target.with_name(target.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(source.read_bytes())
    draft.rename(target)


async def _take_part(home: Home, settings: Settings) -> None:
    """Be this node once: database, log and token must be those of the home that was joined."""
    if (await schema_state(settings.database.url)).current is None:
        raise ConfigurationError(str(home.configuration), "database.url", None, _OTHER_DATABASE)
    anchor = Path(settings.audit.anchor) if settings.audit.anchor else home.anchor
    accepted = None
    if not anchor.exists():
        accepted = AnchorAcceptance("a new node takes up this database", f"uid:{os.getuid()}")
    try:
        async with CoreRuntime.open(home, settings, process="init", accept_anchor=accepted) as core:
            if core.gate.reason is not None:
                raise ConfigurationError(str(home.configuration), "database.url", None, core.gate.reason)
            if not core.issuers.all():
                raise ConfigurationError(str(home.configuration), "database.url", None, _OTHER_DATABASE)
            if core.log_key.spki_der not in read_log_keys(home.log_key):
                raise ConfigurationError(
                    str(home.log_key), "log key", None, "is not that of the token; copy the whole home"
                )
            await core.settle_in()
    except CaError as error:
        if error.kind not in {ErrorKind.NOT_FOUND, ErrorKind.CONFLICT, ErrorKind.MALFORMED}:
            raise
        raise ConfigurationError(
            "token", "label", settings.token.label, f"is not the token of this CA: {error.detail}"
        ) from None
