"""`ca-server init`: makes a home with token, keys, issuers, database and configuration. Safe to run again."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import tomlkit

from ca_server.bootstrap.core import AnchorAcceptance, CoreRuntime
from ca_server.bootstrap.issuers import create_issuers
from ca_server.bootstrap.logkey import write_log_key
from ca_server.bootstrap.resources import shipped_configuration, shipped_softhsm
from ca_server.bootstrap.staging import add_staging_directory
from ca_server.bootstrap.stores import migrate_database
from ca_server.bootstrap.token import module_path, pin_source
from ca_server.bootstrap.users import check_reachable, create_folders, hand_over, resolve_users, write_private
from ca_server.configuration import load_settings
from ca_server.core.staging import staging_name
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.settings import Home, Settings, default_host
from hsm.pin import PinSource, generate_pin
from hsm.provision import initialize_softhsm

_log = structlog.get_logger()

INITIALISED = "initialised"


@dataclass(frozen=True, slots=True)
class InitialChoices:
    """What the operator chose on the command line, to be kept in the configuration file."""

    https_port: int | None = None
    http_port: int | None = None
    external_host: str | None = None
    allow_domains: tuple[str, ...] = ()
    pin_file: Path | None = None
    pin_environment: str = "CA_SERVER_PIN"
    staging: bool = False
    staging_directory: bool = False
    node: str | None = None


def mark_initialised(home: Home) -> None:
    """Write down that `init` ran to its end here."""
    (home.path / INITIALISED).write_text("ca-server\n", "utf-8")


def is_initialised(home: Home) -> bool:
    """Whether `init` ran to its end here."""
    try:
        return (home.path / INITIALISED).exists()
    except PermissionError:
        return True


async def initialise(home: Home, choices: InitialChoices, overrides: Sequence[str]) -> Settings:
    """Make the home; what an interrupted run left is taken up. ConfigurationError where something is in the way."""
    if is_initialised(home):
        raise ConfigurationError(str(home.path), "home", None, "is initialised already; 'ca-server serve' takes it up")
    make_home(home)
    if not home.configuration.exists():
        _write_configuration(home, choices)
    settings = load_settings(home.configuration, overrides)
    if choices.staging and not settings.server.staging:
        raise ConfigurationError(
            str(home.configuration),
            "server.staging",
            False,
            "this file was written for a home that is no staging one; remove it, or choose another --home",
        )
    users = resolve_users(settings.processes, str(home.configuration))
    check_reachable(home, users)
    create_folders(home, users)
    _copy_profiles(home)
    if choices.staging_directory:
        add_staging_directory(home)
        settings = load_settings(home.configuration, overrides)
    _make_token(home, settings, choices)
    await migrate_database(home, settings)
    hand_over(home, users)
    try:
        await _create_issuers(home, settings)
    except CaError as error:
        if error.kind is not ErrorKind.NOT_FOUND or not settings.database.url:
            raise
        raise ConfigurationError(
            str(home.configuration),
            "database.url",
            None,
            f"this database has a CA whose keys are in another token ({error.detail}); --join makes a node of it",
        ) from None
    hand_over(home, users)
    mark_initialised(home)
    return settings


def make_home(home: Home) -> None:
    """Make the home's folder. ConfigurationError where it can't be written."""
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        probe = home.path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            str(home.path), "home", None, f"can't be written ({error.strerror}); choose another with --home"
        ) from None


def _write_configuration(home: Home, choices: InitialChoices) -> None:
    document = tomlkit.parse((shipped_configuration() / "ca-server.toml").read_text("utf-8"))
    if choices.https_port is not None:
        document["listeners"]["https"]["port"] = choices.https_port
    if choices.http_port is not None:
        document["listeners"]["http"]["port"] = choices.http_port
    document["server"]["external_host"] = choices.external_host or default_host()
    if choices.node is not None:
        document["server"]["node"] = choices.node
    if choices.allow_domains:
        document["policy"]["extra_domains"] = list(choices.allow_domains)
    if choices.staging:
        document["server"]["staging"] = True
        for issuer in document["issuers"].values():
            issuer["common_name"] = staging_name(issuer["common_name"])
    temporary = home.configuration.with_suffix(".new")
    temporary.write_text(tomlkit.dumps(document), "utf-8")
    temporary.replace(home.configuration)


def _copy_profiles(home: Home) -> None:
    for source in sorted((shipped_configuration() / "profiles").glob("*.toml")):
        target = home.profiles / source.name
        if not target.exists():
            shutil.copyfile(source, target)


def _make_token(home: Home, settings: Settings, choices: InitialChoices) -> None:
    """Keep or make the PINs; make the embedded token, or leave a configured one as it is."""
    module = module_path(home, settings)
    if not settings.token.pin_environment and not settings.token.pin_file:
        keep_pin(home, settings, choices)
    pin = pin_source(home, settings).read()
    if settings.token.module:
        return
    if not home.so_pin_file.exists():
        write_private(home.so_pin_file, generate_pin().encode())
    initialize_softhsm(
        module=module,
        template=(shipped_softhsm() / "softhsm2.conf").read_text("utf-8"),
        configuration=home.softhsm_configuration,
        token_directory=home.tokens,
        label=settings.token.label,
        so_pin=PinSource.from_file(home.so_pin_file).read().encode(),
        user_pin=pin.encode(),
    )


def keep_pin(home: Home, settings: Settings, choices: InitialChoices) -> None:
    """Keep the PIN that the operator gives, in place of an earlier one; draw one for the embedded token alone.

    A PIN that was drawn is a wrong PIN for a token that somebody else made, and a token counts those.
    """
    chosen = chosen_pin(choices)
    if chosen is not None:
        home.pin_file.unlink(missing_ok=True)
        write_private(home.pin_file, chosen.encode())
    elif not home.pin_file.exists():
        if settings.token.module:
            raise ConfigurationError(
                "--pin-file", "PIN", None, f"give the user PIN of the token, by file or in {choices.pin_environment}"
            )
        write_private(home.pin_file, generate_pin().encode())


def chosen_pin(choices: InitialChoices) -> str | None:
    """The PIN of the file or the environment variable; None where neither gives one. ConfigurationError."""
    if choices.pin_file is not None:
        source = PinSource.from_file(choices.pin_file)
    elif os.environ.get(choices.pin_environment, "").strip():
        source = PinSource.from_environment(choices.pin_environment)
    else:
        return None
    pin = source.read()
    if not 4 <= len(pin.encode()) <= 255:  # noqa: PLR2004 - the range of SoftHSM2 and most tokens
        raise ConfigurationError(str(source), "PIN", None, "a PIN has 4 to 255 characters")
    return pin


async def _create_issuers(home: Home, settings: Settings) -> None:
    # A home that joins a database with a log has no anchor of it yet: joining is the operator's word for it.
    anchor = Path(settings.audit.anchor) if settings.audit.anchor else home.anchor
    joins = None if anchor.exists() else AnchorAcceptance("a new home takes up this database", f"uid:{os.getuid()}")
    async with CoreRuntime.open(home, settings, process="init", accept_anchor=joins) as core:
        write_log_key(home.log_key, core.log_key.spki_der)
        await create_issuers(core)
        await core.settle_in()
