"""Composes a core: the services behind the two ports, over token and database."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from ca_server.bootstrap import boot, metrics
from ca_server.bootstrap.names import listener_identifiers
from ca_server.bootstrap.pipeline import compose_pipeline
from ca_server.bootstrap.profiles import load_profiles
from ca_server.bootstrap.stores import Stores, open_stores, prepare_database
from ca_server.bootstrap.token import SECRETS_LABEL, open_token
from ca_server.bootstrap.version import SOFTWARE
from ca_server.core.audit import AnchorMismatch, EventFactory, Sequencer, check_anchor, leaf_members
from ca_server.core.blocklist import Blocklist
from ca_server.core.crl import CrlPublisher, CrlSchedule
from ca_server.core.cross import CrossCertificates
from ca_server.core.eab import ExternalAccounts
from ca_server.core.incidents import Incidents
from ca_server.core.issuers import Ceremony, IssuerRegistry, UrlPlan
from ca_server.core.jobs import Job, Jobs
from ca_server.core.limits import LimitKeys
from ca_server.core.lint import Linter
from ca_server.core.ocsp import OcspResponder
from ca_server.core.ports import Health, KeyStore, SigningKey, Welcome
from ca_server.core.profiles import ProfileBook
from ca_server.core.responders import Responders
from ca_server.core.revocation import Revocation
from ca_server.core.service import AdminService, CoreService, WriteGate
from ca_server.core.staging import check_staging, staging_names
from ca_server.domain.audit import Checkpoint, EventType, Outcome
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.enrollment import Fence
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.syslog import SyslogAddress
from ca_server.settings import Home, Settings
from ca_server.store.anchor import FileAnchor
from ca_server.store.syslog import SyslogAnchor

_log = structlog.get_logger()

HEARTBEAT = 10.0
TAKEN_OVER = 10.0
"""Between two runs of what must go on soon where another node died: its lists, and what it had reserved."""
DRAIN_OF_ISSUANCE = 0.3
"""Part of `processes.drain_seconds` for issuance under way, when the ports are closed."""
_SKIP_VALIDATION = "acme.unsafe_skip_validation"
MAX_AUDIT_LAG = 30.0
"""Seconds that the tree of the audit log may be behind before this core says that it is not well."""


@dataclass(frozen=True, slots=True)
class AnchorAcceptance:
    """An operator's word that the database is to be taken as it is."""

    reason: str
    actor: str


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
        anchor: FileAnchor,
        origin: str,
        publish: Callable[[Checkpoint], None] | None = None,
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
        self.accepted = ""
        """What was accepted of a database that does not extend the anchor."""
        urls = UrlPlan(settings.http_url)
        self.anchor = anchor
        self.issuers = IssuerRegistry(stores.issuers, keys, urls)
        self.ceremony = Ceremony(stores.issuers, stores.audit, keys, linter, events, urls)
        self.issuance = compose_pipeline(settings, stores, self.issuers, book, linter, events, lambda: fence)
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
            origin=origin,
            holder=f"{fence.node}/{fence.boot_epoch}",
            interval=settings.audit.checkpoint_interval,
            publish=publish,
        )

    @classmethod
    @asynccontextmanager
    async def open(
        cls, home: Home, settings: Settings, *, process: str, accept_anchor: "AnchorAcceptance | None" = None
    ) -> AsyncIterator["CoreRuntime"]:
        """Open token and database, take the home's lock and compose the core. ConfigurationError, CaError.

        With `accept_anchor` the database is taken as it is where it does not extend the anchor of its log: that is on
        record, and anchored.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(boot.home_lock(home))
            profiles = load_profiles(home, settings)
            keys = await open_token(home, settings)
            stack.push_async_callback(keys.close)
            await prepare_database(home, settings)
            stores = await stack.enter_async_context(open_stores(home, settings))
            fence = await boot.begin_boot(home, settings, stores)
            stack.push_async_callback(boot.end_boot, stores, fence)
            events = EventFactory(
                node=fence.node,
                process=process,
                software=SOFTWARE,
                configuration=settings.hash,
                tenant=settings.server.tenant,
            )
            linter = Linter(pkilint=settings.lint.pkilint, time_limit=settings.lint.pkilint_timeout)
            stack.push_async_callback(linter.close)
            lifetime = timedelta(seconds=settings.acme.order_lifetime)
            book = ProfileBook(stores.profiles, profiles, pin_lifetime=lifetime)
            latest = await stores.audit.latest_checkpoint()
            publish = None
            if settings.audit.syslog:
                syslog = SyslogAnchor(SyslogAddress.parse(settings.audit.syslog), observe=metrics.syslog)
                syslog.start()
                stack.push_async_callback(syslog.close)
                publish = syslog.publish
            runtime = cls(
                home=home,
                settings=settings,
                stores=stores,
                keys=keys,
                fence=fence,
                events=events,
                linter=linter,
                book=book,
                log_key=await boot.log_key(keys, stores, events),
                nonce_key=await boot.nonce_key(keys, stores, events),
                anchor=FileAnchor(Path(settings.audit.anchor) if settings.audit.anchor else home.anchor),
                # For the life of the log, whatever the configuration says later.
                origin=latest[0].origin if latest is not None else f"ca-server/{settings.server.tenant}",
                publish=publish,
            )
            await runtime._check_anchor(accept_anchor)
            await runtime.issuers_changed()
            if runtime.gate.reason is None:
                await book.put_in_force(profiles, events)
            await linter.start()
            try:
                yield runtime
            finally:
                await runtime._close()

    async def _check_anchor(self, accept: "AnchorAcceptance | None") -> None:
        mismatch = await check_anchor(self.stores.audit, self.anchor, self.log_key.spki_der, required=True)
        if mismatch is None:
            return
        if accept is not None:
            await self._accept_database(mismatch, accept)
            return
        self.gate.reason = str(mismatch)
        _log.critical(
            "read-only: the database does not extend the audit log's anchor",
            why=str(mismatch),
            remedy="restore the newer database; 'ca-server audit accept-anchor' takes this one as it is, see "
            "docs/security.md first",
        )

    async def _accept_database(self, mismatch: AnchorMismatch, accept: "AnchorAcceptance") -> None:
        """Anchor what the database has, with the operator's reason and what the anchor said before on record."""
        latest = await self.stores.audit.latest_checkpoint()
        before = await self.anchor.read()
        event = self.events.make(
            EventType.ANCHOR_ACCEPTED,
            actor=accept.actor,
            authenticated_by="operator",
            reason=accept.reason,
            extra={
                "mismatch": str(mismatch),
                "anchor_was": (before or b"").decode("utf-8", "replace"),
            },
        )
        if latest is not None:
            await self.anchor.swap(before, latest[0].note)
        await self.stores.audit.append([event])
        await self.sequencer.run_once()
        self.accepted = f"accepted, although {mismatch}"
        _log.warning("the database was accepted as it is", why=str(mismatch))

    async def issuers_changed(self) -> None:
        """Read the issuers again. ConfigurationError where they are another tenant's, or of the other kind of home."""
        stored = await self.stores.issuers.issuers()
        tenants = {issuer.tenant for issuer in stored}
        if tenants and tenants != {self.settings.server.tenant}:
            raise ConfigurationError(
                str(self.home.configuration),
                "server.tenant",
                self.settings.server.tenant,
                f"the issuers of this database belong to {', '.join(sorted(tenants))}; put that back",
            )
        check_staging(stored, self.settings.is_staging_issuer, str(self.home.configuration))
        await self.issuers.load()
        self.ocsp.index()

    async def settle_in(self) -> None:
        """Put on record that the core starts, settle what earlier boots left, and see to CRLs and responders."""
        if self.settings.acme.unsafe_skip_validation:
            _log.critical("UNSAFE: challenges are valid without validation", setting=_SKIP_VALIDATION)
        if self.gate.reason is not None:
            return
        await self._record_start()
        await self.ceremony.settle()
        left = await self.stores.issuance.live_intents(self.fence.node, self.fence.boot_epoch)
        settled = await self.issuance.settle(left, "the process that reserved it ended before it was stored")
        if settled:
            _log.warning("settled interrupted issuances", count=settled)
        await self.publisher.refresh_due()
        await self.responders.ensure()

    async def _record_start(self) -> None:
        """Put the start on record, and what is not as it was at the start before."""
        found = await self.stores.audit.tail(1, EventType.SERVER_START, object=f"node:{self.fence.node}")
        before = leaf_members(found[0].leaf) if found else {}
        start = self.events.make(EventType.SERVER_START, object=f"node:{self.fence.node}")
        changed = {
            f"{name}_was": str(before[name])
            for name in ("configuration", "software")
            if before and before.get(name) != getattr(start, name)
        }
        record = [start]
        if changed:
            record.append(self.events.make(EventType.CONFIGURATION_CHANGED, object=start.object, extra=changed))
        if self.settings.acme.unsafe_skip_validation:
            record.append(self.events.make(EventType.UNSAFE_SETTING, object=f"setting:{_SKIP_VALIDATION}"))
        await self.stores.audit.append(record)

    def front_port(self) -> CoreService:
        """The port for fronts."""
        return CoreService(
            welcome=Welcome(
                self.fence.node,
                self._nonce_key,
                self.settings.hash,
                staging=self.settings.server.staging,
                staging_issuers=staging_names(each.issuer for each in self.issuers.all()),
            ),
            issuance=self.issuance,
            revocation=self.revocation,
            responder=self.ocsp,
            accounts=self.accounts,
            health=self.health,
            gate=self.gate,
            listener_names=frozenset(listener_identifiers(self.settings)),
            audit=self.stores.audit,
            events=self.events,
        )

    def admin(self, actor: Callable[[], str]) -> AdminService:
        """The port for operators."""
        return AdminService(
            revocation=self.revocation,
            publisher=self.publisher,
            accounts=self.accounts,
            blocklist=Blocklist(self.stores.issuance, self.events),
            incidents=Incidents(self.stores.incidents, self.events),
            limits=LimitKeys(self.stores.limits, self.events),
            cross=CrossCertificates(self.stores.issuers, self.keys, self.stores.audit, self.events),
            reload=self.reload,
            health=self.health,
            gate=self.gate,
            actor=actor,
        )

    async def reload(self, actor: str | None = None) -> tuple[str, ...]:
        """Read the profiles again; the old ones stay where the new are wrong."""
        self.gate.check()
        try:
            profiles = load_profiles(self.home, self.settings)
        except ConfigurationError as error:
            raise CaError(ErrorKind.MALFORMED, str(error)) from None
        return await self._book.put_in_force(profiles, self.events, actor=actor)

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
        if database_ok and (unwritable := self.stores.database.problem) is not None:
            # It may be read all the same: locked, full, or read-only.
            database_ok = False
            problems.append(f"database: {unwritable}")
        problems.extend(f"crl of {name}: missing or expired" for name in stale)
        lag = self.sequencer.lag_seconds
        if self.sequencer.problem is not None:
            problems.append(f"audit log: {self.sequencer.problem}")
        elif lag > MAX_AUDIT_LAG:
            problems.append(f"audit log: the tree is {lag:.0f} s behind")
        return Health(
            problems=tuple(problems),
            audit_lag_seconds=lag,
            token_ok=self._token_problem is None,
            database_ok=database_ok,
            crls_fresh=database_ok and not stale,
            read_only=self.gate.reason is not None,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Run the sequencer, the CRL publisher and the periodic jobs for as long as this holds."""
        stop = asyncio.Event()
        # Held by the node, whatever its boot: a restart goes on with what it held.
        jobs = Jobs(self.stores.coordination, self.fence.node, self._jobs())
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
            await self.issuance.drain(self.settings.processes.drain_seconds * DRAIN_OF_ISSUANCE)
            stop.set()
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _jobs(self) -> list[Job]:
        lint = self.settings.lint
        jobs = [
            Job("heartbeat", HEARTBEAT, self._heartbeat),
            Job("probe", self.settings.token.probe_interval, self._probe),
            Job("crl", TAKEN_OVER, self.publisher.refresh_due, leased=True),
            Job("responders", 600, self.responders.ensure),
            Job("orphans", TAKEN_OVER, self._settle_orphans, leased=True),
            Job("counts", 60, self.record_counts),
        ]
        if lint.sample_size:
            jobs.append(Job("lint-sample", lint.sample_interval, self._lint_sample, leased=True))
        return jobs

    async def _heartbeat(self) -> None:
        if not await self.stores.coordination.heartbeat(self.fence, datetime.now(UTC), boot.NODE_LEASE):
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
        if delta:
            extra = {label: str(count) for label, count in sorted(delta.items())}
            await self.stores.audit.append([self.events.make(EventType.KEY_USED, extra=extra)])
        self._uses = uses
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
            # What was revoked by an offline command, or just before the end.
            await self.publisher.refresh_due()
        with suppress(CaError):
            await self.record_counts()
            await self.stores.audit.append([self.events.make(EventType.SERVER_STOP)])
            await self.sequencer.run_once()
