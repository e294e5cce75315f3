"""What surrounds every request: its id, its limits, its one log line, and an answer when all else failed.

The order, outermost first: `observe` (id, log line, metrics, fall-back for errors), `limit` (concurrency, size, time).
Protocols map their own errors inside; what reaches the fall-back was not theirs.
"""

import asyncio
import base64
import functools
import http
import re
import secrets
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from aiohttp import ClientError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import Counter, Gauge, Histogram

from ca_server import telemetry
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.web.crowd import origin
from ca_server.web.options import WebOptions, address_in
from ca_server.web.pieces import in_pieces
from ca_server.web.throttle import LogThrottle

_log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID_HEADER = "X-Request-Id"
SERVER = "ca-server"
REQUEST_ID = web.RequestKey("request_id", str)
UNTOLD = web.RequestKey("untold", bool)
"""Set where a limit refused the request, and so many before it that no line of the log tells of it."""
FRONT_END = web.RequestKey("front_end", str)
"""Set by a handler that serves a front-end other than its module's."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_MAX_LOGGED_PATH = 512

_STATUS = {
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.UNAUTHORIZED: 403,
    ErrorKind.MALFORMED: 400,
}


@dataclass(slots=True)
class ListenerState:
    """What the requests of one listener share. Owned by the event loop."""

    name: str
    options: WebOptions
    in_flight_gauge: Gauge
    in_flight: int = 0
    draining: bool = False
    bodies: Counts[str] = field(default_factory=Counts)
    """Requests whose body is still coming, by peer."""
    answering: Counts[str] = field(default_factory=Counts)
    """Requests being answered, by peer."""
    throttle: LogThrottle = field(default_factory=LogThrottle)

    def refused(self, reason: str, event: str, **fields: object) -> bool:
        """Count what a limit refused or cut off; log it, true, as far as the log is not filled by it."""
        telemetry.HTTP_REFUSED.labels(self.name, reason).inc()
        told = self.throttle.admit(reason)
        if told is not None:
            _log.info(event, listener=self.name, reason=reason, **fields, **told)
        return told is not None


STATE = web.AppKey("listener_state", ListenerState)

Renderer = Callable[[web.Request, int, str, int | None], web.Response]
"""Makes a front-end's own answer of a refused request, an HTTP status, a text and Retry-After in seconds."""


@dataclass(frozen=True, slots=True)
class _Own:
    """What a front-end has of its own."""

    render: Renderer
    max_body: int | None


_OWN = web.AppKey("refusals", dict[str, _Own])


def render_refusals(
    application: web.Application, prefix: str, render: Renderer, *, max_body: int | None = None
) -> None:
    """Let a front-end say in its own way what limits refuse below a path; `max_body` is a lower limit of its own."""
    application.setdefault(_OWN, {})[prefix] = _Own(render, max_body)


def _own(request: web.Request) -> _Own | None:
    path = request.rel_url.raw_path
    return next((own for prefix, own in request.app.get(_OWN, {}).items() if path.startswith(prefix)), None)


def refuse(
    request: web.Request, status: int, text: str, *, retry_after: int | None = None, close: bool = False
) -> web.Response:
    """Make an answer for what is refused before a front-end sees it, or that it did not map."""
    own = _own(request)
    if own is None:
        return plain_response(status, text, request_id=request_id(request), retry_after=retry_after, close=close)
    response = own.render(request, status, text, retry_after)
    if close:
        response.force_close()
    return response


def request_id(request: web.BaseRequest) -> str:
    """The id of a request, in its log lines, the core's and the audit log's."""
    found: str = request.get(REQUEST_ID, "")
    return found


def new_request_id() -> str:
    """A fresh id: 96 random bits in base64url."""
    return base64.urlsafe_b64encode(secrets.token_bytes(12)).decode()


def plain_response(
    status: int, text: str, *, request_id: str = "", retry_after: int | None = None, close: bool = False
) -> web.Response:
    """Make an answer in plain text, for errors that no protocol has mapped."""
    body = f"{status} {http.HTTPStatus(status).phrase}: {text}\n"
    if request_id:
        body += f"request id: {request_id}\n"
    response = web.Response(status=status, text=body, headers={hdrs.CACHE_CONTROL: "no-store"})
    if retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(retry_after)
    if close:
        response.force_close()
    return response


@functools.lru_cache(maxsize=1024)
def _module_front_end(module: str) -> str:
    """The front-end of a handler's module: `acme` of `protocols.acme.views`, `admin` of `ca_server.admin.api`."""
    parts = module.split(".")
    if parts[0] == "protocols" and len(parts) > 1:
        return parts[1]
    if module.startswith("ca_server."):
        return parts[-1] if parts[1] == "web" else parts[1]
    return "none"


def front_end(request: web.Request) -> str:
    """Which front-end a request went to; `none` where no route matched."""
    named: str | None = request.get(FRONT_END)
    if named is not None:
        return named
    if request.match_info.http_exception is not None:
        return "none"
    handler: object = request.match_info.handler
    while isinstance(handler, functools.partial):
        handler = handler.func
    return _module_front_end(getattr(handler, "__module__", None) or "")


@functools.lru_cache(maxsize=1024)
def _request_counter(listener: str, served_by: str, method: str, status: int) -> Counter:
    return telemetry.HTTP_REQUESTS.labels(listener, served_by, method, str(status))


@functools.lru_cache(maxsize=1024)
def _request_histogram(listener: str, served_by: str) -> Histogram:
    return telemetry.HTTP_REQUEST_SECONDS.labels(listener, served_by)


def _is_proxy(request: web.Request, options: WebOptions) -> bool:
    return bool(options.trusted_proxies) and address_in(request.remote, options.trusted_proxies)


def _take_id(request: web.Request, options: WebOptions) -> str:
    if _is_proxy(request, options):
        given = request.headers.get(REQUEST_ID_HEADER, "")
        if _REQUEST_ID.fullmatch(given):
            return given
    return new_request_id()


async def _answer(request: web.Request, handler: Handler, state: ListenerState) -> web.StreamResponse:
    """Run the handler; what it raises becomes an answer. HTTPExceptions are answers already."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except CaError as error:
        status = _STATUS.get(error.kind, 500)
        _log.error("unmapped error", kind=error.kind.value, detail=error.detail)
        return refuse(request, status, error.detail, retry_after=error.retry_after)
    except ConnectionError:
        # The client is gone: aiohttp knows what to do.
        raise
    except Exception:
        _log.exception("request failed")
        if request.writer.output_size:
            # A part of an answer is out: the connection must break, or it would pass for whole.
            if request.transport is not None:
                request.transport.abort()
            raise
        return refuse(request, 500, "internal error", retry_after=state.options.retry_after)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id; log one canonical line; count it; answer where the handler could not."""
    state = request.app[STATE]
    started = time.perf_counter()
    rid = request[REQUEST_ID] = _take_id(request, state.options)
    structlog.contextvars.bind_contextvars(request_id=rid)
    status = 499
    size = 0
    try:
        response = await _answer(request, handler, state)
        status, size = response.status, _size(response)
        if state.draining:
            response.force_close()
    except web.HTTPException as answer:
        status, size = answer.status, _size(answer)
        if state.draining:
            answer.force_close()
        raise
    else:
        return response
    finally:
        elapsed = time.perf_counter() - started
        served_by = front_end(request)
        method = request.method if request.method in _METHODS else "other"
        _request_counter(state.name, served_by, method, status).inc()
        _request_histogram(state.name, served_by).observe(elapsed)
        if UNTOLD not in request:
            _log.info(
                "request",
                listener=state.name,
                frontend=served_by,
                method=request.method[:16],
                # Without the query, which may have more than is good for a log.
                path=request.rel_url.raw_path[:_MAX_LOGGED_PATH],
                status=status,
                duration_ms=round(elapsed * 1000, 2),
                bytes=size,
                remote=request.remote,
            )


def _size(response: web.StreamResponse) -> int:
    if isinstance(response, web.Response) and isinstance(response.body, bytes | bytearray):
        return len(response.body)
    return response.content_length or 0


@web.middleware
async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep concurrency, body size and time within the listener's limits.

    A request counts as being answered from the end of its body on: who sends slowly takes nobody's place.
    """
    state = request.app[STATE]
    options = state.options
    own = _own(request)
    max_body = options.max_body if own is None or own.max_body is None else min(own.max_body, options.max_body)
    if request.content_length is not None and request.content_length > max_body:
        return _too_large(request, max_body)
    if request.can_read_body:
        refused = await _take_body(request, state)
        if refused is not None:
            return refused
    peer = origin(request.remote)
    full = state.answering[peer] >= options.max_concurrent_per_address and not _is_proxy(request, options)
    if full or state.in_flight >= options.max_concurrent:
        return _busy(request, state)
    state.in_flight += 1
    state.in_flight_gauge.inc()
    state.answering[peer] += 1
    limited = asyncio.timeout(options.request_seconds)
    try:
        async with limited:
            return await handler(request)
    except TimeoutError:
        if not limited.expired():
            raise
        _refused(request, "time", "request took too long", seconds=options.request_seconds)
        return refuse(request, 503, "took too long", retry_after=options.retry_after)
    finally:
        state.in_flight -= 1
        state.in_flight_gauge.dec()
        _one_less(state.answering, peer)


def _refused(request: web.Request, reason: str, event: str, **fields: object) -> None:
    if not request.app[STATE].refused(reason, event, remote=request.remote, **fields):
        request[UNTOLD] = True


def _one_less(counts: Counts[str], peer: str) -> None:
    counts[peer] -= 1
    if not counts[peer]:
        del counts[peer]


def _too_large(request: web.Request, max_body: int) -> web.Response:
    _refused(request, "body", "body too large")
    # What else it sends is not read.
    return refuse(request, 413, f"at most {max_body} octets", close=True)


def _busy(request: web.Request, state: ListenerState, *, close: bool = False) -> web.Response:
    _refused(request, "busy", "too many requests at once")
    return refuse(request, 503, "the server is busy", retry_after=state.options.retry_after, close=close)


async def _take_body(request: web.Request, state: ListenerState) -> web.Response | None:
    """Read the body, which handlers then find in memory; returns the answer where it can't be taken."""
    options = state.options
    if request.content.is_eof():
        return await _read_body(request, state)
    source = origin(request.remote)
    full = state.bodies[source] >= options.max_bodies_per_address and not _is_proxy(request, options)
    if full or state.bodies.total() >= options.max_concurrent:
        return _busy(request, state, close=True)
    state.bodies[source] += 1
    try:
        return await _read_body(request, state)
    finally:
        _one_less(state.bodies, source)


async def _read_body(request: web.Request, state: ListenerState) -> web.Response | None:
    options = state.options
    try:
        async with asyncio.timeout(options.body_seconds):
            await request.read()
    except TimeoutError:
        _refused(request, "time", "body too slow")
        return refuse(request, 408, "the request's body took too long", close=True)
    except web.HTTPRequestEntityTooLarge:
        return _too_large(request, options.max_body)
    except (web.RequestPayloadError, HttpProcessingError, ClientError) as error:
        _refused(request, "malformed", "body could not be read", what=type(error).__name__)
        return refuse(request, 400, "the request's body could not be read", close=True)
    return None


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put on what every answer carries, and let no large one be queued whole. The version is nobody's business."""
    in_pieces(response)
    headers = response.headers
    headers[hdrs.SERVER] = SERVER
    rid = request_id(request)
    if rid:
        headers[REQUEST_ID_HEADER] = rid
    # Our answers are data: nothing may guess another type, frame them or run anything in them.
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers.setdefault("Referrer-Policy", "no-referrer")
    if request.app[STATE].options.hsts and request.secure:
        headers.setdefault("Strict-Transport-Security", "max-age=31536000")
