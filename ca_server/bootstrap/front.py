"""Composes a front: the front-ends of each listener over the core's port."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog

from ca_server.bootstrap import metrics
from ca_server.bootstrap.attestation import load_attestation_roots
from ca_server.bootstrap.descriptors import affordable_connections
from ca_server.bootstrap.memory import give_back_memory
from ca_server.bootstrap.names import listener_identifiers
from ca_server.bootstrap.stores import Stores, open_stores
from ca_server.bootstrap.version import SOFTWARE
from ca_server.core.audit import EventFactory
from ca_server.core.ports import CorePort, Hello, Welcome
from ca_server.core.profiles import ProfileBook
from ca_server.core.service import LISTENER, PORT_VERSION
from ca_server.domain.certificates import IssuedCertificate
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester
from ca_server.domain.errors import CaError
from ca_server.domain.rates import parse_rate
from ca_server.settings import AcmeChaosSettings, Home, ListenerSettings, Settings
from ca_server.store.acme import SqlAcmeStore
from ca_server.web.application import Registrar, create_application
from ca_server.web.health import health_routes, metrics_routes
from ca_server.web.listener import serve_listener
from ca_server.web.options import WebOptions
from ca_server.web.tls import ListenerTls
from protocols.acme.attestation import Roots
from protocols.acme.chaos import Chaos, ChaosOptions
from protocols.acme.limits import Limits
from protocols.acme.options import AcmeOptions
from protocols.acme.validation import Dnssec, ValidationPolicy
from protocols.acme.views import AcmeFrontEnd
from protocols.log.views import LogFrontEnd
from protocols.status.views import StatusFrontEnd

_log = structlog.get_logger()

_HELLO_ATTEMPTS = 60
PROFILES_SECONDS = 2.0
"""Between two looks at which profiles are in force."""


class FrontRuntime:
    """A front at work."""

    def __init__(self, book: ProfileBook) -> None:
        self._book = book

    async def reload(self) -> None:
        """Take up the profiles that the core has put in force."""
        await self._book.follow()

    async def follow_profiles(self) -> None:
        """Take up changes of the profiles in force, whichever node made them; until cancelled."""
        while True:
            await asyncio.sleep(PROFILES_SECONDS)
            try:
                await self._book.follow()
            except CaError as error:
                _log.warning("profiles not looked at", error=error.detail)


@asynccontextmanager
async def front_at_work(
    home: Home,
    settings: Settings,
    core: CorePort,
    sockets: Mapping[str, tuple[socket.socket, ...]],
    *,
    process: str,
) -> AsyncIterator[FrontRuntime]:
    """Serve the listeners for as long as this holds, then drain them.

    Order of the drain: listeners stop accepting and finish what they began, then the front-ends finish their work in
    the background, then the database closes.
    """
    roots = load_attestation_roots(home, settings)
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(home, settings, as_front=True))
        welcome = await _hello(core, process)
        book = ProfileBook(stores.profiles, {})
        await book.follow()
        events = EventFactory(
            node=welcome.node,
            process=process,
            software=SOFTWARE,
            configuration=settings.hash,
            tenant=settings.server.tenant,
        )
        registrars = await _front_ends(settings, core, stores, book, events, welcome, roots, stack)
        tls = await _tls(home, settings, core, stack)
        connections = affordable_connections(settings)
        for name, listener in settings.listeners.items():
            options = _web_options(settings, listener, connections[name])
            application = create_application(name, options, [registrars[each] for each in listener.serves])
            context = tls.context if listener.tls and tls is not None else None
            runner = await serve_listener(application, sockets[name], context, options)
            stack.push_async_callback(runner.close)
        front = FrontRuntime(book)
        await _in_background(stack, front.follow_profiles(), "profiles")
        await _in_background(stack, give_back_memory(), "memory")
        yield front


async def _hello(core: CorePort, process: str) -> Welcome:
    """Introduce this front; the core may still be starting."""
    for attempt in range(_HELLO_ATTEMPTS):
        try:
            return await core.hello(Hello(process, PORT_VERSION))
        except CaError as error:
            if error.retry_after is None or attempt == _HELLO_ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.5)
    raise AssertionError("unreachable")


async def _front_ends(
    settings: Settings,
    core: CorePort,
    stores: Stores,
    book: ProfileBook,
    events: EventFactory,
    welcome: Welcome,
    roots: Roots,
    stack: AsyncExitStack,
) -> dict[str, Registrar]:
    """The front-ends that some listener serves, started."""
    wanted = {each for listener in settings.listeners.values() for each in listener.serves}
    metrics_networks = tuple(ipaddress.ip_network(network) for network in settings.metrics.allow_from)
    log_networks = tuple(ipaddress.ip_network(network) for network in settings.audit.log_allow_from)
    registrars: dict[str, Registrar] = {
        "health": health_routes(core),
        "metrics": metrics_routes(metrics_networks),
        "status": StatusFrontEnd(core=core, revocation=stores.revocation, issuers=stores.issuers).register,
        "log": LogFrontEnd(stores.audit, log_networks).register,
    }
    if "acme" in wanted:
        acme = AcmeFrontEnd(
            options=acme_options(settings, welcome, roots),
            store=SqlAcmeStore(stores.database, settings.server.tenant),
            core=core,
            profiles=book,
            events=events,
            nonce_key=welcome.nonce_key,
            observe_validation=metrics.validation,
            observe_limit=metrics.acme_limit,
            observe_caa=metrics.acme_caa,
        )
        await acme.start()
        stack.push_async_callback(acme.stop)
        registrars["acme"] = acme.register
    return registrars


def acme_options(settings: Settings, welcome: Welcome, roots: Roots) -> AcmeOptions:
    """The options of the ACME front-end, by the settings and by what the core says."""
    acme = settings.acme
    return AcmeOptions(
        external_url=settings.https_url,
        validation=ValidationPolicy(
            http_01_port=acme.http_01_port,
            tls_alpn_01_port=acme.tls_alpn_01_port,
            allowed_networks=tuple(ipaddress.ip_network(network) for network in acme.allowed_networks),
            denied_networks=tuple(ipaddress.ip_network(network) for network in acme.denied_networks),
            redirect_ports=acme.redirect_ports,
            timeout=acme.validation_timeout,
            issuer_domain_names=tuple(name.lower() for name in acme.caa_identities),
            nameservers=settings.dns.nameservers,
            dns_timeout=settings.dns.timeout,
            dnssec=Dnssec(settings.dns.dnssec),
            attestation_roots=roots,
        ),
        default_profile=settings.policy.default_profile,
        tenant=settings.server.tenant,
        challenges=acme.challenges,
        finalize_wait=acme.finalize_wait,
        require_eab=acme.require_eab,
        terms_of_service=acme.terms_of_service,
        website=acme.website,
        caa_identities=acme.caa_identities,
        caa_max_age=timedelta(seconds=acme.caa_max_age),
        order_lifetime=timedelta(seconds=acme.order_lifetime),
        authorization_lifetime=timedelta(seconds=acme.authorization_lifetime),
        authorization_reuse_lifetime=timedelta(seconds=acme.authorization_reuse_lifetime),
        nonce_lifetime=timedelta(seconds=acme.nonce_lifetime),
        validation_attempts=acme.validation_attempts,
        validation_concurrency=acme.validation_concurrency,
        max_validations=acme.max_validations,
        retention=timedelta(seconds=acme.retention),
        renewal_retry_after=timedelta(seconds=acme.renewal_retry_after),
        max_identifiers=acme.max_identifiers,
        max_open_orders=acme.max_open_orders,
        max_open_names=acme.max_open_names,
        max_open_authorizations=acme.max_open_authorizations,
        limits=Limits(
            accounts_per_network=parse_rate(acme.limits.accounts_per_network),
            orders_per_account=parse_rate(acme.limits.orders_per_account),
            orders_per_network=parse_rate(acme.limits.orders_per_network),
            orders=parse_rate(acme.limits.orders),
            certificates_per_name=parse_rate(acme.limits.certificates_per_name),
            certificates_per_domain=parse_rate(acme.limits.certificates_per_domain),
            certificates_per_set=parse_rate(acme.limits.certificates_per_set),
            failures_per_name=parse_rate(acme.limits.failures_per_name),
            ipv4_prefix=acme.limits.ipv4_prefix,
            ipv6_prefix=acme.limits.ipv6_prefix,
            tenant=settings.server.tenant,
        ),
        limits_help_url=acme.limits.help_url,
        chaos=_chaos(settings.acme.chaos, welcome),
        # The core has looked at the issuers' certificates; this process has the setting alone.
        unsafe_skip_validation=acme.unsafe_skip_validation and welcome.staging,
    )


def _chaos(settings: AcmeChaosSettings, welcome: Welcome) -> Chaos | None:
    if not settings.profiles:
        return None
    _log.warning("clients of staging profiles are tried", profiles=settings.profiles)
    return Chaos(
        ChaosOptions(
            profiles=frozenset(settings.profiles),
            # The core has looked at the issuers' certificates; this process has the setting alone.
            issuers=frozenset(welcome.staging_issuers),
            bad_nonces=settings.bad_nonces,
            validation_delay=settings.validation_delay,
            authorization_reuse=settings.authorization_reuse,
        )
    )


def _web_options(settings: Settings, listener: ListenerSettings, connections: int) -> WebOptions:
    return WebOptions(
        max_body=listener.max_body,
        header_seconds=listener.header_seconds,
        body_seconds=listener.body_seconds,
        request_seconds=listener.request_seconds,
        write_seconds=listener.write_seconds,
        keepalive_seconds=listener.keepalive_seconds,
        max_concurrent=listener.max_concurrent_requests,
        max_concurrent_per_address=max(1, listener.max_concurrent_requests // 2),
        max_connections=connections,
        max_connections_per_address=listener.max_connections_per_address,
        max_bodies_per_address=listener.max_bodies_per_address,
        drain_seconds=settings.processes.drain_seconds,
    )


async def _tls(home: Home, settings: Settings, core: CorePort, stack: AsyncExitStack) -> ListenerTls | None:
    """The TLS certificate of the listeners, issued by this CA and renewed in the background."""
    if not any(listener.tls for listener in settings.listeners.values()):
        return None
    names = listener_identifiers(settings)

    async def issue(csr_der: bytes) -> IssuedCertificate:
        return await core.issue(
            EnrollmentRequest(
                requester=Requester(Protocol.INTERNAL, LISTENER, "core-port", settings.server.tenant),
                profile=LISTENER,
                csr_der=csr_der,
                identifiers=names,
                transaction_key=sha256(csr_der).hexdigest(),
                request_id=f"tls-{datetime.now(UTC):%Y%m%d%H%M%S}",
            )
        )

    tls = ListenerTls(home.tls / "listener.pem", names)
    try:
        await tls.ensure(issue)
    except CaError as error:
        # The other listeners serve; handshakes fail until there is one.
        _log.error("no certificate for the TLS listeners yet", reason=error.detail)
    await _in_background(stack, tls.run(issue), "tls renewal")
    return tls


async def _in_background(stack: AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run until the stack is left."""
    task = asyncio.create_task(work, name=name)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)
