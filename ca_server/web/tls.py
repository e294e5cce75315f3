"""The server's own certificate: got from its own CA, renewed by itself, swapped under open connections.

Key and chain are one PEM file, readable by the fronts' user alone and replaced by renaming: a reader finds either the
old pair or the new one. Several fronts share the file: who holds the lock beside it renews, the others load what they
find. The SSLContext stays the same object, so that new handshakes use the new certificate and connections stay.
"""

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca_server import telemetry
from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType

_log = structlog.get_logger(__name__)
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
RENEW_AT = 2 / 3
"""Part of the lifetime after which to renew."""
JITTER = 0.05
"""Part of the lifetime by which renewals are spread, to earlier."""

_RETRY_SECONDS = 2.0
"""Between attempts while there is no valid certificate."""

Issue = Callable[[bytes], Awaitable[IssuedCertificate]]
"""Has a DER CSR issued through the core."""


def server_context(*, client_trust: tuple[bytes, ...] = ()) -> ssl.SSLContext:
    """Make a server's context: TLS 1.2 (forward secrecy and AEAD only) and 1.3, HTTP/1.1 by ALPN.

    With `client_trust` (DER CA certificates), client certificates are asked for, and if sent must chain to one of them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    if client_trust:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(der) for der in client_trust))
    return context


@dataclass(frozen=True, slots=True)
class _Pair:
    """A key with its certificate as found in the file."""

    certificate: x509.Certificate
    stamp: tuple[int, int, int]

    @property
    def lifetime(self) -> timedelta:
        return self.certificate.not_valid_after_utc - self.certificate.not_valid_before_utc

    def names(self) -> frozenset[Identifier]:
        try:
            extension = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return frozenset()
        dns = (Identifier(IdentifierType.DNS, name) for name in extension.get_values_for_type(x509.DNSName))
        ips = (Identifier(IdentifierType.IP, str(name)) for name in extension.get_values_for_type(x509.IPAddress))
        return frozenset((*dns, *ips))


class ListenerTls:
    """The certificate of a node's TLS listeners. Owned by one task: `ensure`, then `run`."""

    def __init__(
        self,
        path: Path,
        names: tuple[Identifier, ...],
        *,
        context: ssl.SSLContext | None = None,
        check_seconds: float = 60.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Keep the pair in the PEM file `path`; `jitter` gives 0 to 1. DNS and IP names only, at least one."""
        if not names or any(name.type not in {IdentifierType.DNS, IdentifierType.IP} for name in names):
            raise ConfigurationError("tls", "names", [str(n) for n in names], "give DNS names or IP addresses")
        self.context = context if context is not None else server_context()
        self._path = path
        self._names = names
        self._check_seconds = check_seconds
        self._now = now
        self._jitter = jitter
        self._pair: _Pair | None = None
        self._early = 0.0
        self._pending: tuple[ec.EllipticCurvePrivateKey, bytes] | None = None
        """Key and CSR of a renewal that has failed: sent again, so that a lost answer is found again."""

    @property
    def certificate(self) -> x509.Certificate | None:
        """The certificate in use."""
        return self._pair.certificate if self._pair is not None else None

    async def ensure(self, issue: Issue) -> None:
        """Have a valid certificate loaded when this returns, and renew it if that is due.

        Where renewal fails, or another front is at it, a certificate that is still valid serves on. Without one, waits
        for the other front, or raises what `issue` raised (CaError; UNAVAILABLE where the core is away).
        """
        while True:
            self._load()
            if not self._due():
                return
            with self._lock() as held:
                if held:
                    # Another front may have renewed between the look and the lock.
                    self._load()
                    if self._due():
                        await self._renew_or_keep(issue)
                    return
            if self._valid():
                return
            await asyncio.sleep(min(self._check_seconds, 0.2))

    async def run(self, issue: Issue) -> None:
        """Renew in time and follow the other fronts' renewals, until cancelled."""
        while True:
            await asyncio.sleep(self._check_seconds if self._valid() else min(self._check_seconds, _RETRY_SECONDS))
            try:
                await self.ensure(issue)
            except (CaError, OSError) as error:
                _log.error("certificate can't be renewed", reason=str(error))

    def _valid(self) -> bool:
        if self._pair is None:
            return False
        certificate = self._pair.certificate
        return certificate.not_valid_before_utc <= self._now() < certificate.not_valid_after_utc

    def _due(self) -> bool:
        if self._pair is None or not self._valid() or self._pair.names() != frozenset(self._names):
            return True
        begin = self._pair.certificate.not_valid_before_utc
        return self._now() >= begin + self._pair.lifetime * (RENEW_AT - self._early)

    async def _renew_or_keep(self, issue: Issue) -> None:
        try:
            await self._renew(issue)
        except CaError as error:
            if not self._valid():
                raise
            _log.warning("certificate not renewed, the old one serves on", kind=error.kind.value, detail=error.detail)

    async def _renew(self, issue: Issue) -> None:
        if self._pending is None:
            key = ec.generate_private_key(ec.SECP256R1())
            self._pending = key, self._csr(key)
        key, csr_der = self._pending
        issued = await issue(csr_der)
        certificate = x509.load_der_x509_certificate(issued.certificate_der)
        if certificate.public_key() != key.public_key():
            self._pending = None
            raise CaError(ErrorKind.INTERNAL, "the certificate issued is for another key")
        chain = (certificate, *(x509.load_der_x509_certificate(der) for der in issued.chain))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)
        await asyncio.to_thread(_write_private, self._path, pem)
        self._pending = None
        self._load()
        _log.info("certificate renewed", serial=issued.serial, not_after=issued.not_after.isoformat())

    def _csr(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        names: list[x509.GeneralName] = [
            x509.DNSName(name.value)
            if name.type is IdentifierType.DNS
            else x509.IPAddress(ipaddress.ip_address(name.value))
            for name in self._names
        ]
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _load(self) -> None:
        """Take up the file if it is new. One that can't be used is left aside, and what is loaded serves on."""
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._pair is not None and self._pair.stamp == stamp:
                return
            # A context that half took up a bad file could not serve: another one tries first.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._path)
            certificate = x509.load_pem_x509_certificate(self._path.read_bytes())
            self.context.load_cert_chain(self._path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _log.error("certificate file can't be used", file=self._path.name, reason=type(error).__name__)
            return
        self._pair = _Pair(certificate, stamp)
        self._early = self._jitter() * JITTER
        telemetry.TLS_NOT_AFTER_TIME.set(certificate.not_valid_after_utc.timestamp())

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Try to be the one who renews; the kernel lets go of it when the process dies."""
        descriptor = os.open(self._path.with_name(self._path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def _write_private(path: Path, data: bytes) -> None:
    """Replace a file by one that only the owner may read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
