"""Delegated OCSP responders: one per issuing CA, key in the token, short-lived, rotated with overlap by the server."""

from collections.abc import Callable
from datetime import UTC, datetime
from secrets import token_hex

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import NameOID

from ca_server.core.audit import EventFactory
from ca_server.core.capture import capture
from ca_server.core.der import assemble
from ca_server.core.issuance import Issuance
from ca_server.core.issuers import ActiveIssuer, Ceremony, IssuerRegistry
from ca_server.core.ocsp import Responder
from ca_server.core.ports import AuditStore, IssuanceStore, KeyStore, SigningKey
from ca_server.core.signing import sign_verified
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import CertificateRecord, IssuerKind
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester
from ca_server.domain.errors import CaError, ErrorKind

_log = structlog.get_logger()

PROFILE = "ocsp-responder"
_LABEL_DIGITS = 8


async def request_for(key: SigningKey, common_name: str) -> bytes:
    """Make a CSR for a key in the token, signed there (RFC 2986)."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    )
    public_key = load_der_public_key(key.spki_der)
    tbs, _ = capture(public_key, builder.sign)  # type: ignore[arg-type]
    return assemble(tbs, key.algorithm, await sign_verified(key, tbs))


class Responders:
    """The responder of each issuing CA. `_current` and `_doomed` are owned by the task that calls `ensure`."""

    def __init__(
        self,
        *,
        keys: KeyStore,
        ceremony: Ceremony,
        issuance: Issuance,
        certificates: IssuanceStore,
        issuers: IssuerRegistry,
        audit: AuditStore,
        events: EventFactory,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._ceremony = ceremony
        self._issuance = issuance
        self._certificates = certificates
        self._issuers = issuers
        self._audit = audit
        self._events = events
        self._clock = clock
        self._current: dict[str, Responder] = {}
        self._doomed: dict[str, frozenset[str]] = {}

    def get(self, issuer: str) -> Responder | None:
        """The responder of an issuer; None for a root, which delegates nothing, and for an expired one."""
        responder = self._current.get(issuer)
        if responder is None or responder.certificate.not_valid_after_utc <= self._clock():
            return None
        return responder

    async def ensure(self) -> None:
        """Make sure that every issuing CA has a responder with more than a third of its life ahead."""
        for issuer in self._issuers.all():
            if issuer.issuer.kind is not IssuerKind.ISSUING:
                continue
            usable = [record for record in await self._valid(issuer) if record.issuer_key_id == issuer.issuer.key.id]
            if not await self._take_up(issuer, usable):
                await self._rotate(issuer)
            await self._forget_expired(issuer)

    async def _take_up(self, issuer: ActiveIssuer, records: list[CertificateRecord]) -> bool:
        """Open the newest responder that stands; tell whether it is young enough."""
        for record in records:
            try:
                key = await self._keys.find(record.transaction_key)
            except CaError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
                continue
            self._current[issuer.name] = Responder(key, x509.load_der_x509_certificate(record.certificate_der))
            left = record.not_after - self._clock()
            return left > (record.not_after - record.not_before) / 3
        return False

    async def _rotate(self, issuer: ActiveIssuer) -> None:
        label = f"ocsp-{issuer.name}-{token_hex(_LABEL_DIGITS // 2)}"
        key = await self._ceremony.ensure_key(label, issuer.key.algorithm)
        issued = await self._issuance.issue(
            EnrollmentRequest(
                requester=Requester(Protocol.INTERNAL, f"{PROFILE}:{issuer.name}", "core", self._events.tenant),
                profile=PROFILE,
                csr_der=await request_for(key, f"{issuer.name} OCSP responder"),
                identifiers=(),
                transaction_key=label,
                issuer=issuer.name,
            )
        )
        self._current[issuer.name] = Responder(key, x509.load_der_x509_certificate(issued.certificate_der))
        _log.info("ocsp responder rotated", issuer=issuer.name, key=label, until=issued.not_after.isoformat())

    async def _forget_expired(self, issuer: ActiveIssuer) -> None:
        """Destroy keys of responders that expired, were revoked, or never got a certificate.

        Only those that had none the last time too: another node on this token may just be making one.
        """
        prefix = f"ocsp-{issuer.name}-"
        found = {
            label
            for label in await self._keys.labels()
            if label.startswith(prefix) and len(label) == len(prefix) + _LABEL_DIGITS
        }
        current = self._current.get(issuer.name)
        kept = {record.transaction_key for record in await self._valid(issuer)}
        unused = frozenset(found - kept - ({current.key.label} if current is not None else set()))
        for label in sorted(unused & self._doomed.get(issuer.name, frozenset())):
            if await self._keys.delete(label):
                event = self._events.make(EventType.KEY_DELETED, key=label, object=f"key:{label}")
                await self._audit.append([event])
        self._doomed[issuer.name] = unused

    async def _valid(self, issuer: ActiveIssuer) -> tuple[CertificateRecord, ...]:
        """Responder certificates of an issuer, of all nodes, that are neither expired nor revoked; newest first."""
        requester = f"{PROFILE}:{issuer.name}"
        return await self._certificates.certificates_of(Protocol.INTERNAL.value, requester, self._clock())
