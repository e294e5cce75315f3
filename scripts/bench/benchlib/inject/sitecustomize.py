"""Loaded by every Python that starts with this folder on PYTHONPATH: samples the stacks of all threads.

Each thread's stack is charged with the CPU time that the thread used since the sample before, so that a thread that
waits costs nothing. Written to CA_BENCH_SAMPLES/PID.json when the process ends: seconds by stage and by function.
Sampling starts at the first SIGUSR2 and ends at the second.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_STAGES = (
    # (part of the file's path, functions or nothing for all, stage): the innermost frame that matches decides.
    ("store/audit_insert", (), "audit events"),
    ("core/audit/events", (), "audit events"),
    ("core/audit/", (), "audit tree"),
    ("store/audit", (), "audit tree"),
    ("store/anchor", (), "audit tree"),
    ("core/tlog", (), "audit tree"),
    ("core/notes", (), "audit tree"),
    ("store/issuance", ("_reserve", "_create_or_find_enrollment"), "reserve"),
    ("store/issuance", ("_complete",), "store"),
    ("store/certificates", ("insert_certificate",), "store"),
    ("store/issuance", ("read_enrollment",), "policy (reads)"),
    ("store/issuance", ("spki_blocked", "<lambda>"), "policy (reads)"),
    ("store/acme", (), "acme state"),
    ("store/database", ("_transact", "_commit_together"), "commit"),
    ("store/backends", (), "store hand-over"),
    ("store/", (), "store hand-over"),
    ("core/signing", (), "sign"),
    ("hsm/", (), "sign"),
    ("core/lint", (), "lint"),
    ("core/pkilint", (), "lint"),
    ("core/tbs", (), "build"),
    ("core/capture", (), "build"),
    ("core/csr", (), "policy"),
    ("core/keycheck", (), "policy"),
    ("core/policy", (), "policy"),
    ("core/profiles", (), "policy"),
    ("core/issuance", (), "pipeline"),
    ("ca_server/rpc", (), "core's port"),
    ("acme/jws", (), "JOSE"),
    ("acme/jwk", (), "JOSE"),
    ("acme/nonces", (), "JOSE"),
    ("protocols/acme", (), "acme front-end"),
    ("ca_server/web", (), "HTTP"),
    ("aiohttp/", (), "HTTP"),
    ("ca_server/telemetry", (), "logs and metrics"),
    ("structlog/", (), "logs and metrics"),
    ("prometheus_client/", (), "logs and metrics"),
)
_INTERVAL = 0.004


def stage_of(stack: list[tuple[str, str]]) -> str:
    """The stage of a stack of (file, function), innermost first."""
    for file, function in stack:
        for part, functions, stage in _STAGES:
            if part in file and (not functions or function in functions):
                return stage
    return "event loop, TLS"


class Sampler:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()
        self._inclusive: Counter[str] = Counter()
        self._used: dict[int, float] = {}
        self._on = False
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def toggle(self, _number: int, _frame: FrameType | None) -> None:
        self._on = not self._on

    def _run(self) -> None:
        own = threading.get_ident()
        while True:
            time.sleep(_INTERVAL)
            frames = sys._current_frames()
            for thread in threading.enumerate():
                ident = thread.ident
                if ident is None or ident == own or ident not in frames:
                    continue
                try:
                    used = time.clock_gettime(time.pthread_getcpuclockid(ident))
                except OSError:
                    continue
                spent = used - self._used.get(ident, used)
                self._used[ident] = used
                if self._on and spent > 0:
                    self._charge(frames[ident], spent)
            del frames

    def _charge(self, frame: FrameType | None, spent: float) -> None:
        stack = []
        while frame is not None:
            code = frame.f_code
            stack.append((code.co_filename, code.co_qualname))
            frame = frame.f_back
        self._stages[stage_of([(file, name.rpartition(".")[2]) for file, name in stack])] += spent
        labels = [f"{'/'.join(file.split('/')[-2:])}:{name}" for file, name in stack]
        self._functions[labels[0]] += spent
        for label in set(labels):
            self._inclusive[label] += spent

    def write(self) -> None:
        if os.getpid() != self._pid or not self._stages:
            return
        result = {
            "arguments": sys.argv,
            "stages": self._stages,
            "functions": dict(self._functions.most_common(60)),
            "inclusive": dict(self._inclusive.most_common(150)),
        }
        (self._folder / f"{os.getpid()}.json").write_text(json.dumps(result))


if os.environ.get("CA_BENCH_SAMPLES"):
    _sampler = Sampler(Path(os.environ["CA_BENCH_SAMPLES"]))
    signal.signal(signal.SIGUSR2, _sampler.toggle)
    atexit.register(_sampler.write)
