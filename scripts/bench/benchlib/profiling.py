"""Cost by stage: py-spy samples the stacks of a server's processes, and each sample goes to the stage it is in."""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_RATE = 200
# The innermost frame that matches decides: (part of the frame's text, stage).
_STAGES = (
    ("store/audit_insert.py", "audit events"),
    ("core/audit/events.py", "audit events"),
    ("core/audit/", "audit tree"),
    ("store/audit", "audit tree"),
    ("store/anchor.py", "audit tree"),
    ("core/tlog.py", "audit tree"),
    ("core/notes.py", "audit tree"),
    ("_complete (ca_server/store/intents.py", "store"),
    ("insert_certificates (ca_server/store/certificates.py", "store"),
    ("ca_server/store/intents.py", "reserve"),
    ("_reserve (ca_server/store/issuance.py", "reserve"),
    ("_create_or_find_enrollment (ca_server/store/issuance.py", "reserve"),
    ("_complete (ca_server/store/issuance.py", "store"),
    ("insert_certificate (ca_server/store/certificates.py", "store"),
    ("read_enrollment (ca_server/store/issuance.py", "policy: reads"),
    ("read_spki_blocked (ca_server/store/issuance.py", "policy: reads"),
    ("store/acme", "ACME state"),
    ("do_commit (sqlalchemy", "commit"),
    ("_transact (ca_server/store/database.py", "group commit"),
    ("store/database.py", "group commit"),
    ("store/backends.py", "group commit"),
    ("concurrent/futures/thread.py", "group commit"),
    ("core/signing.py", "sign: verify"),
    ("core/der.py", "sign: verify"),
    ("hsm/", "sign"),
    ("core/lint", "lint"),
    ("core/pkilint", "lint"),
    ("core/tbs.py", "build"),
    ("core/capture.py", "build"),
    ("core/csr.py", "policy: CSR"),
    ("core/keycheck.py", "policy"),
    ("core/policy.py", "policy"),
    ("core/profiles.py", "policy"),
    ("core/issuance.py", "pipeline"),
    ("ca_server/rpc/", "core's port"),
    ("acme/jws.py", "JOSE"),
    ("acme/jwk.py", "JOSE"),
    ("acme/nonces.py", "JOSE"),
    ("protocols/acme/", "ACME front-end"),
    ("ca_server/telemetry.py", "logs and metrics"),
    ("structlog/", "logs and metrics"),
    ("prometheus_client/", "logs and metrics"),
    ("ca_server/web/", "HTTP"),
    ("aiohttp/", "HTTP"),
)


def _stage_of(frames: list[str]) -> str:
    for frame in reversed(frames):
        for part, stage in _STAGES:
            if part in frame:
                return stage
    return "event loop, TLS"


@dataclass
class Profile:
    """Samples by stage and, inclusive, by function."""

    stages: Counter[str] = field(default_factory=Counter)
    functions: Counter[str] = field(default_factory=Counter)

    def take(self, file: Path) -> None:
        """Read what py-spy wrote: a line of frames, outermost first, and their count."""
        for line in file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = [frame.rpartition(":")[0] + ")" for frame in stack.split(";")[1:]]
            self.stages[_stage_of(frames)] += int(count)
            for frame in set(frames):
                self.functions[frame] += int(count)

    def costs(self, milliseconds: float) -> dict[str, float]:
        """Share out the CPU time of an issuance: microseconds by stage, dearest first."""
        total = self.stages.total() or 1
        return {stage: count / total * milliseconds * 1000 for stage, count in self.stages.most_common()}


def py_spy() -> str | None:
    """The py-spy command, where there is one."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@contextmanager
def profiled(pids: dict[str, int], seconds: float) -> Iterator[dict[str, Profile]]:
    """Sample these processes, by role, for so long; the profiles are filled when this ends."""
    command = py_spy()
    profiles = {role: Profile() for role in pids}
    assert command is not None
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for role, pid in pids.items():
            options = [
                "-r",
                str(_RATE),
                "-d",
                str(int(seconds)),
                "-f",
                "raw",
                "-t",
                "-o",
                f"{folder}/{role}",
                "-p",
                str(pid),
            ]
            running.append(
                subprocess.Popen(
                    [command, "record", "--nonblocking", *options],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        try:
            yield profiles
        finally:
            for process in running:
                process.wait(60)
        for role, profile in profiles.items():
            if (file := Path(folder) / role).exists():
                profile.take(file)
