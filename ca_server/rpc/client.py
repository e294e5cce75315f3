"""The asking end of a port: one connection, many calls in flight, reconnect with back-off."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import structlog

from ca_server import telemetry
from ca_server.core.ports import CorePort, Health, Hello, OcspAnswer, OcspQuery, Ping, Welcome
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.certificates import IssuedCertificate, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import EnrollmentRequest
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.rpc.messages import (
    CORE_OPERATIONS,
    FrameError,
    FrameReader,
    OperationTable,
    ReplyEnvelope,
    decode_reply,
    decode_result,
    encode_request,
)

_log = structlog.get_logger(__name__)
FIRST_BACKOFF = 0.02
LAST_BACKOFF = 1.0
RETRY_AFTER = 2


class _LostError(Exception):
    """The connection went while a call was waiting: whether it was carried out is not known."""


class _Link(asyncio.Protocol):
    """One connection. `waiting` is owned by the event loop: a call adds its future, the reply or the loss takes it."""

    def __init__(self, lost: Callable[["_Link"], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: dict[int, asyncio.Future[ReplyEnvelope]] = {}
        self._lost = lost
        self.answered = False
        self._reader = FrameReader()
        self._outgoing: list[bytes] = []
        self._flushing = False
        self._loop = asyncio.get_running_loop()

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.transport = None
        waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(_LostError())
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            for payload in self._reader.frames():
                reply = decode_reply(payload)
                self.answered = True
                future = self.waiting.pop(reply.id, None)
                # No future: the call ran out of time before.
                if future is not None and not future.done():
                    future.set_result(reply)
        except FrameError as error:
            _log.error("port sent no reply frame", reason=error.reason)
            if self.transport is not None:
                self.transport.abort()

    def send(self, number: int, frame: bytes) -> asyncio.Future[ReplyEnvelope]:
        """Queue a request: all of one pass of the event loop leave in one send."""
        if not self.usable:
            raise _LostError
        future: asyncio.Future[ReplyEnvelope] = self._loop.create_future()
        self.waiting[number] = future
        self._outgoing.append(frame)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flushing = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class PortClient:
    """Calls operations of a port. Connects at the first call, and again whenever the connection was lost.

    Every failure is a CaError: the peer's own, or UNAVAILABLE with `retry_after` where the port can't be reached,
    the connection was lost or the time ran out. Idempotent operations whose connection was lost are sent once more
    within their time.
    """

    def __init__(self, path: Path, table: OperationTable, *, max_pending: int = 2048) -> None:
        self._path = path
        self._table = table
        self._max_pending = max_pending
        self._pending = 0
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None
        self._number = 0
        self._delay = 0.0
        """Seconds to wait before the next attempt to connect; grows until the core answers."""
        self._closed = False

    async def call(self, name: str, argument: object, *, timeout: float | None = None) -> object:  # noqa: ASYNC109 - it becomes a CaError
        """Call one operation; `timeout` in seconds instead of the operation's own."""
        operation = self._table.operations[name]
        if self._closed:
            raise self._unavailable("the connection to the core is closed")
        if self._pending >= self._max_pending:
            raise self._unavailable("too many requests wait for the core")
        rid = structlog.contextvars.get_contextvars().get("request_id", "")
        number = self._number = self._number + 1
        frame = encode_request(self._table, operation, number, argument, rid if isinstance(rid, str) else "")
        attempts = 2 if operation.idempotent else 1
        self._pending += 1
        try:
            async with asyncio.timeout(operation.timeout if timeout is None else timeout):
                while True:
                    link = self._link
                    if link is None or not link.usable:
                        link = await self._connected()
                    attempts -= 1
                    try:
                        return decode_result(operation, await link.send(number, frame))
                    except _LostError:
                        if attempts <= 0 or self._closed:
                            raise self._unavailable("the connection to the core was lost") from None
                    finally:
                        link.waiting.pop(number, None)
        except TimeoutError:
            raise self._unavailable("the core did not answer in time") from None
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Close; calls that wait fail with UNAVAILABLE."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError, CaError):
                await self._connecting
        if self._link is not None:
            self._link.close()
            self._link = None

    @staticmethod
    def _unavailable(detail: str) -> CaError:
        return CaError(ErrorKind.UNAVAILABLE, detail, retry_after=RETRY_AFTER)

    async def _connected(self) -> _Link:
        """One task connects for all calls that wait; a call that is cancelled or out of time leaves it be."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise self._unavailable("the connection to the core is closed") from None
            raise

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        reported = False
        while True:
            if self._delay:
                # A crowd of fronts must not come back in step.
                await asyncio.sleep(self._delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            try:
                _, link = await loop.create_unix_connection(lambda: _Link(self._lost), str(self._path))
            except OSError as error:
                if not reported:
                    _log.warning("port is away", port=self._table.name, reason=error.strerror or type(error).__name__)
                    reported = True
                self._delay = min(max(self._delay * 2, FIRST_BACKOFF), LAST_BACKOFF)
            else:
                telemetry.RPC_RECONNECTS.labels(self._table.name).inc()
                self._link = link
                return link

    def _lost(self, link: _Link) -> None:
        # A core that hangs up without a word (a stranger's uid, a start that fails) is asked ever more rarely.
        self._delay = 0.0 if link.answered else min(max(self._delay * 2, FIRST_BACKOFF), LAST_BACKOFF)
        if self._link is link:
            self._link = None
            if not self._closed:
                _log.warning("port connection lost", port=self._table.name)


class RpcCorePort(CorePort):
    """The core's port over its Unix socket."""

    def __init__(self, client: PortClient) -> None:
        self._client = client

    @classmethod
    def at(cls, path: Path) -> "RpcCorePort":
        """A port at the core's socket; connects at the first call."""
        return cls(PortClient(path, CORE_OPERATIONS))

    async def hello(self, hello: Hello) -> Welcome:
        return cast("Welcome", await self._client.call("hello", hello))

    async def ping(self, ping: Ping) -> Health:
        return cast("Health", await self._client.call("ping", ping))

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        return cast("IssuedCertificate", await self._client.call("issue", request))

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        return cast("RevokedCertificate", await self._client.call("revoke", request))

    async def respond_ocsp(self, query: OcspQuery) -> OcspAnswer:
        return cast("OcspAnswer", await self._client.call("respond_ocsp", query))

    async def register_account(self, registration: AccountRegistration) -> AccountRegistered:
        return cast("AccountRegistered", await self._client.call("register_account", registration))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
