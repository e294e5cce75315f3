"""Composes a core: the services behind the two ports, over token and database."""

import asyncio
import fcntl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from ca_server.bootstrap import metrics
from ca_server.bootstrap.names import listener_identifiers
from ca_server.bootstrap.profiles import load_profiles
from ca_server.bootstrap.stores import Stores, database_url, open_stores
from ca_server.bootstrap.token import LOG_LABEL, SECRETS_LABEL, open_token
from ca_server.bootstrap.version import SOFTWARE
from ca_server.core.audit import EventFactory, Sequencer, check_anchor
from ca_server.core.crl import CrlPublisher, CrlSchedule
from ca_server.core.eab import ExternalAccounts
from ca_server.core.issuance import Issuance
from ca_server.core.issuers import Ceremony, IssuerRegistry, UrlPlan
from ca_server.core.jobs import Job, Jobs
from ca_server.core.lint import Linter
from ca_server.core.ocsp import OcspResponder
from ca_server.core.ports import Health, KeyStore, SigningKey, Welcome
from ca_server.core.profiles import ProfileBook
from ca_server.core.responders import Responders
from ca_server.core.revocation import Revocation
from ca_server.core.service import AdminService, CoreService, WriteGate
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.enrollment import Fence
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.settings import Home, Settings
from ca_server.store.anchor import FileAnchor
from ca_server.store.migrate import migrate

_log = structlog.get_logger()

NODE_LEASE = timedelta(seconds=30)
HEARTBEAT = 10.0
DRAIN_SECONDS = 20.0


@contextmanager
def home_lock(home: Home) -> Iterator[None]:
    """Hold the home's lock: one core at a time. ConfigurationError where another holds it."""
    with home.lock.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                str(home.path), "home", None, "another ca-server process uses this home; stop it first"
            ) from None
        yield


class CoreRuntime:
    """A core with all its services, for as long as `open` holds.

    `_uses` and `_problems` are owned by the jobs that write them.
    """

    def __init__(
        self,
        *,
        home: Home,
        settings: Settings,
        stores: Stores,
        keys: KeyStore,
        fence: Fence,
        events: EventFactory,
        linter: Linter,
        book: ProfileBook,
        log_key: SigningKey,
        nonce_key: bytes,
    ) -> None:
        self.home = home
        self.settings = settings
        self.stores = stores
        self.keys = keys
        self.fence = fence
        self.events = events
        self.gate = WriteGate()
        self._linter = linter
        self._book = book
        self.log_key = log_key
        self._nonce_key = nonce_key
        self._uses: Counter[str] = Counter()
        self._token_problem: str | None = None
        urls = UrlPlan(settings.http_url)
        self.anchor = FileAnchor(home.anchor if not settings.audit.anchor else Path(settings.audit.anchor))
        self.issuers = IssuerRegistry(stores.issuers, keys, urls)
        self.ceremony = Ceremony(stores.issuers, stores.audit, keys, linter, events, urls)
        self.issuance = Issuance(
            store=stores.issuance,
            audit=stores.audit,
            issuers=self.issuers,
            profiles=book,
            linter=linter,
            events=events,
            fence=lambda: fence,
            observe_stage=metrics.stage,
            observe_outcome=metrics.issuance,
        )
        self.publisher = CrlPublisher(
            store=stores.revocation,
            issuers=self.issuers,
            schedules={
                name: CrlSchedule(timedelta(seconds=issuer.crl_lifetime), timedelta(seconds=issuer.crl_interval))
                for name, issuer in settings.issuers.items()
            },
            events=events,
            coalesce=settings.status.crl_coalesce,
            observe=metrics.crl,
        )
        self.revocation = Revocation(
            certificates=stores.issuance,
            store=stores.revocation,
            audit=stores.audit,
            profiles=book,
            events=events,
            revoked=self._revoked,
            observe=metrics.revocation,
        )
        self.responders = Responders(
            keys=keys,
            ceremony=self.ceremony,
            issuance=self.issuance,
            certificates=stores.issuance,
            issuers=self.issuers,
            audit=stores.audit,
            events=events,
        )
        self.ocsp = OcspResponder(
            store=stores.issuance,
            issuers=self.issuers,
            responder=self.responders.get,
            lifetime=timedelta(seconds=settings.status.ocsp_lifetime),
            unknown_serial=settings.status.unknown_serial,
            observe=metrics.ocsp,
        )
        self.accounts = ExternalAccounts(
            store=stores.eab,
            keys=keys,
            secret_key=SECRETS_LABEL,
            profiles=book,
            audit=stores.audit,
            events=events,
        )
        self.sequencer = Sequencer(
            store=stores.audit,
            coordination=stores.coordination,
            key=log_key,
            anchor=self.anchor,
            origin=f"ca-server/{settings.server.tenant}",
            holder=f"{fence.node}/{fence.boot_epoch}",
            interval=settings.audit.checkpoint_interval,
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, home: Home, settings: Settings, *, process: str) -> AsyncIterator["CoreRuntime"]:
        """Open token and database, take the home's lock and compose the core. ConfigurationError, CaError."""
        async with AsyncExitStack() as stack:
            stack.enter_context(home_lock(home))
            profiles = load_profiles(home, settings)
            keys = await open_token(home, settings)
            stack.push_async_callback(keys.close)
            await migrate(database_url(home, settings))
            stores = await stack.enter_async_context(open_stores(home, settings))
            fence = await stores.coordination.begin_boot(settings.server.node, datetime.now(UTC), NODE_LEASE)
            events = EventFactory(
                node=fence.node,
                process=process,
                software=SOFTWARE,
                configuration=settings.hash,
                tenant=settings.server.tenant,
            )
            linter = Linter(pkilint=settings.lint.pkilint, time_limit=settings.lint.pkilint_timeout)
            stack.push_async_callback(linter.close)
            book = ProfileBook(stores.profiles, profiles)
            await keys.ensure_secret_key(SECRETS_LABEL)
            log_key = await _log_key(keys, stores, events)
            runtime = cls(
                home=home,
                settings=settings,
                stores=stores,
                keys=keys,
                fence=fence,
                events=events,
                linter=linter,
                book=book,
                log_key=log_key,
                nonce_key=await _nonce_key(keys, stores),
            )
            await runtime._check_anchor()
            await runtime.issuers_changed()
            await linter.start()
            try:
                yield runtime
            finally:
                await runtime._close()

    async def _check_anchor(self) -> None:
        mismatch = await check_anchor(self.stores.audit, self.anchor, self.log_key.spki_der)
        if mismatch is None:
            await self._book.save(self.events)
            return
        self.gate.reason = str(mismatch)
        _log.critical(
            "read-only: the database does not extend the audit log's anchor",
            why=str(mismatch),
            remedy="restore the newer database, or see docs/security.md before accepting the older one",
        )

    async def issuers_changed(self) -> None:
        """Read the issuers again."""
        await self.issuers.load()
        self.ocsp.index()

    async def settle_in(self) -> None:
        """Put on record that the core starts, settle what earlier boots left, and see to CRLs and responders."""
        if self.gate.reason is not None:
            return
        await self.stores.audit.append([self.events.make(EventType.SERVER_START, object=f"home:{self.home.path}")])
        left = await self.stores.issuance.live_intents(self.fence.node, self.fence.boot_epoch)
        settled = await self.issuance.settle(left, "the process that reserved it ended before it was stored")
        if settled:
            _log.warning("settled interrupted issuances", count=settled)
        await self.publisher.refresh_due()
        await self.responders.ensure()

    def front_port(self) -> CoreService:
        """The port for fronts."""
        return CoreService(
            welcome=Welcome(self.fence.node, self._nonce_key, self.settings.hash),
            issuance=self.issuance,
            revocation=self.revocation,
            responder=self.ocsp,
            accounts=self.accounts,
            health=self.health,
            gate=self.gate,
            listener_names=frozenset(listener_identifiers(self.settings)),
        )

    def admin(self, actor: Callable[[], str]) -> AdminService:
        """The port for operators."""
        return AdminService(
            revocation=self.revocation,
            publisher=self.publisher,
            accounts=self.accounts,
            reload=self.reload,
            health=self.health,
            gate=self.gate,
            actor=actor,
        )

    async def reload(self) -> tuple[str, ...]:
        """Read the profiles again; the old ones stay where the new are wrong."""
        try:
            profiles = load_profiles(self.home, self.settings)
        except ConfigurationError as error:
            raise CaError(ErrorKind.MALFORMED, str(error)) from None
        self._book.replace(profiles)
        self.gate.check()
        return await self._book.save(self.events)

    async def health(self) -> Health:
        """How the core is, from the last probe of the token and a look at the database."""
        problems = []
        if self.gate.reason is not None:
            problems.append(f"read-only: {self.gate.reason}")
        if self._token_problem is not None:
            problems.append(f"token: {self._token_problem}")
        stale: tuple[str, ...] = ()
        database_ok = True
        try:
            stale = await self.publisher.stale()
        except CaError as error:
            database_ok = False
            problems.append(f"database: {error.detail}")
        problems.extend(f"crl of {name}: missing or expired" for name in stale)
        lag = self.sequencer.lag_seconds
        return Health(
            problems=tuple(problems),
            audit_lag_seconds=lag,
            token_ok=self._token_problem is None,
            database_ok=database_ok,
            crls_fresh=database_ok and not stale,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Run the sequencer, the CRL publisher and the periodic jobs for as long as this holds."""
        stop = asyncio.Event()
        jobs = Jobs(self.stores.coordination, f"{self.fence.node}/{self.fence.boot_epoch}", self._jobs())
        tasks: list[asyncio.Task[None]] = []
        if self.gate.reason is None:
            tasks = [
                asyncio.create_task(self.sequencer.run(stop), name="audit sequencer"),
                asyncio.create_task(self.publisher.run(), name="crl publisher"),
            ]
            jobs.start()
        try:
            yield
        finally:
            await jobs.stop()
            await self.issuance.drain(DRAIN_SECONDS)
            stop.set()
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _jobs(self) -> list[Job]:
        lint = self.settings.lint
        jobs = [
            Job("heartbeat", HEARTBEAT, self._heartbeat),
            Job("probe", self.settings.token.probe_interval, self._probe),
            Job("crl", 60, self.publisher.refresh_due, leased=True),
            Job("responders", 600, self.responders.ensure),
            Job("orphans", 30, self._settle_orphans, leased=True),
            Job("counts", 60, self.record_counts),
        ]
        if lint.sample_size:
            jobs.append(Job("lint-sample", lint.sample_interval, self._lint_sample, leased=True))
        return jobs

    async def _heartbeat(self) -> None:
        if not await self.stores.coordination.heartbeat(self.fence, datetime.now(UTC), NODE_LEASE):
            self.gate.reason = "a newer core process of this node has started"
            _log.critical("fenced off", why=self.gate.reason)

    async def _probe(self) -> None:
        started = time.perf_counter()
        try:
            await self.keys.probe()
        except CaError as error:
            if self._token_problem is None:
                _log.error("token is away", error=error.detail)
            self._token_problem = error.detail
        else:
            if self._token_problem is not None:
                _log.info("token is back", after=round(time.perf_counter() - started, 3))
            self._token_problem = None
        metrics.token_up(up=self._token_problem is None)
        metrics.audit(self.sequencer.lag_seconds, self.sequencer.size)

    async def _settle_orphans(self) -> None:
        orphans = await self.stores.issuance.orphaned_intents(datetime.now(UTC))
        await self.issuance.settle(orphans, "its node's lease ran out")

    async def record_counts(self) -> None:
        """Put on record how often each key was used and what OCSP answered since the last time."""
        uses = Counter(self.keys.uses())
        delta = uses - self._uses
        self._uses = uses
        if delta:
            extra = {label: str(count) for label, count in sorted(delta.items())}
            await self.stores.audit.append([self.events.make(EventType.KEY_USED, extra=extra)])
        await self.ocsp.record_counts(self.stores.audit, self.events)

    async def _lint_sample(self) -> None:
        """Lint some of what was issued lately; findings are logged and on record."""
        lint = self.settings.lint
        since = datetime.now(UTC) - timedelta(seconds=2 * lint.sample_interval)
        for record in await self.stores.issuance.sample_certificates(since, lint.sample_size):
            findings = await self._linter.lint_sample(record.certificate_der)
            if findings:
                _log.error("lint findings in an issued certificate", serial=record.serial, findings=findings[:10])
                event = self.events.make(
                    EventType.LINT_SAMPLE,
                    outcome=Outcome.FAILURE,
                    issuer=record.issuer,
                    serial=record.serial,
                    reason="; ".join(str(finding) for finding in findings)[:1000],
                )
                await self.stores.audit.append([event])

    def _revoked(self, record: CertificateRecord) -> None:
        self.publisher.mark_dirty(record.issuer)

    async def _close(self) -> None:
        if self.gate.reason is not None:
            return
        with suppress(CaError):
            await self.record_counts()
            await self.stores.audit.append([self.events.make(EventType.SERVER_STOP)])
            await self.sequencer.run_once()


async def _log_key(keys: KeyStore, stores: Stores, events: EventFactory) -> SigningKey:
    try:
        return await keys.find(LOG_LABEL)
    except CaError as error:
        if error.kind is not ErrorKind.NOT_FOUND or await stores.audit.latest_checkpoint() is not None:
            raise
    key = await keys.generate(LOG_LABEL, KeyAlgorithm.P256)
    await stores.audit.append([events.make(EventType.KEY_GENERATED, key=LOG_LABEL, object=f"key:{LOG_LABEL}")])
    return key


async def _nonce_key(keys: KeyStore, stores: Stores) -> bytes:
    """The key of all nodes' nonces: drawn once, kept encrypted under the token's key."""
    context = b"secret:nonce-key"
    stored = await stores.coordination.secret("nonce-key")
    if stored is None:
        fresh = await keys.encrypt(SECRETS_LABEL, await keys.random(32), context)
        stored = await stores.coordination.save_secret("nonce-key", fresh)
    return await keys.decrypt(SECRETS_LABEL, stored, context)
