"""The pkilint worker as seen from the core: one process, one question at a time, each within a time limit."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from ca_server.domain.errors import CaError, ErrorKind

CERTIFICATE: Final = b"c"
CRL: Final = b"r"
OCSP_RESPONSE: Final = b"o"

_START_SECONDS: Final = 60.0
"""To import pkilint on a slow machine."""
_MAX_ANSWER: Final = 16 * 1024 * 1024
_FAILING: Final = frozenset({"FATAL", "ERROR", "WARNING"})
_ABOUT_NAMES: Final = ("subjectAltName", ".subject.")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Finding:
    """What pkilint found: severity (FATAL, ERROR, WARNING, NOTICE, INFO, DEBUG), code, place and text."""

    severity: str
    code: str
    path: str
    message: str

    @property
    def is_failure(self) -> bool:
        """Whether it is above NOTICE."""
        return self.severity in _FAILING

    @property
    def is_about_names(self) -> bool:
        """Whether it is about the names of this one certificate rather than its shape."""
        return any(part in f".{self.path}." for part in _ABOUT_NAMES)

    def __str__(self) -> str:
        return f"{self.severity} {self.code} at {self.path} {self.message}".strip()


class PkilintProcess:
    """Owns the worker. `_process` belongs to whoever holds `_lock`.

    A worker that does not answer in time, or dies, is killed, and the next question starts another.
    """

    def __init__(self, *, time_limit: float) -> None:
        self._time_limit = time_limit
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._closed = False

    async def warm(self) -> None:
        """Start the worker ahead of the first question. UNAVAILABLE where it does not come up."""
        async with self._lock:
            await self._ready()

    async def lint(self, kind: bytes, document: bytes) -> tuple[Finding, ...]:
        """Lint a DER document. UNAVAILABLE where no answer comes in time."""
        async with self._lock:
            process = await self._ready()
            try:
                return await asyncio.wait_for(_ask(process, kind, document), self._time_limit)
            except TimeoutError:
                await self._kill()
                _log.error("pkilint did not answer in time", seconds=self._time_limit)
                raise CaError(ErrorKind.UNAVAILABLE, "linting took too long") from None
            except (OSError, EOFError, ValueError, msgspec.DecodeError) as error:
                await self._kill()
                _log.error("pkilint worker failed", error=str(error))
                raise CaError(ErrorKind.UNAVAILABLE, "the linter is not available") from None
            except BaseException:
                # Cancelled in mid-answer: what comes next on this pipe would be taken for another's.
                await self._kill()
                raise

    async def close(self) -> None:
        """End the worker; later questions are refused."""
        self._closed = True
        async with self._lock:
            await self._kill()

    async def _ready(self) -> Process:
        if self._closed:
            raise CaError(ErrorKind.UNAVAILABLE, "the linter is closed")
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._kill()
        # A new interpreter with nothing of this process but the module path: no descriptors, no PIN, no signals.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ca_server.core.pkilint_worker",
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(_answer(self._process), _START_SECONDS)
        except (TimeoutError, OSError, EOFError) as error:
            await self._kill()
            _log.error("pkilint worker did not start", error=str(error))
            raise CaError(ErrorKind.UNAVAILABLE, "the linter is not available") from None
        except BaseException:
            await self._kill()
            raise
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ask(process: Process, kind: bytes, document: bytes) -> tuple[Finding, ...]:
    if process.stdin is None:
        raise EOFError("no input")
    process.stdin.write(kind + len(document).to_bytes(4, "big") + document)
    await process.stdin.drain()
    rows = msgspec.json.decode(await _answer(process), type=list[tuple[str, str, str, str]])
    return tuple(Finding(*row) for row in rows)


async def _answer(process: Process) -> bytes:
    if process.stdout is None:
        raise EOFError("no output")
    size = int.from_bytes(await process.stdout.readexactly(4), "big")
    if size > _MAX_ANSWER:
        raise ValueError("the answer is too long")
    return await process.stdout.readexactly(size)
