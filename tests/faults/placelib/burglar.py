"""Run in the place of a front: tries what a front must not be able to do, and says of each how it ended.

HOME is the server's home, CORE_FILES all that is below its folder `core`, METRICS the core's files of metrics, ONLY
what is tried of it all, or nothing for everything.
"""
# System calls, one attempt each:
# ruff: noqa: PTH104, PTH108, PTH115, PTH116, PTH118, PTH123, PTH208

import contextlib
import ctypes
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from typing import Any

GIVEN: dict[str, Any] = {}
HOME: str = GIVEN["HOME"]
CORE_FILES: list[str] = GIVEN["CORE_FILES"]
METRICS: list[str] = GIVEN["METRICS"]
ONLY: list[str] = GIVEN["ONLY"]

LIBC = ctypes.CDLL(None, use_errno=True)
SUPERVISOR = os.getppid()
PTRACE_ATTACH, PIDFD_OPEN, PIDFD_GETFD = 16, 434, 438


def core() -> int:
    with open(f"/proc/{SUPERVISOR}/task/{SUPERVISOR}/children") as file:
        children = [int(word) for word in file.read().split()]
    for pid in children:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        if b"process" in words and words[words.index(b"process") + 1] == b"core":
            return pid
    raise AssertionError("there is no core")


CORE = core()


def opened(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def of_c(returned: int) -> None:
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_memory(pid: int) -> None:
    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(1)
    here, there = Vector(ctypes.addressof(buffer), 1), Vector(0x400000, 1)
    call = LIBC.process_vm_readv
    call.restype = ctypes.c_ssize_t
    of_c(call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))


def take_descriptor(pid: int) -> None:
    pidfd = LIBC.syscall(PIDFD_OPEN, pid, 0)
    of_c(pidfd)
    of_c(LIBC.syscall(PIDFD_GETFD, pidfd, 0, 0))


def attach(pid: int) -> None:
    LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    LIBC.ptrace.restype = ctypes.c_long
    of_c(LIBC.ptrace(PTRACE_ATTACH, pid, None, None))


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)


def lifeline() -> int:
    return int(os.environ["CA_SERVER_LIFELINE_FD"])


def attempts() -> dict[str, Callable[[], object]]:
    tried: dict[str, Callable[[], object]] = {
        f"list {HOME}/core": lambda: os.listdir(f"{HOME}/core"),
        f"list {HOME}/core/tokens": lambda: os.listdir(f"{HOME}/core/tokens"),
        "talk to the operators' port": lambda: connect(f"{HOME}/core/admin.sock"),
        "speak to the core's port": lambda: connect(f"{HOME}/run/core.sock"),
        "become root": lambda: os.setuid(0),
        "become the core": lambda: os.setuid(os.stat(f"{HOME}/run").st_uid),
        "take root's group": lambda: os.setgid(0),
        "take groups": lambda: os.setgroups([0]),
        "hold the core's life": lambda: opened(f"/proc/self/fd/{lifeline()}", os.O_WRONLY),
        "put a socket beside the core's": lambda: opened(f"{HOME}/run/mine", os.O_CREAT | os.O_WRONLY),
        "take the core's socket away": lambda: os.unlink(f"{HOME}/run/core.sock"),
        "take the core's socket's place": lambda: os.rename(f"{HOME}/run/core.sock", f"{HOME}/data/core.sock"),
        "take the database away": lambda: os.unlink(f"{HOME}/data/ca.db"),
        "take the database's place": lambda: os.rename(f"{HOME}/data/ca.db", f"{HOME}/data/other.db"),
        "write the profiles": lambda: opened(f"{HOME}/profiles/default.toml", os.O_WRONLY),
        "add a profile": lambda: opened(f"{HOME}/profiles/mine.toml", os.O_CREAT | os.O_WRONLY),
        "write the configuration": lambda: opened(f"{HOME}/ca-server.toml", os.O_WRONLY),
        "take the configuration's place": lambda: os.rename(f"{HOME}/tls", f"{HOME}/ca-server.toml"),
        "write the log's key": lambda: opened(f"{HOME}/log-key.pem", os.O_WRONLY),
        "write into the home": lambda: opened(f"{HOME}/mine", os.O_CREAT | os.O_WRONLY),
        "write the server's code": lambda: opened(os.path.join(os.environ["CODE"], "__main__.py"), os.O_WRONLY),
    }
    for path in CORE_FILES:
        tried[f"read {path}"] = lambda path=path: opened(path)
        tried[f"write {path}"] = lambda path=path: opened(path, os.O_WRONLY)
        tried[f"remove {path}"] = lambda path=path: os.unlink(path)
    for path in METRICS:
        tried[f"write {path}"] = lambda path=path: opened(path, os.O_WRONLY)
        tried[f"remove {path}"] = lambda path=path: os.unlink(path)
    for name, pid in (("core", CORE), ("supervisor", SUPERVISOR)):
        for file in ("environ", "maps", "auxv"):
            tried[f"read the {name}'s {file}"] = lambda pid=pid, file=file: opened(f"/proc/{pid}/{file}")
        tried[f"open the {name}'s memory"] = lambda pid=pid: opened(f"/proc/{pid}/mem")
        tried[f"read the {name}'s memory"] = lambda pid=pid: read_memory(pid)
        tried[f"list the {name}'s descriptors"] = lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        tried[f"enter the {name}'s folder"] = lambda pid=pid: os.readlink(f"/proc/{pid}/cwd")
        tried[f"take the {name}'s descriptor"] = lambda pid=pid: take_descriptor(pid)
        tried[f"trace the {name}"] = lambda pid=pid: attach(pid)
        tried[f"signal the {name}"] = lambda pid=pid: os.kill(pid, signal.SIGCONT)
        tried[f"limit the {name}"] = lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9))
        tried[f"slow the {name}"] = lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, 19)
    return tried


def ended(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, ValueError) as error:
        return type(error).__name__ if isinstance(error, PermissionError) else str(error)
    return "done"


def descriptors() -> dict[str, str]:
    """What it inherited beside the standard streams, each by kind."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found[name] = kind(int(name))
    return found


def kind(descriptor: int) -> str:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISSOCK(mode):
        return "pipe" if stat.S_ISFIFO(mode) else str(mode)
    with socket.socket(fileno=os.dup(descriptor)) as inherited:
        return "listener" if inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else "socket"


def readable() -> list[str]:
    """What a front is to read, and does."""
    places = {
        "the configuration": "ca-server.toml",
        "a profile": "profiles/default.toml",
        "the log's key": "log-key.pem",
    }
    return [name for name, path in places.items() if ended(lambda path=path: opened(f"{HOME}/{path}")) == "done"]


def status() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


inherited = descriptors()
result = {
    "ended": {name: ended(attempt) for name, attempt in attempts().items() if not ONLY or name in ONLY},
    "descriptors": inherited,
    "read": readable(),
    "environment": dict(os.environ),
    "status": status(),
    "session": os.getsid(0) == os.getpid(),
    "umask": os.umask(0o007),
}
