"""HTTP views of the status front-end. OCSP goes to the core; CRLs and CA certificates come from the database."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from hashlib import sha256
from http import HTTPStatus

import structlog
from aiohttp import web

from ca_server.core.ocsp_codec import MAX_REQUEST, ResponseStatus, error_response
from ca_server.core.ports import CorePort, IssuerStore, OcspAnswer, OcspQuery, RevocationStore
from ca_server.domain.certificates import Crl, IssuerKey
from ca_server.domain.errors import CaError
from ca_server.web.middleware import render_refusals
from protocols.status.wire import IssuerPath, MalformedPathError, decode_get_path, parse_issuer_path

_log = structlog.get_logger()

FRESH_SECONDS = 1.0
"""How long a front may answer from what it read last: the bound on how late it shows a new CRL."""
MAX_AGE = 300
_FIRST_SERVER_ERROR = 500
_NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class _Served:
    """A CRL with its entity tag, hashed once: lists may be megabytes."""

    crl: Crl
    tag: str


class StatusFrontEnd:
    """OCSP responder, CRL distribution points and caIssuers.

    `_crls` and `_keys` have what was read last, so that status goes on while the database is away; `_reading` what is
    being read.
    """

    def __init__(
        self,
        *,
        core: CorePort,
        revocation: RevocationStore,
        issuers: IssuerStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._core = core
        self._revocation = revocation
        self._issuers = issuers
        self._clock = clock
        self._crls: dict[IssuerPath, tuple[float, _Served]] = {}
        self._reading: dict[IssuerPath, asyncio.Task[_Served | None]] = {}
        self._keys: dict[tuple[str, int | None], IssuerKey] = {}

    def register(self, application: web.Application) -> None:
        """Add the routes."""
        render_refusals(application, "/ocsp", _limited, max_body=MAX_REQUEST)
        application.router.add_post("/ocsp", self.ocsp_post)
        application.router.add_get("/ocsp/{request:.*}", self.ocsp_get)
        application.router.add_post("/ocsp/", self.ocsp_post)
        application.router.add_get("/crl/{name}", self.crl)
        application.router.add_get("/issuer/{name}", self.ca_certificate)

    async def ocsp_post(self, request: web.Request) -> web.Response:
        """POST with a DER body (RFC 6960 appendix A.1)."""
        if request.content_type != "application/ocsp-request":
            return _refusal(415, "send application/ocsp-request")
        if (request.content_length or 0) > MAX_REQUEST:
            return _ocsp_error(ResponseStatus.MALFORMED_REQUEST)
        der = await request.read()
        if len(der) > MAX_REQUEST:
            return _ocsp_error(ResponseStatus.MALFORMED_REQUEST)
        return await self._ocsp(der, request)

    async def ocsp_get(self, request: web.Request) -> web.Response:
        """GET with the request in the path, read raw: a router that decodes or merges slashes would break it."""
        try:
            der = decode_get_path(request.raw_path.partition("?")[0], "/ocsp/")
        except MalformedPathError:
            return _ocsp_error(ResponseStatus.MALFORMED_REQUEST)
        return await self._ocsp(der, request)

    async def _ocsp(self, der: bytes, request: web.Request) -> web.Response:
        try:
            answer = await self._core.respond_ocsp(OcspQuery(der, request.remote))
        except CaError as error:
            _log.warning("ocsp not answered", error=error.detail)
            return _ocsp_error(ResponseStatus.TRY_LATER)
        response = web.Response(body=answer.response_der, content_type="application/ocsp-response")
        self._cache_headers(response, answer)
        return response

    def _cache_headers(self, response: web.Response, answer: OcspAnswer) -> None:
        """HTTP caching of RFC 5019 section 6, for settled answers without a nonce."""
        if not answer.cacheable or answer.next_update is None or answer.this_update is None:
            response.headers.update(_NO_STORE)
            return
        self._caching(response, _tag(answer.response_der), answer.this_update, answer.next_update)

    def _caching(self, response: web.Response, tag: str, this_update: datetime, next_update: datetime) -> None:
        # Where this front's clock is slow, what was signed still lives no longer than it ever did.
        left = min(next_update - self._clock(), next_update - this_update)
        age = max(0, min(int(left.total_seconds()) - 1, MAX_AGE))
        response.headers["Cache-Control"] = f"max-age={age}, public, no-transform, must-revalidate"
        response.headers["Expires"] = format_datetime(next_update, usegmt=True)
        response.headers["Last-Modified"] = format_datetime(this_update, usegmt=True)
        response.headers["ETag"] = f'"{tag}"'

    async def crl(self, request: web.Request) -> web.Response:
        """GET a CRL by issuer, key generation and partition; `ISSUER.crl` is the newest key's."""
        try:
            path = parse_issuer_path(request.match_info["name"], ".crl")
        except MalformedPathError:
            return _refusal(404, "there is no such CRL")
        served = await self._latest(path)
        if served is None:
            return _refusal(404, "there is no such CRL")
        crl = served.crl
        if crl.next_update <= self._clock():
            response = _refusal(503, "the CRL has expired and no new one could be signed")
            response.headers["Retry-After"] = "30"
            return response
        # By time alone (If-Modified-Since) two lists of one second could not be told apart: they are sent whole.
        if {tag.value for tag in request.if_none_match or ()} & {"*", served.tag}:
            response = web.Response(status=304)
        else:
            response = web.Response(body=crl.der, content_type="application/pkix-crl")
        self._caching(response, served.tag, crl.this_update, crl.next_update)
        return response

    async def _latest(self, path: IssuerPath) -> _Served | None:
        """The newest CRL; read once for all who ask at the same time, and kept once for all who are given it."""
        known = self._crls.get(path)
        if known is not None and time.monotonic() - known[0] < FRESH_SECONDS:
            return known[1]
        reading = self._reading.get(path)
        if reading is None:
            reading = self._reading[path] = asyncio.create_task(self._read(path, known))
            reading.add_done_callback(lambda _task: self._reading.pop(path, None))
        return await asyncio.shield(reading)

    async def _read(self, path: IssuerPath, known: tuple[float, _Served] | None) -> _Served | None:
        now = time.monotonic()
        try:
            key = await self._key(path.issuer, path.generation)
            crl = None if key is None else await self._revocation.latest_crl(path.issuer, key.id, path.partition)
        except CaError as error:
            if known is None:
                raise
            _log.warning("crl served from memory", issuer=path.issuer, error=error.detail)
            return known[1]
        if crl is None:
            return None
        served = known[1] if known is not None and known[1].crl == crl else _Served(crl, _tag(crl.der))
        self._crls[path] = (now, served)
        return served

    async def _key(self, issuer: str, generation: int | None) -> IssuerKey | None:
        """A key generation of an issuer; generations never change, so those once read are kept."""
        known = self._keys.get((issuer, generation))
        if known is not None and generation is not None:
            return known
        keys = await self._issuers.issuer_keys(issuer)
        for key in keys:
            if generation in {None, key.generation}:
                self._keys[issuer, generation] = key
                return key
        return None

    async def ca_certificate(self, request: web.Request) -> web.Response:
        """GET a CA certificate in DER (RFC 5280 section 4.2.2.1, caIssuers)."""
        try:
            path = parse_issuer_path(request.match_info["name"], ".cer")
        except MalformedPathError:
            return _refusal(404, "there is no such issuer")
        try:
            key = await self._key(path.issuer, path.generation)
        except CaError:
            key = self._keys.get((path.issuer, path.generation))
            if key is None:
                raise
        if key is None:
            return _refusal(404, "there is no such issuer")
        return web.Response(
            body=key.certificate_der,
            content_type="application/pkix-cert",
            headers={"Cache-Control": f"max-age={MAX_AGE}, public"},
        )


def _tag(body: bytes) -> str:
    """The entity tag of an answer, without its quotes."""
    return sha256(body).hexdigest()


def _limited(_request: web.Request, status: int, _detail: str, retry_after: int | None) -> web.Response:
    """How limits say no to an OCSP client (RFC 6960 section 4.2.1): a request that is too long is malformed."""
    late = status >= _FIRST_SERVER_ERROR
    answer = _ocsp_error(ResponseStatus.TRY_LATER if late else ResponseStatus.MALFORMED_REQUEST)
    if status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        answer.set_status(status)
    if retry_after is not None:
        answer.headers["Retry-After"] = str(retry_after)
    return answer


def _ocsp_error(status: ResponseStatus) -> web.Response:
    return web.Response(body=error_response(status), content_type="application/ocsp-response", headers=_NO_STORE)


def _refusal(status: int, text: str) -> web.Response:
    """An answer that no cache keeps: what is missing or late now may be there in a moment."""
    return web.Response(status=status, text=f"{text}\n", headers=_NO_STORE)
