"""Runs first in every Python process whose PYTHONPATH names this folder: counts signatures, and dies where it is told.

The server has no hooks for tests. This file wraps its methods from outside, in core and front processes alone, and only
where CRASH_FOLDER is set:

- each signature is written to `signatures` in that folder before it is asked for and after it was made, by whoever
  calls the token's module, so that the count is independent of all that the server writes about itself;
- `armed` in that folder says "STEP NTH ID": the process that passes the step for the nth time takes the file away and
  kills itself with SIGKILL, there. Nothing is cleaned up, flushed or answered;
- `held` in that folder names steps: what comes to one stays there for as long as the file names it.
"""

import functools
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

_FOLDER = os.environ.get("CRASH_FOLDER", "")
_passes: Counter[str] = Counter()
_label = threading.local()


def reach(step: str) -> None:
    """Pass a step; the last thing that this process does, where it was told so."""
    armed = os.path.join(_FOLDER, "armed")  # noqa: PTH118 - pathlib is not loaded yet in every process
    try:
        with open(armed) as file:  # noqa: PTH123
            wanted, nth, number = file.read().split()
    except (OSError, ValueError):
        return
    if wanted != step:
        return
    _passes[number] += 1
    if _passes[number] < int(nth):
        return
    try:
        os.rename(armed, os.path.join(_FOLDER, f"fired-{number}"))  # noqa: PTH104, PTH118
    except OSError:
        return  # another process was first
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


async def stay(step: str) -> None:
    """Stay at a step that is held."""
    import asyncio

    held = os.path.join(_FOLDER, "held")  # noqa: PTH118
    while os.path.exists(held):  # noqa: ASYNC240, PTH110
        with open(held) as file:  # noqa: ASYNC230, PTH123
            if step not in file.read().split():
                return
        await asyncio.sleep(0.05)


def _around(owner: Any, method: str, before: str, after: str) -> None:
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)

    @functools.wraps(original)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        reach(before)
        await stay(before)
        result = await original(*arguments, **named)
        reach(after)
        return result

    setattr(owner, method, wrapped)


def _after(bulk: Any, step: str) -> None:
    """Pass a step when the statements of a batch's units have run."""
    original: Callable[..., Any] = bulk.run

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        reach(step)
        return result

    object.__setattr__(bulk, "run", wrapped)  # it is frozen, and known by name to who uses it


def is_certificate(data: bytes) -> bool:
    """Whether DER is a TBSCertificate: a SEQUENCE that begins with the version, [0] (RFC 5280 section 4.1)."""
    header = 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
    return data[:1] == b"\x30" and data[header : header + 1] == b"\xa0"


def _note(what: str, data: bytes) -> None:
    kind = "certificate" if is_certificate(data) else "other"
    line = f"{what} {_label.value} {kind} {hashlib.sha256(data).hexdigest()}\n"
    descriptor = os.open(os.path.join(_FOLDER, "signatures"), os.O_WRONLY | os.O_APPEND)  # noqa: PTH118
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _watch_the_token() -> None:
    from hsm import algorithms, keys

    sign, handle, ask = algorithms.sign, keys.TokenKeyStore._signing_handle, keys.TokenKeyStore.sign

    def noted(key: Any, algorithm: Any, data: bytes) -> bytes:
        _note("asked", data)
        signature = sign(key, algorithm, data)
        _note("made", data)
        return signature

    def labelled(self: Any, bench: Any, label: str) -> Any:
        _label.value = label
        return handle(self, bench, label)

    async def between(self: Any, key: Any, data: bytes) -> bytes:
        if not is_certificate(data):
            return await ask(self, key, data)
        reach("sign.before")
        signature = await ask(self, key, data)
        reach("sign.after")
        await stay("sign.after")
        return signature

    _label.value = "-"
    algorithms.sign = noted
    keys.TokenKeyStore._signing_handle = labelled  # type: ignore[method-assign]
    keys.TokenKeyStore.sign = between  # type: ignore[method-assign]


def _in_core() -> None:
    import asyncio

    from ca_server.core.issuance import Issuance
    from ca_server.rpc import server
    from ca_server.store import intents, issuance, revocation

    _watch_the_token()
    _around(issuance.SqlIssuanceStore, "reserve", "reserve.before", "reserve.after")
    _after(intents.RESERVE, "reserve.uncommitted")
    _around(issuance.SqlIssuanceStore, "complete", "store.before", "store.after")
    _after(intents.COMPLETE, "store.uncommitted")
    _around(Issuance, "issue", "pipeline.before", "answer.before")
    _around(revocation.SqlRevocationStore, "publish_crl", "list.before", "list.after")
    handle = server._Connection._handle

    async def handled(self: Any, operation: Any, *arguments: Any) -> None:
        await handle(self, operation, *arguments)
        if operation.name == "issue":
            await asyncio.sleep(0)  # the replies of this pass of the loop leave at its end
            await asyncio.sleep(0)
            reach("answer.after")

    server._Connection._handle = handled  # type: ignore[method-assign]


def _in_front() -> None:
    from aiohttp import web

    from ca_server.rpc.client import RpcCorePort
    from ca_server.store.acme import SqlAcmeStore
    from protocols.acme.views import AcmeFrontEnd

    _around(SqlAcmeStore, "begin_challenge", "front.challenge.before", "front.challenge.after")
    _around(SqlAcmeStore, "finish_challenge", "front.validated.before", "front.validated.after")
    _around(SqlAcmeStore, "begin_finalize", "front.finalize.before", "front.finalize.after")
    _around(RpcCorePort, "issue", "front.ask.before", "front.ask.after")
    finalize, write_eof = AcmeFrontEnd._finalize, web.Response.write_eof
    answers: set[int] = set()

    async def finalized(*arguments: Any) -> web.Response:
        response = await finalize(*arguments)
        reach("front.answer.before")
        answers.add(id(response))
        return response

    async def written(self: web.Response, data: bytes = b"") -> None:
        await write_eof(self, data)
        if id(self) in answers:
            answers.discard(id(self))
            reach("front.answer.after")

    AcmeFrontEnd._finalize = finalized  # type: ignore[assignment, method-assign]
    web.Response.write_eof = written  # type: ignore[method-assign]


def _role() -> str:
    words = sys.orig_argv
    return words[words.index("process") + 1] if "process" in words[:-1] and "ca_server" in words else ""


def _set_traps() -> None:
    role = _role()
    if role == "core":
        _in_core()
    elif role == "front":
        _in_front()


if _FOLDER:
    try:
        _set_traps()
    except BaseException:  # noqa: BLE001 - Python would go on without, and nothing would be counted
        traceback.print_exc()
        os._exit(70)
