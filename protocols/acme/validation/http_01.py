"""The http-01 challenge (RFC 8555 section 8.3; for IP addresses RFC 8738 section 4).

The peer, the names it redirects to and their addresses are chosen by whoever asks for a certificate, so this is a
request forged on demand: every address is checked after it was looked up and is then the one connected to, on every
hop, and what a redirect led to is never quoted.
"""

import asyncio
import socket
from dataclasses import dataclass

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.bounded_http import MAX_ANSWER, BoundedResponse, EndlessAnswerError, peer_of
from protocols.acme.validation.model import (
    IPAddress,
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    problem,
    shown,
)
from protocols.acme.validation.peers import FailedError, client_context, listed, permitted_addresses
from protocols.acme.validation.resolver import Resolver

_log = structlog.get_logger(__name__)

USER_AGENT = "ca-server (ACME http-01 validation)"
MAX_LOCATION = 2048

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200
_FIRST_SERVER_ERROR = 500
_SHOWN_BODY = 64
_SHOWN_LOCATION = 200
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    location: str | None
    body: bytes
    peer: str
    """Address and port that gave the answer."""


class _Pinned(AbstractResolver):
    """Answers with the addresses that were checked, so that no second lookup can give others."""

    def __init__(self, addresses: tuple[IPAddress, ...]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,  # noqa: PLR2004
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
            if family in {socket.AF_UNSPEC, socket.AF_INET if address.version == 4 else socket.AF_INET6}  # noqa: PLR2004
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Http01Validator:
    """Fetches the key authorization from the name itself."""

    type = "http-01"

    def __init__(self, policy: ValidationPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self._context = client_context()

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:
        """For DNS names that are no wildcard (RFC 8555 section 8.3), and for addresses."""
        return identifier.type is IdentifierType.IP or (identifier.type is IdentifierType.DNS and not wildcard)

    async def validate(self, target: ValidationTarget) -> ValidationProblem | None:
        """One fetch with its redirects, over IPv6 or IPv4, whichever connects."""
        url = URL.build(
            scheme="http",
            host=target.identifier.value,
            port=self._policy.http_01_port,
            path=f"/.well-known/acme-challenge/{target.token}",
        )
        try:
            async with asyncio.timeout(self._policy.timeout):
                await self._fetch(url, target)
        except TimeoutError:
            return problem("connection", f"{url}: not done in {self._policy.timeout:g} s", retryable=True)
        except FailedError as failure:
            return failure.problem
        except Exception as error:  # noqa: BLE001 - whatever a peer provokes is its own failure
            _log.warning("http-01 failed in a way not foreseen", name=target.identifier.value, exc_info=error)
            return problem("incorrectResponse", f"{url}: the answer can't be used", retryable=False)
        return None

    async def _fetch(self, url: URL, target: ValidationTarget) -> None:
        """Follow redirects by hand to the answer, and check it."""
        for hop in range(self._policy.max_redirects + 1):
            # `raw_host` is what goes into DNS: `host` has A-labels decoded, or fails at them
            addresses = await permitted_addresses(url.raw_host or "", str(url), self._policy, self._resolver)
            target.sightings.note(f"GET {url} at {listed(addresses)}")
            answer = await self._get(url, addresses)
            target.sightings.note(_sighting(answer, redirected=hop > 0))
            if answer.status not in _REDIRECTS:
                _check(
                    url,
                    addresses,
                    answer,
                    target.key_authorization,
                    redirected=hop > 0,
                    limit=self._policy.max_body,
                )
                return
            url = self._redirect(url, answer.location)
        raise FailedError("connection", f"{url}: more than {self._policy.max_redirects} redirects", retryable=False)

    def _redirect(self, url: URL, location: str | None) -> URL:
        if not location or len(location) > MAX_LOCATION:
            raise FailedError("incorrectResponse", f"{url}: a redirect without a usable Location", retryable=False)
        try:
            following = url.join(URL(location)).with_fragment(None)
            host, port = following.raw_host, following.port
        except Exception as error:  # what yarl raises for hostile text is more than ValueError
            raise FailedError(
                "incorrectResponse", f"{url}: redirects to no URL: {location!r}", retryable=False
            ) from error
        if following.scheme not in {"http", "https"} or not host or port is None:
            raise FailedError("connection", f"{url}: redirects to {location!r}, not http or https", retryable=False)
        if following.user is not None or following.password is not None:
            raise FailedError("connection", f"{url}: redirects to a URL with credentials", retryable=False)
        if not self._policy.permits_port(port):
            raise FailedError("connection", f"{url}: redirects to port {port}, which is not allowed", retryable=False)
        return following

    async def _get(self, url: URL, addresses: tuple[IPAddress, ...]) -> _Answer:
        """One request, one connection: no cookies, no proxy, no decompression, no certificate check (RFC 8555 8.3)."""
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses), use_dns_cache=False, force_close=True, ssl=self._context
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    response_class=BoundedResponse,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    timeout=aiohttp.ClientTimeout(total=self._policy.timeout),
                ) as session,
                session.get(url, allow_redirects=False, headers=_HEADERS) as response,
            ):
                location = response.headers.get("Location")
                body = b"" if response.status in _REDIRECTS else await self._read(response.content)
                return _Answer(response.status, location, body, peer_of(response))
        except EndlessAnswerError as error:
            raise FailedError(
                "connection", f"{url} at {listed(addresses)}: no answer in {MAX_ANSWER} octets", retryable=False
            ) from error
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or type(error.os_error).__name__
            raise FailedError("connection", f"{url} at {listed(addresses)}: {reason}", retryable=True) from error
        except aiohttp.ClientResponseError as error:
            raise FailedError(
                "connection", f"{url} at {listed(addresses)}: the answer is no HTTP", retryable=True
            ) from error
        except (aiohttp.ClientError, OSError, ValueError, EOFError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise FailedError(
                "connection",
                f"{url} at {listed(addresses)}: the connection failed ({type(error).__name__})",
                retryable=True,
            ) from error

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        """The body, or so much of it that one sees that it is too long."""
        body = b""
        while len(body) <= self._policy.max_body:
            chunk = await content.read(self._policy.max_body + 1 - len(body))
            if not chunk:
                break
            body += chunk
        return body


def _sighting(answer: _Answer, *, redirected: bool) -> str:
    """The answer for operators; what a redirect led to is not quoted to them either, but that it was there."""
    told = f"{answer.peer} answered {answer.status}"
    if answer.location is not None:
        return f"{told}, Location {shown(answer.location, _SHOWN_LOCATION)!r}"
    body = "" if redirected else f": {shown(answer.body.decode('latin-1'), _SHOWN_BODY)!r}"
    return f"{told}, {len(answer.body)} octets{body}"


def _check(
    url: URL, addresses: tuple[IPAddress, ...], answer: _Answer, expected: str, *, redirected: bool, limit: int
) -> None:
    where = f"{url} at {listed(addresses)}"
    seen = "" if redirected else f": {shown(answer.body.decode('latin-1'), _SHOWN_BODY)!r}"
    if answer.status != _OK:
        raise FailedError(
            "incorrectResponse",
            f"{where}: status {answer.status}{seen}",
            retryable=answer.status >= _FIRST_SERVER_ERROR,
        )
    if len(answer.body) > limit:
        raise FailedError("incorrectResponse", f"{where}: more than {limit} octets{seen}", retryable=False)
    if answer.body.rstrip() != expected.encode("ascii"):
        raise FailedError(
            "incorrectResponse", f"{where}: not the key authorization {expected!r}{seen}", retryable=False
        )
