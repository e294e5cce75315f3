"""What PKCS#11 return values mean to this server."""

import pkcs11

from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind

SESSION_LOST = (
    pkcs11.SessionHandleInvalid,
    pkcs11.SessionClosed,
)
"""The worker's own session is gone; others may be well."""

TOKEN_LOST = (
    pkcs11.ObjectHandleInvalid,
    pkcs11.KeyHandleInvalid,
    pkcs11.UserNotLoggedIn,
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    pkcs11.DeviceMemory,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.GeneralError,
    pkcs11.FunctionFailed,
    pkcs11.HostMemory,
    pkcs11.SlotIDInvalid,
)
"""Nothing but initialising the module and logging in again helps."""

PIN_REFUSED = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)
"""The token has judged the PIN: the same one again is a try of those that it counts."""

_AWAY = "the token is away"


def unavailable(error: BaseException | str) -> CaError:
    """The token is away: try again. The return value's name is told, nothing else of the module's."""
    name = error if isinstance(error, str) else type(error).__name__
    detail = name if name.startswith(_AWAY) else f"{_AWAY} ({name})"
    return CaError(ErrorKind.UNAVAILABLE, detail, retry_after=5)


def login_failure(error: pkcs11.PKCS11Error, label: str, source: str) -> Exception:
    """What a failed log-in means: a mistake of configuration, or a token that is away."""
    if isinstance(error, (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)):
        return ConfigurationError(source, "PIN", None, f"is not the user PIN of token {label!r}")
    if isinstance(error, pkcs11.PinLocked):
        return ConfigurationError(
            source, "PIN", None, f"the user PIN of token {label!r} is locked; unlock it with the security officer's PIN"
        )
    if isinstance(error, pkcs11.PinExpired):
        return ConfigurationError(source, "PIN", None, f"the user PIN of token {label!r} has expired; set a new one")
    if isinstance(error, pkcs11.UserPinNotInitialized):
        return ConfigurationError(source, "PIN", None, f"token {label!r} has no user PIN yet; initialise it")
    return unavailable(error)


def is_token_lost(error: pkcs11.PKCS11Error) -> bool:
    """Whether to initialise and log in again: known values, and those that python-pkcs11 has no name for."""
    return isinstance(error, TOKEN_LOST) or type(error) is pkcs11.PKCS11Error
