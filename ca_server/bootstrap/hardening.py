"""What the kernel is asked to refuse to this process and to its children (prctl(2))."""

import ctypes
import os

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def no_new_privileges() -> None:
    """Let no program that is started from here on gain rights by its file's: setuid, setgid, capabilities.

    Rights can still be given up; children inherit it, and nothing undoes it. OSError where the kernel refuses.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def keep_memory_private() -> None:
    """Keep PIN and keys in this process: no core dump, and no look into it by other processes of its user.

    OSError where the kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *4 * (ctypes.c_ulong,))
    if prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
