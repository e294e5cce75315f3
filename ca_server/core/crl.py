"""CRLs: numbered and on record before they are signed, published before the first certificate (RFC 5280 section 5)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import structlog
from cryptography import x509

from ca_server.core.audit import EventFactory
from ca_server.core.capture import capture
from ca_server.core.der import assemble
from ca_server.core.issuers import ActiveIssuer, IssuerRegistry
from ca_server.core.ports import RevocationStore
from ca_server.core.signing import sign_verified
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import Crl, RevocationReason, RevokedEntry
from ca_server.domain.errors import CaError, ErrorKind

_log = structlog.get_logger()

RETRY_SECONDS = 2.0
"""Between attempts to publish for issuers that failed."""
_REASON_FLAGS = {
    RevocationReason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    RevocationReason.CA_COMPROMISE: x509.ReasonFlags.ca_compromise,
    RevocationReason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    RevocationReason.SUPERSEDED: x509.ReasonFlags.superseded,
    RevocationReason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
    RevocationReason.CERTIFICATE_HOLD: x509.ReasonFlags.certificate_hold,
    RevocationReason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
    RevocationReason.AA_COMPROMISE: x509.ReasonFlags.aa_compromise,
}


def reason_flag(reason: RevocationReason | None) -> x509.ReasonFlags | None:
    """The reason as cryptography names it; None for unspecified, which is left out (RFC 5280 section 5.3.1)."""
    return None if reason is None else _REASON_FLAGS.get(reason)


@dataclass(frozen=True, slots=True)
class CrlSchedule:
    """How long an issuer's CRL lives and how often a new one is signed without cause."""

    lifetime: timedelta
    interval: timedelta


def build_crl(
    issuer: ActiveIssuer,
    number: int,
    entries: Sequence[RevokedEntry],
    this_update: datetime,
    next_update: datetime,
) -> bytes:
    """Build the TBSCertList of a full CRL (RFC 5280 section 5.1.2): v2, AKI, CRLNumber; no empty list."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(next_update)
    )
    aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    builder = builder.add_extension(aki, critical=False).add_extension(x509.CRLNumber(number), critical=False)
    for entry in entries:
        line = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(entry.serial, 16))
            .revocation_date(entry.revoked_at.replace(microsecond=0))
        )
        flag = reason_flag(entry.reason)
        if flag is not None:
            line = line.add_extension(x509.CRLReason(flag), critical=False)
        if entry.invalidity_date is not None:
            line = line.add_extension(x509.InvalidityDate(entry.invalidity_date.replace(tzinfo=None)), critical=False)
        builder = builder.add_revoked_certificate(line.build())
    tbs, _ = capture(issuer.certificate.public_key(), builder.sign)  # type: ignore[arg-type]  # one of PublicKey
    return tbs


class CrlPublisher:
    """Signs CRLs on request, on revocation and by schedule; one at a time for each issuer.

    `_dirty` and `_wake` are owned by the publisher's task; `_locks` keep one signing per issuer under way.
    """

    def __init__(
        self,
        *,
        store: RevocationStore,
        issuers: IssuerRegistry,
        schedules: Mapping[str, CrlSchedule],
        events: EventFactory,
        coalesce: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        observe: Callable[[Crl], None] = lambda _crl: None,
    ) -> None:
        self._store = store
        self._issuers = issuers
        self._schedules = schedules
        self._events = events
        self._coalesce = coalesce
        self._clock = clock
        self._observe = observe
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._locks: dict[str, asyncio.Lock] = {}

    async def publish(self, name: str, *, actor: str | None = None) -> Crl:
        """Sign and publish a CRL of an issuer; return the one that stands then. NOT_FOUND, UNAVAILABLE.

        On record as of `actor` (None: this process).
        """
        issuer = self._issuers.get(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            return await self._publish(issuer, actor)

    async def _publish(self, issuer: ActiveIssuer, actor: str | None) -> Crl:
        key = issuer.issuer.key
        # 1. Draw the number, on record.
        reserved = self._events.make(EventType.CRL_RESERVED, issuer=issuer.name, key=key.label, actor=actor)
        number = await self._store.reserve_crl(issuer.name, key.id, 0, [reserved])
        # 2. Read what is revoked by now, build, sign, verify.
        now = self._clock().replace(microsecond=0)
        entries = await self._store.revoked_entries(issuer.name, key.id, now)
        next_update = now + self._schedule(issuer.name).lifetime
        tbs = await asyncio.to_thread(build_crl, issuer, number, entries, now, next_update)
        signature = await sign_verified(issuer.key, tbs)
        der = assemble(tbs, issuer.key.algorithm, signature)
        # 3. Publish, unless a later one stands.
        crl = Crl(issuer.name, key.id, number, 0, now, next_update, der)
        published = self._events.make(
            EventType.CRL_PUBLISHED,
            issuer=issuer.name,
            key=key.label,
            extra={"number": str(number), "entries": str(len(entries)), "crl_sha256": sha256(der).hexdigest()},
            actor=actor,
        )
        if not await self._store.publish_crl(crl, [published]):
            standing = await self._store.latest_crl(issuer.name, key.id)
            if standing is None:
                raise CaError(ErrorKind.INTERNAL, "the CRL was not stored, and none stands")
            crl = standing
        _log.info("crl published", issuer=issuer.name, number=crl.number, drawn=number, entries=len(entries))
        self._observe(crl)
        return crl

    def _schedule(self, name: str) -> CrlSchedule:
        return self._schedules.get(name, CrlSchedule(timedelta(days=7), timedelta(days=1)))

    async def refresh_due(self) -> None:
        """Publish for every issuer whose CRL is missing, due by its interval or half of its life, or behind.

        A list is behind where a process died between a revocation and the list that would have shown it: what this
        process or another was about to publish is not remembered, it is found. Every issuer is tried before the first
        failure is raised.
        """
        failure: CaError | None = None
        for issuer in self._issuers.all():
            try:
                latest = await self._store.latest_crl(issuer.name, issuer.issuer.key.id)
                if latest is None or self._is_due(latest) or await self._store.has_unlisted(issuer.issuer.key.id):
                    await self.publish(issuer.name)
                else:
                    self._observe(latest)
            except CaError as error:
                _log.warning("crl not published", issuer=issuer.name, error=error.detail)
                failure = failure or error
        if failure is not None:
            raise failure

    def _is_due(self, latest: Crl) -> bool:
        schedule = self._schedule(latest.issuer)
        return self._clock() - latest.this_update >= min(schedule.interval, schedule.lifetime / 2)

    async def stale(self) -> tuple[str, ...]:
        """Names of issuers whose CRL is missing or past its nextUpdate."""
        now = self._clock()
        names = []
        for issuer in self._issuers.all():
            latest = await self._store.latest_crl(issuer.name, issuer.issuer.key.id)
            if latest is None or latest.next_update <= now:
                names.append(issuer.name)
        return tuple(names)

    def mark_dirty(self, issuer: str) -> None:
        """Ask for a new CRL soon: something was revoked."""
        self._dirty.add(issuer)
        self._wake.set()

    async def run(self) -> None:
        """Publish for dirty issuers, revocations of the same moment together; until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._coalesce)
            self._wake.clear()
            await self.flush()
            if self._dirty:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def flush(self) -> None:
        """Publish for dirty issuers now: what could not be published, or was interrupted, stays dirty."""
        for name in sorted(self._dirty):
            self._dirty.discard(name)
            try:
                await self.publish(name)
            except BaseException as error:
                self._dirty.add(name)
                if not isinstance(error, CaError):
                    raise
                _log.warning("crl not published, will try again", issuer=name, error=error.detail)
