"""Health and metrics: `/livez`, `/readyz`, `/metrics`."""

import asyncio
import time

import msgspec
from aiohttp import hdrs, web

from ca_server import telemetry
from ca_server.core.ports import CorePort, Health, Ping
from ca_server.domain.errors import CaError
from ca_server.web.application import Registrar
from ca_server.web.middleware import STATE
from ca_server.web.options import LOOPBACK, Network, address_in

PING_SECONDS = 3.0
CACHE_SECONDS = 1.0
_NO_STORE = {hdrs.CACHE_CONTROL: "no-store"}


class _Views:
    def __init__(self, core: CorePort) -> None:
        self.core = core
        self.health: Health | None = None
        self.asked_at = float("-inf")
        self.asking = asyncio.Lock()

    async def livez(self, _request: web.Request) -> web.Response:
        """The event loop runs: no more is told."""
        return web.Response(text="ok\n", headers=_NO_STORE)

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether requests can be served now; 503 with the problems where not."""
        if request.app[STATE].draining:
            health = _away("this process is shutting down")
        else:
            health = await self._ask()
        ready = not health.problems
        body = msgspec.json.encode(
            {
                "ready": ready,
                "problems": health.problems,
                "token": health.token_ok,
                "database": health.database_ok,
                "crls": health.crls_fresh,
                "audit_lag_seconds": health.audit_lag_seconds,
            }
        )
        response = web.Response(
            status=200 if ready else 503, body=body, content_type="application/json", headers=_NO_STORE
        )
        if not ready:
            response.headers[hdrs.RETRY_AFTER] = str(request.app[STATE].options.retry_after)
        return response

    async def _ask(self) -> Health:
        """Ask the core, at most once a second whoever asks us, and never for long."""
        async with self.asking:
            if self.health is None or time.monotonic() - self.asked_at >= CACHE_SECONDS:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        self.health = await self.core.ping(Ping())
                except (CaError, TimeoutError) as error:
                    detail = error.detail if isinstance(error, CaError) else "the core does not answer"
                    self.health = _away(f"core: {detail}")
                self.asked_at = time.monotonic()
            return self.health


def _away(problem: str) -> Health:
    return Health((problem,), 0.0, token_ok=False, database_ok=False, crls_fresh=False)


def health_routes(core: CorePort) -> Registrar:
    """Make the registrar of `/livez` and `/readyz`."""

    def register(application: web.Application) -> None:
        views = _Views(core)
        application.router.add_get("/livez", views.livez)
        application.router.add_get("/readyz", views.readyz)

    return register


def metrics_routes(metrics_networks: tuple[Network, ...] = LOOPBACK) -> Registrar:
    """Make the registrar of `/metrics`, for peers in `metrics_networks` only.

    Behind a proxy every peer is the proxy: restrict there.
    """

    async def metrics(request: web.Request) -> web.Response:
        """Every metric of every process of this node."""
        if not address_in(request.remote, metrics_networks):
            raise web.HTTPForbidden(text="403: metrics are for the configured networks\n")
        body = await asyncio.to_thread(telemetry.render_metrics)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: telemetry.METRICS_CONTENT_TYPE, **_NO_STORE})

    def register(application: web.Application) -> None:
        application.router.add_get("/metrics", metrics)

    return register
