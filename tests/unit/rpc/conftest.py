"""A core that answers from memory, behind a real Unix socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from ca_server.core.ports import Health, Hello, OcspAnswer, OcspQuery, Ping, Welcome
from ca_server.domain.accounts import Account, AccountRegistered, AccountRegistration, AccountStatus, ExternalBinding
from ca_server.domain.certificates import IssuedCertificate, RevocationReason, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import CaaChecked, EnrollmentRequest, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.rpc.client import RpcCorePort
from ca_server.rpc.messages import CORE_OPERATIONS
from ca_server.rpc.server import PEER, Peer, UnixServer, serve_unix

NOW = datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC)


@dataclass
class MemoryCore:
    """CorePort that remembers what it was asked; `gate` holds `issue` back, `error` makes it fail."""

    issued: list[EnrollmentRequest] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    running: int = 0
    most_running: int = 0
    peer: Peer | None = None
    request_id: object = None

    def __post_init__(self) -> None:
        self.gate.set()

    async def hello(self, hello: Hello) -> Welcome:
        self.peer = PEER.get()
        return Welcome(node="n1", nonce_key=bytes(range(32)), configuration=hello.process)

    async def ping(self, _ping: Ping) -> Health:
        return Health((), 0.5, token_ok=True, database_ok=True, crls_fresh=True)

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        self.request_id = structlog.contextvars.get_contextvars().get("request_id")
        self.issued.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return IssuedCertificate("0a" * 20, "issuing", 2, request.csr_der, (b"ca",), "default", "hash", NOW, NOW)

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        return RevokedCertificate(request.issuer, request.serial, NOW, request.reason)

    async def respond_ocsp(self, query: OcspQuery) -> OcspAnswer:
        return OcspAnswer(query.request_der * 2, cacheable=False, this_update=NOW)

    async def register_account(self, registration: AccountRegistration) -> AccountRegistered:
        return AccountRegistered(registration.account, created=True)


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore()


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "core.sock"


ServeFactory = Callable[..., Awaitable[UnixServer]]


@pytest.fixture
async def serve(socket_path: Path, core: MemoryCore) -> AsyncIterator[ServeFactory]:
    """Start a server on `socket_path`; it is closed at the end."""
    servers: list[UnixServer] = []

    async def start(**options: object) -> UnixServer:
        arguments = {"allowed_uids": frozenset({os.getuid()})} | options
        server = await serve_unix(socket_path, CORE_OPERATIONS, core, **arguments)
        servers.append(server)
        return server

    yield start
    core.gate.set()
    for server in servers:
        await server.close(1.0)


@pytest.fixture
async def port(socket_path: Path) -> AsyncIterator[RpcCorePort]:
    port = RpcCorePort.at(socket_path)
    yield port
    await port.close()


@pytest.fixture
def request_for() -> Callable[[str], EnrollmentRequest]:
    def make(transaction: str, csr: bytes = b"\x30\x00csr") -> EnrollmentRequest:
        identifier = Identifier(IdentifierType.DNS, "a.test")
        return EnrollmentRequest(
            requester=Requester(Protocol.ACME, "account-1", "account-key"),
            profile="default",
            csr_der=csr,
            identifiers=(identifier,),
            transaction_key=transaction,
            not_after=NOW,
            evidence=(ValidatedIdentifier(identifier, "http-01", NOW),),
            caa=(CaaChecked(identifier, NOW, authenticated=True),),
        )

    return make


@pytest.fixture
def bodies() -> tuple[AccountRegistration, RevocationRequest]:
    account = Account("id", "thumb", b"{}", AccountStatus.VALID, NOW, contacts=("mailto:a@b.test",))
    return (
        AccountRegistration(account, ExternalBinding("kid", "HS256", b"input", b"\x01" * 32), "default"),
        RevocationRequest("issuing", "0b", RevocationReason.KEY_COMPROMISE, "acme", "account-1", "account"),
    )
