"""A TLS server that answers tls-alpn-01 (RFC 8737), rightly or wrongly in any one way."""

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31"
DRAFT_IDENTIFIER = "1.3.6.1.5.5.7.1.30.1"
PROTOCOL = "acme-tls/1"


@dataclass(frozen=True)
class Pair:
    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.certificate.public_bytes(Encoding.PEM) + key


def general_name(value: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(value))
    except ValueError:
        return x509.DNSName(value)


def challenge_pair(
    names: Sequence[str],
    key_authorization: str,
    *,
    critical: bool = True,
    oid: str | None = ACME_IDENTIFIER,
    value: bytes | None = None,
    key: Any = None,
    public_key: Any = None,
    signer: Any = None,
    issuer: str = "a responder",
) -> Pair:
    """The certificate of RFC 8737 section 3, or what differs from it as told."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a responder")]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key or own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), critical=False)
    if oid is not None:
        digest = b"\x04\x20" + sha256(key_authorization.encode()).digest() if value is None else value
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), digest), critical)
    signer = signer or own
    without_hash = isinstance(signer, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
    return Pair(builder.sign(signer, None if without_hash else hashes.SHA256()), own)


@dataclass
class Responder:
    """Where it listens; the SNI of every handshake, and how often a handshake was done."""

    port: int = 0
    names: list[str | None] = field(default_factory=list)
    done: int = 0
    context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def use(self, pair: Pair, *further: Pair) -> None:
        """Answer with this certificate, and these behind it, from now on."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pair.pem"
            file.write_bytes(pair.pem + b"".join(each.certificate.public_bytes(Encoding.PEM) for each in further))
            self.context.load_cert_chain(file)


@asynccontextmanager
async def responder(
    pair: Pair | None = None,
    *further: Pair,
    protocols: Sequence[str] = (PROTOCOL,),
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    host: str = "127.0.0.1",
) -> AsyncIterator[Responder]:
    made = Responder()
    if oldest < ssl.TLSVersion.TLSv1_2:
        made.context.set_ciphers("ALL:@SECLEVEL=0")
    made.context.minimum_version, made.context.maximum_version = oldest, newest
    if protocols:
        made.context.set_alpn_protocols(list(protocols))
    made.context.sni_callback = lambda _peer, name, _context: made.names.append(name)
    if pair is not None:
        made.use(pair, *further)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.done += 1
        writer.close()

    server = await asyncio.start_server(answer, host, 0, ssl=made.context)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        yield made
