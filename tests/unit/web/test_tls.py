"""The server's own certificate: issued, kept, renewed under open connections, shared by several fronts."""

import asyncio
import datetime as dt
import stat

import pytest
from aiohttp import web
from cryptography import x509

from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.names import dns_identifier, email_identifier, ip_identifier
from ca_server.web.tls import ListenerTls

NAMES = (dns_identifier("localhost"), ip_identifier("127.0.0.1"))
AWAY = CaError(ErrorKind.UNAVAILABLE, "the core is away")


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "listener.pem"


class Clock:
    def __init__(self, now: dt.datetime) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        return self.now


@pytest.fixture
def clock(memory_ca):
    return Clock(memory_ca.now)


def presented_serial(client) -> int:
    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


async def test_first_start_has_it_issued(memory_ca, path, site):
    tls = ListenerTls(path, NAMES)
    await tls.ensure(memory_ca.issue)
    (csr_der,) = memory_ca.csrs
    csr = x509.load_der_x509_csr(csr_der)
    assert csr.is_signature_valid
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.with_name(path.name + ".new").exists()
    served = await site({"/": hello}, ssl_context=tls.context)
    client = await served.connect(memory_ca.client_context())
    assert (await client.get("/"))[2] == b"hello"


async def test_a_later_start_takes_it_up(memory_ca, path):
    first = ListenerTls(path, NAMES)
    await first.ensure(memory_ca.issue)
    second = ListenerTls(path, NAMES)
    await second.ensure(memory_ca.issue)
    assert len(memory_ca.csrs) == 1
    assert second.certificate == first.certificate


async def test_renewal_leaves_open_connections_alone(memory_ca, path, site, clock):
    tls = ListenerTls(path, NAMES, now=clock, check_seconds=0.02, jitter=lambda: 0.0)
    await tls.ensure(memory_ca.issue)
    old = tls.certificate
    served = await site({"/": hello}, ssl_context=tls.context)
    client = await served.connect(memory_ca.client_context())
    assert (await client.get("/"))[2] == b"hello"
    assert presented_serial(client) == old.serial_number
    renewing = asyncio.create_task(tls.run(memory_ca.issue))
    await asyncio.sleep(0.1)
    assert tls.certificate == old
    clock.now += memory_ca.lifetime * 0.67
    memory_ca.now = clock.now - dt.timedelta(minutes=41)
    async with asyncio.timeout(10):
        while tls.certificate == old:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
    renewing.cancel()
    assert (await client.get("/"))[2] == b"hello"
    fresh = await served.connect(memory_ca.client_context())
    assert (await fresh.get("/"))[2] == b"hello"
    assert presented_serial(fresh) == tls.certificate.serial_number != old.serial_number
    first, second = (x509.load_der_x509_csr(der).public_key() for der in memory_ca.csrs)
    assert first != second


@pytest.mark.parametrize(
    ("when", "renewed"),
    [((0.66, 0.0), False), ((0.67, 0.0), True), ((0.61, 1.0), False), ((0.62, 1.0), True)],
)
async def test_is_renewed_after_two_thirds_less_the_jitter(memory_ca, path, clock, when, renewed):
    part, jitter = when
    tls = ListenerTls(path, NAMES, now=clock, jitter=lambda: jitter)
    await tls.ensure(memory_ca.issue)
    clock.now += memory_ca.lifetime * part
    await tls.ensure(memory_ca.issue)
    assert (len(memory_ca.csrs) == 2) is renewed


async def test_other_names_are_a_reason_to_renew(memory_ca, path):
    await ListenerTls(path, NAMES).ensure(memory_ca.issue)
    await ListenerTls(path, tuple(reversed(NAMES))).ensure(memory_ca.issue)
    assert len(memory_ca.csrs) == 1
    other = ListenerTls(path, (*NAMES, dns_identifier("ca.test")))
    await other.ensure(memory_ca.issue)
    assert len(memory_ca.csrs) == 2
    assert "ca.test" in str(other.certificate.extensions)


async def test_without_the_core_a_valid_one_serves_on(memory_ca, path, clock):
    await ListenerTls(path, NAMES, now=clock).ensure(memory_ca.issue)
    memory_ca.error = AWAY
    clock.now += memory_ca.lifetime * 0.9
    tls = ListenerTls(path, NAMES, now=clock)
    await tls.ensure(memory_ca.issue)
    assert tls.certificate is not None
    clock.now += memory_ca.lifetime * 0.2
    with pytest.raises(CaError, match="core is away"):
        await ListenerTls(path, NAMES, now=clock).ensure(memory_ca.issue)


async def test_without_the_core_and_without_a_certificate_it_says_so_and_asks_for_the_same_later(memory_ca, path):
    memory_ca.error = AWAY
    tls = ListenerTls(path, NAMES)
    for _ in range(2):
        with pytest.raises(CaError, match="core is away"):
            await tls.ensure(memory_ca.issue)
    memory_ca.error = None
    await tls.ensure(memory_ca.issue)
    # The same CSR each time: what was issued while the answer was lost is found again.
    assert len(memory_ca.csrs) == 3
    assert len(set(memory_ca.csrs)) == 1


async def test_several_fronts_renew_once(memory_ca, path):
    memory_ca.gate.clear()
    fronts = [ListenerTls(path, NAMES, check_seconds=0.02) for _ in range(4)]
    tasks = [asyncio.create_task(front.ensure(memory_ca.issue)) for front in fronts]
    await asyncio.sleep(0.1)
    memory_ca.gate.set()
    await asyncio.gather(*tasks)
    assert len(memory_ca.csrs) == 1
    assert len({front.certificate for front in fronts}) == 1


async def test_a_front_follows_another_s_renewal(memory_ca, path, clock):
    renewer, follower = (ListenerTls(path, NAMES, now=clock, jitter=lambda: 0.0) for _ in range(2))
    await renewer.ensure(memory_ca.issue)
    await follower.ensure(memory_ca.issue)
    clock.now += memory_ca.lifetime * 0.7
    memory_ca.now = clock.now
    await renewer.ensure(memory_ca.issue)
    await follower.ensure(memory_ca.issue)
    assert follower.certificate == renewer.certificate
    assert len(memory_ca.csrs) == 2


async def test_a_certificate_for_another_key_is_not_taken(memory_ca, path):
    memory_ca.wrong_key = True
    tls = ListenerTls(path, NAMES)
    with pytest.raises(CaError, match="another key"):
        await tls.ensure(memory_ca.issue)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
async def test_a_broken_file_is_replaced(memory_ca, path, content):
    path.write_bytes(content)
    tls = ListenerTls(path, NAMES)
    await tls.ensure(memory_ca.issue)
    assert tls.certificate is not None


async def test_a_file_that_breaks_later_does_not_stop_the_service(memory_ca, path, site, clock):
    tls = ListenerTls(path, NAMES, now=clock)
    await tls.ensure(memory_ca.issue)
    served = await site({"/": hello}, ssl_context=tls.context)
    path.write_bytes(b"broken")
    await tls.ensure(memory_ca.issue)
    client = await served.connect(memory_ca.client_context())
    assert (await client.get("/"))[2] == b"hello"


@pytest.mark.parametrize("names", [(), (email_identifier("a@b.test"),)])
def test_names_that_no_server_has(path, names):
    with pytest.raises(ConfigurationError, match="names"):
        ListenerTls(path, names)
