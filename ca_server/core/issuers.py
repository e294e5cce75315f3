"""The issuers at hand, and the ceremony that creates one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog
from cryptography import x509

from ca_server.core.audit import EventFactory
from ca_server.core.der import assemble
from ca_server.core.lint import Linter
from ca_server.core.ports import AuditStore, IssuerStore, KeyStore, SigningKey
from ca_server.core.signing import sign_verified
from ca_server.core.tbs import CaSubject, IssuerUrls, build_tbs, ca_plan, new_serial
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, Issuer, IssuerKey, IssuerKind, serial_text
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ActiveIssuer:
    """An issuer with its open key and parsed certificate."""

    issuer: Issuer
    key: SigningKey
    certificate: x509.Certificate
    urls: IssuerUrls

    @property
    def name(self) -> str:
        """The issuer's name."""
        return self.issuer.name


@dataclass(frozen=True, slots=True)
class UrlPlan:
    """Makes the URLs that stand in certificates: from configuration, with issuer, key generation and partition."""

    http_url: str

    def crl(self, key: IssuerKey, partition: int = 0) -> str:
        """CRL distribution point."""
        return f"{self.http_url}/crl/{key.issuer}.{key.generation}.{partition}.crl"

    def ca_issuers(self, key: IssuerKey) -> str:
        """Where the CA certificate of this key is (AIA caIssuers)."""
        return f"{self.http_url}/issuer/{key.issuer}.{key.generation}.cer"

    def ocsp(self) -> str:
        """OCSP responder."""
        return f"{self.http_url}/ocsp"

    def of(self, key: IssuerKey, *, ocsp: bool = True) -> IssuerUrls:
        """All URLs for certificates signed by `key`."""
        return IssuerUrls(crl=self.crl(key), ocsp=self.ocsp() if ocsp else None, ca_issuers=self.ca_issuers(key))


class IssuerRegistry:
    """Issuers by name, loaded from the store, with their keys opened in the token."""

    def __init__(self, store: IssuerStore, keys: KeyStore, urls: UrlPlan) -> None:
        self._store = store
        self._keys = keys
        self._urls = urls
        self._active: dict[str, ActiveIssuer] = {}

    async def load(self) -> None:
        """Read the issuers and open their keys. NOT_FOUND where a key is missing in the token."""
        active = {}
        for issuer in await self._store.issuers():
            key = await self._keys.find(issuer.key.label)
            if key.spki_der != issuer.key.spki_der:
                raise CaError(
                    ErrorKind.CONFLICT, f"the token's key {issuer.key.label!r} is not the key of issuer {issuer.name!r}"
                )
            certificate = x509.load_der_x509_certificate(issuer.key.certificate_der)
            active[issuer.name] = ActiveIssuer(issuer, key, certificate, self._urls.of(issuer.key))
        self._active = active

    def get(self, name: str) -> ActiveIssuer:
        """An issuer by name. NOT_FOUND."""
        try:
            return self._active[name]
        except KeyError:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {name!r}") from None

    def all(self) -> tuple[ActiveIssuer, ...]:
        """Every issuer."""
        return tuple(self._active.values())


@dataclass(frozen=True, slots=True)
class IssuerPlan:
    """A CA to create; `parent` None for a self-signed root."""

    name: str
    parent: str | None
    algorithm: KeyAlgorithm
    common_name: str
    organization: str
    country: str
    days: int
    path_length: int | None


async def generate_on_record(
    keys: KeyStore, audit: AuditStore, events: EventFactory, label: str, algorithm: KeyAlgorithm
) -> SigningKey:
    """Generate a key in the token, with an event before and one after. CONFLICT where the label is taken."""
    common: dict[str, Any] = {"key": label, "object": f"key:{label}"}
    told = {"algorithm": algorithm.value}
    await audit.append([events.make(EventType.KEY_GENERATING, extra=told, **common)])
    key = await keys.generate(label, algorithm)
    told["spki_sha256"] = sha256(key.spki_der).hexdigest()
    await audit.append([events.make(EventType.KEY_GENERATED, extra=told, **common)])
    return key


class Ceremony:
    """Creates issuers: key in the token, certificate from the parent, all on record.

    Safe to repeat after a crash: a key that was generated and has no issuer yet is taken up again, and the serial
    of a certificate that was signed and lost is on record as reserved, then as abandoned (`settle`).
    """

    def __init__(
        self,
        store: IssuerStore,
        audit: AuditStore,
        keys: KeyStore,
        linter: Linter,
        events: EventFactory,
        urls: UrlPlan,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._audit = audit
        self._keys = keys
        self._linter = linter
        self._events = events
        self._urls = urls
        self._clock = clock

    async def ensure_key(self, label: str, algorithm: KeyAlgorithm) -> SigningKey:
        """Find or generate a key; the generation is on record."""
        if label in await self._keys.labels():
            return await self._keys.find(label)
        return await generate_on_record(self._keys, self._audit, self._events, label, algorithm)

    async def settle(self) -> int:
        """Put on record as abandoned what an interrupted ceremony left reserved. Returns how many."""
        left = await self._audit.unfinished(
            EventType.ISSUER_RESERVED, (EventType.ISSUANCE_STORED, EventType.ISSUANCE_ABANDONED)
        )
        events = [
            self._events.make(
                EventType.ISSUANCE_ABANDONED,
                outcome=Outcome.FAILURE,
                issuer=issuer,
                serial=serial,
                profile="ca",
                reason="the ceremony that reserved it was interrupted",
            )
            for serial, issuer in left
        ]
        if events:
            await self._audit.append(events)
        return len(events)

    async def create(self, plan: IssuerPlan) -> Issuer:
        """Create an issuer. CONFLICT where the name is taken, NOT_FOUND where the parent is missing."""
        existing = {issuer.name: issuer for issuer in await self._store.issuers()}
        if plan.name in existing:
            raise CaError(ErrorKind.CONFLICT, f"issuer {plan.name!r} exists")
        key = await self.ensure_key(f"{plan.name}-1", plan.algorithm)
        own = IssuerKey(0, plan.name, 1, key.label, plan.algorithm, key.spki_der, b"", ())
        if plan.parent is None:
            parent, signer = None, key
        elif plan.parent in existing:
            parent = existing[plan.parent]
            signer = await self._keys.find(parent.key.label)
        else:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {plan.parent!r} to be the parent")
        now = self._clock()
        serial = new_serial(await self._keys.random(20))
        tbs_plan = ca_plan(
            subject=CaSubject(plan.common_name, plan.organization, plan.country),
            spki_der=key.spki_der,
            issuer=parent.key if parent else None,
            serial=serial,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=plan.days),
            path_length=plan.path_length,
            urls=self._urls.of(parent.key, ocsp=False) if parent else None,
        )
        linted = await self._linter.lint_ca(build_tbs(tbs_plan), tbs_plan)
        tbs = linted.take()
        text = serial_text(serial)
        await self._audit.append(
            [
                self._events.make(
                    EventType.ISSUER_RESERVED,
                    issuer=plan.parent or plan.name,
                    serial=text,
                    object=f"issuer:{plan.name}",
                    key=signer.label,
                    extra={"tbs_sha256": sha256(tbs).hexdigest()},
                )
            ]
        )
        signature = await sign_verified(signer, tbs)
        der = assemble(tbs, signer.algorithm, signature)
        certificate = x509.load_der_x509_certificate(der)
        chain = (parent.key.certificate_der, *parent.key.chain) if parent else ()
        issuer = Issuer(
            plan.name,
            IssuerKind.ROOT if parent is None else IssuerKind.ISSUING,
            replace(own, certificate_der=der, chain=chain),
            plan.parent,
            tenant=self._events.tenant,
        )
        record = CertificateRecord(
            serial=text,
            issuer=plan.parent or plan.name,
            issuer_key_id=parent.key.id if parent else 0,
            certificate_der=der,
            profile="ca",
            profile_hash="",
            subject=certificate.subject.rfc4514_string(),
            names=(),
            spki_sha256=sha256(key.spki_der).digest(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            issued_at=now,
            requester_protocol=Protocol.INTERNAL.value,
            requester_id=f"issuer:{plan.name}",
            transaction_key=key.label,
            tenant=self._events.tenant,
        )
        events = [
            self._events.make(
                EventType.ISSUER_CREATED, issuer=plan.name, serial=text, key=key.label, object=f"issuer:{plan.name}"
            ),
            self._events.make(
                EventType.ISSUANCE_STORED,
                issuer=plan.parent or plan.name,
                serial=text,
                profile="ca",
                key=signer.label,
                actor=f"internal:issuer:{plan.name}",
                extra={"certificate_sha256": sha256(der).hexdigest()},
            ),
        ]
        created = await self._store.create_issuer(issuer, record, events)
        _log.info("issuer created", issuer=plan.name, serial=text, key=key.label)
        return created
