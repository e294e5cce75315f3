"""CPU time and memory of a tree of processes, and what machine this is."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def role_of(pid: int) -> str:
    """What a process of a server is: core, front-1, supervisor ..."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "gone"
    if "process" in words:
        role = words[words.index("process") + 1]
        return f"{role}-{words[words.index('--index') + 1]}" if "--index" in words else role
    if "serve" in words:
        return "supervisor"
    return Path(words[0]).name if any("pebble" in word for word in words[:1]) else "helper"


def cpu_seconds(pid: int) -> dict[str, float]:
    """User and system seconds so far, by the role of each process in the tree."""
    seconds: dict[str, float] = {}
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        role = role_of(each)
        seconds[role] = seconds.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
    return seconds


def memory_megabytes(pid: int) -> dict[str, float]:
    """Proportional set size by role where it can be read, else resident."""
    found: dict[str, float] = {}
    for each in tree(pid):
        for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
            try:
                lines = Path(f"/proc/{each}/{file}").read_text().splitlines()
            except OSError:
                continue
            kilobytes = next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
            role = role_of(each)
            found[role] = found.get(role, 0.0) + kilobytes / 1024
            break
    return found


def machine(folder: Path) -> dict[str, str]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    filesystem = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    found = {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "file system": filesystem,
        "python": platform.python_version(),
    }
    found |= {name: version(name) for name in ("aiohttp", "uvloop", "cryptography", "SQLAlchemy", "python-pkcs11")}
    for package in ("softhsm2", "pebble"):
        if shutil.which("dpkg-query"):
            command = ["dpkg-query", "-W", "-f", "${Version}", package]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[package] = done.stdout.strip() or "-"
    return found
