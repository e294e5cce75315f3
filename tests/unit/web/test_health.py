"""Health and metrics."""

import asyncio
import ipaddress
import json

import pytest

from ca_server.core.ports import Health, Ping
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.web import health
from ca_server.web.health import health_routes, metrics_routes

GOOD = Health((), 0.25, token_ok=True, database_ok=True, crls_fresh=True)
BAD = Health(("token: CKR_DEVICE_ERROR",), 9.0, token_ok=False, database_ok=True, crls_fresh=True)


class PingedCore:
    def __init__(self, answer: Health | Exception | None) -> None:
        self.answer = answer
        self.asked = 0

    async def ping(self, _ping: Ping) -> Health:
        self.asked += 1
        if self.answer is None:
            await asyncio.sleep(60)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def health_site(site):
    async def start(core: PingedCore, **options):
        served = await site({}, registrars=[health_routes(core), metrics_routes(**options)])
        return served, await served.connect()

    return start


async def test_alive_whatever_the_core_does(health_site):
    _, client = await health_site(PingedCore(None))
    assert (await client.get("/livez"))[0] == 200


async def test_ready(health_site):
    _, client = await health_site(PingedCore(GOOD))
    status, headers, body = await client.get("/readyz")
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert json.loads(body) == {
        "ready": True,
        "problems": [],
        "token": True,
        "database": True,
        "crls": True,
        "audit_lag_seconds": 0.25,
    }


async def test_not_ready_with_the_problems(health_site):
    _, client = await health_site(PingedCore(BAD))
    status, headers, body = await client.get("/readyz")
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(body)["problems"] == ["token: CKR_DEVICE_ERROR"]


@pytest.mark.parametrize("answer", [CaError(ErrorKind.UNAVAILABLE, "away"), None])
async def test_a_core_that_is_away_or_hangs(health_site, answer, monkeypatch):
    monkeypatch.setattr(health, "PING_SECONDS", 0.1)
    _, client = await health_site(PingedCore(answer))
    status, _, body = await client.get("/readyz")
    assert status == 503
    assert json.loads(body)["problems"][0].startswith("core: ")


async def test_the_core_is_asked_once_a_second_whoever_asks(health_site):
    core = PingedCore(GOOD)
    served, client = await health_site(core)
    clients = [client, *[await served.connect() for _ in range(4)]]
    await asyncio.gather(*(each.get("/readyz") for each in clients))
    assert core.asked == 1


async def test_not_ready_while_draining(health_site):
    served, client = await health_site(PingedCore(GOOD))
    await client.send(b"GET /readyz HTTP/1.1\r\n")
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(served.runner.close())
    await asyncio.sleep(0.05)
    await client.send(b"Host: x\r\n\r\n")
    assert (await client.response())[0] == 503
    await closing


async def test_metrics_for_loopback(health_site):
    _, client = await health_site(PingedCore(GOOD))
    await client.get("/livez")
    status, headers, body = await client.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b'ca_server_http_requests_total{frontend="health",listener="http",method="GET",status="200"}' in body


async def test_metrics_for_nobody_else(health_site):
    network = (ipaddress.ip_network("192.0.2.0/24"),)
    _, client = await health_site(PingedCore(GOOD), metrics_networks=network)
    status, _, body = await client.get("/metrics")
    assert status == 403
    assert b"ca_server_http" not in body
