"""The systemd unit that is shipped: systemd takes it, and the server lives under what it says."""

import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interoplib.server import Server
from interoplib.tools import need, run

from ca_server.bootstrap.unit import systemd_unit
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import AuditSettings, Home, ProcessSettings, Settings

PATIENCE = 30.0
EXPOSURE = 35
"""The most that `systemd-analyze security` may find, of 100."""


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture(scope="module")
def server(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Server:
    server = Server(ca_server_command, open_folder("service"))
    server.init()
    return server


@pytest.fixture(scope="module")
def unit(server: Server) -> str:
    return server.cli("systemd-unit").stdout


def test_systemd_takes_it(unit: str, tmp_path: Path) -> None:
    analyze = need("systemd-analyze")
    file = tmp_path / "ca-server.service"
    file.write_text(unit)
    done = run([analyze, "verify", file])
    # Of this unit: the machine's others are not the test's.
    assert [line for line in done.stderr.splitlines() if "ca-server" in line] == []
    run([analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", file])


def test_it_tells_what_the_server_does(unit: str) -> None:
    told = settings_of(unit)
    assert told["Type"] == ["notify"]
    assert told["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert told["KillMode"] == ["mixed"], "SIGTERM for the supervisor alone"
    assert not re.search(r"@[A-Z_]+@", unit)


def test_it_is_made_for_the_home() -> None:
    settings = Settings(processes=ProcessSettings(drain_seconds=100), audit=AuditSettings(anchor="/srv/anchor/ca"))
    told = settings_of(systemd_unit(Home(Path("/srv/100% of ca")), settings))
    assert told["ExecStart"][0].endswith('serve --home "/srv/100%% of ca"')
    assert told["ReadWritePaths"] == ['"/srv/100%% of ca" /srv/anchor']
    assert int(told["TimeoutStopSec"][0]) > 200, "fronts and core, one after the other"
    told = settings_of(systemd_unit(Home(Path("/home/x")), Settings()))
    assert told["ProtectHome"] == ["read-only"], "yes would hide it"
    with pytest.raises(ConfigurationError):
        systemd_unit(Home(Path('/srv/a"b')), Settings())


def confined(told: dict[str, list[str]], home: Path) -> list[str]:
    """What does to a command what systemd does by this unit, as far as it can be done without systemd."""
    capabilities = [name.removeprefix("CAP_").lower() for name in told["CapabilityBoundingSet"][0].split()]
    keep = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    argv = ["setpriv", "--no-new-privs", f"--bounding-set={keep}", "--inh-caps=-all", "--"]
    # ProtectSystem=strict: all read-only but the home and /dev, /proc, /sys. Not where root may not mount.
    mount = 'mount -o remount,ro,bind / && mount --bind "$0" "$0" && mount -o remount,rw,bind "$0"'
    strict = ["unshare", "--mount", "sh", "-c", f'{mount} && mount -t tmpfs none /var/tmp && exec "$@"', str(home)]
    if subprocess.run([*strict, "true"], capture_output=True, check=False).returncode == 0:
        return [*strict, *argv]
    return argv


@pytest.mark.skipif(os.getuid() != 0, reason="the unit starts it as root")
def test_the_server_lives_under_it(server: Server, unit: str, open_folder: Callable[[str], Path]) -> None:
    """Ready, reloaded and drained, with the capabilities and in the file system that the unit leaves it."""
    told = settings_of(unit)
    notify = open_folder("notify") / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, server.log.open("ab") as log:
        systemd.bind(str(notify))
        systemd.settimeout(float(told["TimeoutStartSec"][0]))
        process = subprocess.Popen(
            [*confined(told, server.home), *told["ExecStart"][0].split()],
            env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(notify)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=told["WorkingDirectory"][0],
            umask=int(told["UMask"][0], 8),
            start_new_session=True,
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            assert server.is_ready()
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + PATIENCE
            while '"event":"reloaded"' not in server.log_tail():
                assert time.monotonic() < deadline, server.log_tail()
                time.sleep(0.05)
            process.terminate()
            assert systemd.recv(100) == b"STOPPING=1"
            assert process.wait(float(told["TimeoutStopSec"][0])) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            said = server.log_tail()
    assert "Permission denied" not in said
    assert "Read-only file system" not in said
    assert stat.S_IMODE((server.home / "data").stat().st_mode) == 0o3770, "the group's bit too"
