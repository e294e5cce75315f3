"""The tls-alpn-01 challenge (RFC 8737; for IP addresses RFC 8738 section 6).

The handshake is made over memory and fed from the socket, so that its octets are counted, and each of its steps runs in
a thread of its own: what a peer makes OpenSSL compute holds nobody up. Nothing of the peer is trusted but what its
certificate says, and only where it negotiated the protocol that exists for this alone.
"""

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from ipaddress import ip_address
from typing import TypeVar, TypeVarTuple

import structlog

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.challenge_certificate import CertificateError, check_certificate
from protocols.acme.validation.model import (
    IPAddress,
    Sightings,
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    problem,
)
from protocols.acme.validation.peers import FailedError, client_context, listed, permitted_addresses
from protocols.acme.validation.resolver import Resolver

_log = structlog.get_logger(__name__)

PROTOCOL = "acme-tls/1"
_THREADS = 4
_CHUNK = 4096

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TlsAlpn01Validator:
    """Looks for the digest of the key authorization in the certificate of a TLS server at the name."""

    type = "tls-alpn-01"

    def __init__(self, policy: ValidationPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._context = client_context(PROTOCOL)
        self._threads = ThreadPoolExecutor(_THREADS, "validation-tls")

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:
        """For DNS names that are no wildcard (RFC 8737 section 3), and for addresses."""
        return identifier.type is IdentifierType.IP or (identifier.type is IdentifierType.DNS and not wildcard)

    async def validate(self, target: ValidationTarget) -> ValidationProblem | None:
        """One handshake, with the first address that takes a connection."""
        name, port = target.identifier.value, self._policy.tls_alpn_01_port
        where = f"{name} port {port}"
        try:
            async with asyncio.timeout(self._policy.timeout):
                addresses = await permitted_addresses(name, where, self._policy, self._resolver)
                where = f"{where} at {listed(addresses)}"
                reader, writer = await self._connect(addresses, where, target.sightings)
                try:
                    certificate_der = await self._handshake(reader, writer, server_name(target.identifier), where)
                finally:
                    writer.transport.abort()
                digest = sha256(certificate_der).hexdigest()
                target.sightings.note(f"TLS certificate of {len(certificate_der)} octets, SHA-256 {digest}")
                await self._in_thread(check_certificate, certificate_der, target.identifier, target.key_authorization)
        except TimeoutError:
            return problem("connection", f"{where}: not done in {self._policy.timeout:g} s", retryable=True)
        except CertificateError as error:
            return problem("incorrectResponse", f"{where}: {error}", retryable=False)
        except FailedError as failure:
            return failure.problem
        except Exception as error:  # noqa: BLE001 - whatever a peer provokes is its own failure
            _log.warning("tls-alpn-01 failed in a way not foreseen", name=name, exc_info=error)
            return problem("incorrectResponse", f"{where}: the answer can't be used", retryable=False)
        return None

    async def _connect(self, addresses: tuple[IPAddress, ...], where: str, sightings: Sightings) -> _Streams:
        """Connect to one address after the other; none may take the time of all."""
        reason = ""
        port = self._policy.tls_alpn_01_port
        for address in addresses:
            try:
                async with asyncio.timeout(self._policy.timeout / len(addresses)):
                    streams = await asyncio.open_connection(str(address), port, limit=_CHUNK)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                sightings.note(f"{address} port {port}: {reason}")
            else:
                sightings.note(f"{address} port {port}: connected")
                return streams
        raise FailedError("connection", f"{where}: {reason}", retryable=True)

    async def _handshake(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, where: str
    ) -> bytes:
        """Do a handshake that asks for `acme-tls/1`; the peer's certificate, in DER."""
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        # as octets: a name in text would go through another IDNA than ours
        peer = self._context.wrap_bio(received, to_send, server_hostname=name.encode("ascii"))
        room = self._policy.max_handshake
        try:
            while not await self._in_thread(_step, peer):
                writer.write(to_send.read())
                octets = await reader.read(_CHUNK)
                room -= len(octets)
                if not octets:
                    raise FailedError("tls", f"{where}: closed before the handshake was done", retryable=True)
                if room < 0:
                    limit = self._policy.max_handshake
                    raise FailedError("tls", f"{where}: a handshake of more than {limit} octets", retryable=False)
                received.write(octets)
            writer.write(to_send.read())
        except ssl.SSLError as error:
            reason = (error.reason or "not TLS").replace("_", " ").lower()
            raise FailedError("tls", f"{where}: the handshake failed ({reason})", retryable=True) from error
        except OSError as error:
            raise FailedError(
                "connection", f"{where}: the connection failed in the handshake", retryable=True
            ) from error
        if peer.selected_alpn_protocol() != PROTOCOL:
            raise FailedError("tls", f"{where}: did not negotiate {PROTOCOL!r} by ALPN", retryable=True)
        return peer.getpeercert(binary_form=True) or b""

    async def _in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def server_name(identifier: Identifier) -> str:
    """What to send as SNI: the name, or an address as its name under in-addr.arpa or ip6.arpa (RFC 8738 section 6)."""
    return ip_address(identifier.value).reverse_pointer if identifier.type is IdentifierType.IP else identifier.value


def _step(peer: ssl.SSLObject) -> bool:
    """Go on with the handshake; whether it is done, rather than waiting for octets."""
    try:
        peer.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
