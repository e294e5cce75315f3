"""Makes the embedded token: SoftHSM2 with configuration and token directory of its own."""

from pathlib import Path

import pkcs11

from ca_server.domain.errors import ConfigurationError
from hsm.failures import unavailable
from hsm.module import Module
from hsm.pin import generate_pin

__all__ = ["configure_softhsm", "generate_pin", "initialize_softhsm"]

TOKENS = "{tokens}"
"""What stands for the token directory in the template of SoftHSM2's configuration."""
_PIN_RANGE = "the token does not take this PIN; choose one of 4 to 255 characters"


def configure_softhsm(*, template: str, configuration: Path, token_directory: Path) -> None:
    """Write SoftHSM2's configuration from its template, unless it is there."""
    if not configuration.exists():
        configuration.write_text(template.replace(TOKENS, str(token_directory)), "utf-8")


def initialize_softhsm(
    *,
    module: Path,
    template: str,
    configuration: Path,
    token_directory: Path,
    label: str,
    so_pin: bytes,
    user_pin: bytes,
) -> bool:
    """Write the configuration and make a token with its PINs; false where a token of this label stands already.

    `template` is the text of SoftHSM2's configuration; a configuration that is there is left as it is. PINs go to the
    module by call, never by argument of a process. ConfigurationError where the module refuses.
    """
    token_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    configure_softhsm(template=template, configuration=configuration, token_directory=token_directory)
    loaded = Module(module, configuration)
    library = loaded.initialise()
    try:
        free = None
        for slot in library.get_slots(token_present=True):
            token = slot.get_token()
            if token.label == label and pkcs11.TokenFlag.TOKEN_INITIALIZED in token.flags:
                if pkcs11.TokenFlag.USER_PIN_INITIALIZED in token.flags:
                    return False
                free = slot.slot_id
                break
            if pkcs11.TokenFlag.TOKEN_INITIALIZED not in token.flags:
                free = slot.slot_id
        if free is None:
            raise ConfigurationError("token", "label", label, "SoftHSM2 has no free slot for a new token")
        loaded.initialise_token(free, so_pin, label)
        token = library.get_token(token_label=label)
        with token.open(rw=True, so_pin=so_pin.decode()) as session:
            session.init_pin(user_pin.decode())
    except (pkcs11.PinLenRange, pkcs11.PinInvalid):
        raise ConfigurationError("token", "PIN", None, _PIN_RANGE) from None
    except pkcs11.PKCS11Error as error:
        raise unavailable(error) from None
    finally:
        loaded.finalise()
    return True
