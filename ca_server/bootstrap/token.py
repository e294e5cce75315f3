"""Opens the token, and makes the embedded one."""

import os
from pathlib import Path

from ca_server.bootstrap import metrics
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings
from hsm.keys import TokenKeyStore, open_keystore
from hsm.token import PinSource, TokenOptions

SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
SECRETS_LABEL = "secrets-1"
"""The AES key under which secrets in the database are encrypted."""
LOG_LABEL = "log-1"
"""The key that signs the audit log's checkpoints."""


def module_path(home: Home, settings: Settings) -> Path:
    """The PKCS#11 module: configured, or SoftHSM2 where Debian and others put it. ConfigurationError."""
    if settings.token.module:
        path = Path(settings.token.module)
        if not path.is_file():
            raise ConfigurationError(
                str(home.configuration), "token.module", str(path), "no such file; name the PKCS#11 module"
            )
        return path
    return softhsm_module(str(home.configuration))


def softhsm_module(where: str) -> Path:
    """SoftHSM2's module where Debian and others put it. ConfigurationError names `where` another could be named."""
    for candidate in SOFTHSM_MODULES:
        if Path(candidate).is_file():
            return Path(candidate)
    raise ConfigurationError(
        where,
        "token.module",
        "",
        "SoftHSM2 is not installed; install the package softhsm2, or name another PKCS#11 module",
    )


def pin_source(home: Home, settings: Settings) -> PinSource:
    """Where the PIN comes from. ConfigurationError where the environment variable that is named is not set."""
    if settings.token.pin_environment:
        if settings.token.pin_environment not in os.environ:
            raise ConfigurationError(
                str(home.configuration),
                "token.pin_environment",
                settings.token.pin_environment,
                "this environment variable is not set",
            )
        return PinSource.from_environment(settings.token.pin_environment)
    return PinSource.from_file(Path(settings.token.pin_file) if settings.token.pin_file else home.pin_file)


def token_options(home: Home, settings: Settings) -> TokenOptions:
    """How to open the token of this home."""
    return TokenOptions(
        module=module_path(home, settings),
        token_label=settings.token.label,
        pin=pin_source(home, settings),
        threads=settings.token.threads,
        softhsm_configuration=None if settings.token.module else home.softhsm_configuration,
        lock_path=home.token_lock,
        timeout=settings.token.timeout,
        probe_interval=settings.token.probe_interval,
    )


async def open_token(home: Home, settings: Settings) -> TokenKeyStore:
    """Log in to the token. ConfigurationError says what is wrong: module, token, PIN."""
    return await open_keystore(token_options(home, settings), observe=metrics.token)
