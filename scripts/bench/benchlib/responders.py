"""What an applicant answers validations with: http-01 (RFC 8555 section 8.3) and tls-alpn-01 (RFC 8737).

Applicants are addresses of the loopback network, each asked for once; one listener on all of them answers.
"""

import asyncio
import ipaddress
import itertools
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_PROTOCOL = "acme-tls/1"


class Responder:
    """Answers for one challenge type; `kind` is what a client is to choose."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind = kind
        self._place = place
        self._addresses = (ipaddress.IPv4Address((127 << 24) + number) for number in itertools.count(1 << 16))
        self._texts: dict[str, str] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def address(self) -> str:
        """An address that nobody asked a certificate for."""
        return str(next(self._addresses))

    def put(self, address: str, token: str, thumbprint: str) -> None:
        """Be ready to be asked about an address."""
        key_authorization = f"{token}.{thumbprint}"
        if self.kind == "http-01":
            self._texts[token] = key_authorization
            return
        at = ipaddress.IPv4Address(address)
        context = _server_context()
        pair = self._place / f"{os.urandom(8).hex()}.pem"
        pair.write_bytes(self._key_pem + self._certificate(at, key_authorization))
        context.load_cert_chain(pair)
        pair.unlink()
        self._contexts[at.reverse_pointer] = context

    def _certificate(self, address: ipaddress.IPv4Address, key_authorization: str) -> bytes:
        """RFC 8737 section 3."""
        name, now = x509.Name([]), datetime.now(UTC)
        digest = b"\x04\x20" + sha256(key_authorization.encode()).digest()
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, digest), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        """Take the certificate for what is asked (an address by its reverse name, RFC 8738 section 6)."""
        context = self._contexts.pop(name or "", None)
        if context is not None:
            connection.context = context

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of http-01; nothing, after the handshake, of tls-alpn-01."""
        try:
            if self.kind == "http-01":
                request = await reader.readuntil(b"\r\n\r\n")
                token = request.split(b" ", 2)[1].decode().rpartition("/")[2]
                body = self._texts.pop(token, "")
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write((head + body).encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([_PROTOCOL])
    return context


@asynccontextmanager
async def responding(kind: str, port: int) -> AsyncIterator[Responder]:
    """A responder that is asked at a port of every loopback address."""
    with TemporaryDirectory(prefix="ca-bench-") as place:
        responder = Responder(kind, Path(place))
        context = None
        if kind == "tls-alpn-01":
            context = _server_context()
            context.sni_callback = responder.choose
        # Every address of 127.0.0.0/8 is this machine's, and no socket has all of them but one that has all there are.
        server = await asyncio.start_server(responder.handle, "0.0.0.0", port, ssl=context, backlog=256)
        try:
            yield responder
        finally:
            server.close()
