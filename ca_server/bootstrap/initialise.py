"""`ca-server init`: makes a home with token, keys, issuers, database and configuration. Safe to run again."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import tomlkit

from ca_server.bootstrap.core import CoreRuntime
from ca_server.bootstrap.logkey import write_log_key
from ca_server.bootstrap.resources import shipped_configuration, shipped_softhsm
from ca_server.bootstrap.stores import database_url
from ca_server.bootstrap.token import module_path
from ca_server.bootstrap.users import check_reachable, create_folders, hand_over, resolve_users, write_private
from ca_server.core.issuers import IssuerPlan
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings, default_host, load_settings
from ca_server.store.migrate import migrate
from hsm.provision import generate_pin, initialize_softhsm

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
    _make_home(home)
    if not home.configuration.exists():
        _write_configuration(home, choices)
    settings = load_settings(home.configuration, overrides)
    users = resolve_users(settings.processes, str(home.configuration))
    check_reachable(home, users)
    create_folders(home, users)
    _copy_profiles(home)
    _make_token(home, settings, choices)
    await migrate(database_url(home, settings))
    hand_over(home, users)
    await _create_issuers(home, settings)
    hand_over(home, users)
    (home.path / INITIALISED).write_text("ca-server\n", "utf-8")
    return settings


def _make_home(home: Home) -> None:
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
    if choices.allow_domains:
        document["policy"]["extra_domains"] = list(choices.allow_domains)
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
    own_pin = not settings.token.pin_environment and not settings.token.pin_file
    if own_pin and not home.pin_file.exists():
        write_private(home.pin_file, chosen_pin(choices) or generate_pin().encode())
    if settings.token.module:
        return
    if not home.so_pin_file.exists():
        write_private(home.so_pin_file, generate_pin().encode())
    pin_path = Path(settings.token.pin_file) if settings.token.pin_file else home.pin_file
    initialize_softhsm(
        module=module,
        template=(shipped_softhsm() / "softhsm2.conf").read_text("utf-8"),
        configuration=home.softhsm_configuration,
        token_directory=home.tokens,
        label=settings.token.label,
        so_pin=home.so_pin_file.read_bytes().strip(),
        user_pin=os.environ[settings.token.pin_environment].encode()
        if settings.token.pin_environment
        else pin_path.read_bytes().strip(),
    )


def chosen_pin(choices: InitialChoices) -> bytes | None:
    """The PIN of the file or the environment variable; None where neither gives one. ConfigurationError."""
    if choices.pin_file is not None:
        try:
            pin = choices.pin_file.read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(
                str(choices.pin_file), "--pin-file", None, f"can't be read: {error.strerror}"
            ) from None
    else:
        pin = os.environ.get(choices.pin_environment, "").strip().encode()
        if not pin:
            return None
    if not 4 <= len(pin) <= 255:  # noqa: PLR2004 - the range of SoftHSM2 and most tokens
        where = str(choices.pin_file or f"environment {choices.pin_environment}")
        raise ConfigurationError(where, "PIN", None, "a PIN has 4 to 255 characters")
    return pin


async def _create_issuers(home: Home, settings: Settings) -> None:
    async with CoreRuntime.open(home, settings, process="init") as core:
        write_log_key(home.log_key, core.log_key.spki_der)
        existing = {issuer.name for issuer in core.issuers.all()}
        for name in _parents_first(settings):
            if name in existing:
                continue
            issuer = settings.issuers[name]
            await core.ceremony.create(
                IssuerPlan(
                    name=name,
                    parent=issuer.parent or None,
                    algorithm=issuer.key,
                    common_name=issuer.common_name,
                    organization=issuer.organization,
                    country=issuer.country,
                    days=issuer.days,
                    path_length=issuer.path_length,
                )
            )
        await core.issuers_changed()
        await core.settle_in()


def _parents_first(settings: Settings) -> list[str]:
    ordered: list[str] = []

    def visit(name: str) -> None:
        parent = settings.issuers[name].parent
        if parent and parent not in ordered:
            visit(parent)
        if name not in ordered:
            ordered.append(name)

    for name in settings.issuers:
        visit(name)
    return ordered
