"""Real listeners on loopback, and a CA in memory that issues for them."""

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca_server.domain.certificates import IssuedCertificate, serial_text
from ca_server.web.application import create_application
from ca_server.web.listener import ListenerRunner, serve_listener
from ca_server.web.middleware import STATE, ListenerState
from ca_server.web.options import WebOptions


@dataclass
class Client:
    """Speaks octets, so that tests can say what no HTTP library would."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def get(self, path: str, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        await self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        return await self.response()

    async def closed(self) -> bool:
        """Wait until the server has closed."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


@dataclass
class Site:
    runner: ListenerRunner
    port: int
    state: ListenerState
    clients: list[Client] = field(default_factory=list)

    async def connect(self, context: ssl.SSLContext | None = None, source: str = "127.0.0.1") -> Client:
        hostname = "localhost" if context is not None else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=hostname, local_addr=(source, 0)
        )
        client = Client(reader, writer)
        self.clients.append(client)
        return client


SiteFactory = Callable[..., Awaitable[Site]]


@pytest.fixture
async def site() -> AsyncIterator[SiteFactory]:
    """Serve `routes` (path to handler, any method) or `registrars` with the given limits."""
    sites: list[Site] = []

    async def start(routes=None, *, registrars=(), ssl_context=None, name="http", **limits: object) -> Site:
        def register(application: web.Application) -> None:
            for path, handler in (routes or {}).items():
                application.router.add_route("*", path, handler)

        options = WebOptions(**limits)
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        application = create_application(name, options, [register, *registrars])
        runner = await serve_listener(application, [listening], ssl_context, options)
        sites.append(Site(runner, runner.addresses[0][1], application[STATE]))
        return sites[-1]

    yield start
    for each in sites:
        for client in each.clients:
            client.writer.close()
        await each.runner.close()


class MemoryCa:
    """Issues certificates of a chosen lifetime; `error` makes it fail, `gate` makes it wait."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test CA")])
        self.now = dt.datetime.now(dt.UTC)
        self.lifetime = dt.timedelta(hours=1)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.csrs: list[bytes] = []
        self.wrong_key = False
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), 1)
            .not_valid_before(self.now - dt.timedelta(days=1))
            .not_valid_after(self.now + dt.timedelta(days=30))
            .add_extension(constraints, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    async def issue(self, csr_der: bytes) -> IssuedCertificate:
        self.csrs.append(csr_der)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        csr = x509.load_der_x509_csr(csr_der)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        public_key = self.key.public_key() if self.wrong_key else csr.public_key()
        begin, end = self.now, self.now + self.lifetime
        certificate = (
            x509.CertificateBuilder(self.name, csr.subject, public_key, x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(names, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        serial = serial_text(certificate.serial_number)
        return IssuedCertificate(serial, "issuing", 1, der, (), "server", "hash", begin, end)

    def client_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())
        return context


@pytest.fixture
def memory_ca() -> MemoryCa:
    return MemoryCa()
