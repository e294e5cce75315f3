"""The PKCS#11 module: loaded once in a process, initialised for threads, finalised to recover.

python-pkcs11 calls C_Initialize without arguments, which tells a module that only one thread will come: SoftHSM2 then
crashes when two do. So the module is initialised here with CKF_OS_LOCKING_OK (PKCS#11 v2.40 section 5.4), and the
library object is made without its own initialiser.
"""

import ctypes
import os
from pathlib import Path

from pkcs11 import _pkcs11

from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind

_OS_LOCKING_OK = 2
_OK = 0
_ALREADY_INITIALISED = 0x191
_NOT_INITIALISED = 0x190


class _InitializeArguments(ctypes.Structure):
    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class Module:
    """A loaded PKCS#11 module. Not for use across a fork. Calls must not overlap with `finalise`."""

    def __init__(self, path: Path, softhsm_configuration: Path | None = None) -> None:
        """Load the module. ConfigurationError where it is missing or no PKCS#11 module."""
        if not path.is_file():
            raise ConfigurationError("token", "module", str(path), "no such file; install or name the PKCS#11 module")
        if softhsm_configuration is not None:
            os.environ["SOFTHSM2_CONF"] = str(softhsm_configuration)
        self.path = path
        try:
            self._native = ctypes.CDLL(str(path))
            self._native.C_Initialize.argtypes = [ctypes.c_void_p]
            self._native.C_Finalize.argtypes = [ctypes.c_void_p]
        except (OSError, AttributeError) as error:
            raise ConfigurationError(
                "token", "module", str(path), f"can't be loaded as a PKCS#11 module ({error})"
            ) from None
        self.library: _pkcs11.lib | None = None

    def initialise(self) -> _pkcs11.lib:
        """Initialise for threads. CaError UNAVAILABLE with the module's return value where it refuses."""
        arguments = _InitializeArguments(flags=_OS_LOCKING_OK)
        code = self._native.C_Initialize(ctypes.byref(arguments)) & 0xFFFFFFFF
        if code not in {_OK, _ALREADY_INITIALISED}:
            raise CaError(ErrorKind.UNAVAILABLE, f"the PKCS#11 module can't be initialised (CKR {code:#x})")
        self.library = _pkcs11.lib.__new__(_pkcs11.lib, str(self.path))  # type: ignore[call-arg]  # Cython's __cinit__
        return self.library

    def finalise(self) -> None:
        """Let go of every session and handle; harmless where nothing was initialised."""
        self.library = None
        self._native.C_Finalize(None)

    def initialise_token(self, slot: int, so_pin: bytes, label: str) -> None:
        """C_InitToken. ConfigurationError with the module's return value where it refuses."""
        call = self._native.C_InitToken
        call.argtypes = [ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
        code = call(slot, so_pin, len(so_pin), label.encode().ljust(32)) & 0xFFFFFFFF
        if code != _OK:
            raise ConfigurationError("token", "label", label, f"the token can't be initialised (CKR {code:#x})")
