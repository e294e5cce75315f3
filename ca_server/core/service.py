"""The core's two faces: the port that fronts use and the port that operators use. Both only dispatch."""

from collections.abc import Awaitable, Callable
from typing import NoReturn

from ca_server.core.audit import EventFactory
from ca_server.core.blocklist import Blocklist
from ca_server.core.crl import CrlPublisher
from ca_server.core.cross import CrossCertificates
from ca_server.core.eab import ExternalAccounts
from ca_server.core.incidents import Incidents
from ca_server.core.issuance import Issuance
from ca_server.core.limits import LimitKeys
from ca_server.core.ocsp import OcspResponder, try_later
from ca_server.core.ports import (
    AuditStore,
    BlockKey,
    CreatedEab,
    CreateEab,
    CreateIncident,
    CrossCertificate,
    DisableEab,
    Done,
    EndIncident,
    Health,
    Hello,
    ImportCrossCertificate,
    IssuerCsr,
    OcspAnswer,
    OcspQuery,
    Ping,
    PublishCrl,
    Reload,
    Reloaded,
    ResetLimit,
    RevokeAccount,
    SignIssuerCsr,
    UnblockKey,
    UpdateEab,
    Welcome,
)
from ca_server.core.revocation import OPERATOR, Revocation
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.bindings import EabKey
from ca_server.domain.certificates import Crl, IssuedCertificate, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import EnrollmentRequest, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.incidents import Incident
from ca_server.domain.names import Identifier

PORT_VERSION = 1
FRONT_PROTOCOLS = frozenset({Protocol.ACME, Protocol.EST, Protocol.SCEP})
"""What a front speaks for."""
LISTENER = "listener"
"""Requester and profile of the listeners' TLS certificate."""


class WriteGate:
    """Refuses every write, with the reason, while the database can't be trusted (audit anchor ahead of it)."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def check(self) -> None:
        """Raise UNAVAILABLE while the gate is closed."""
        if self.reason is not None:
            raise CaError(ErrorKind.UNAVAILABLE, "this CA is read-only until its operators act", retry_after=300)


class CoreService:
    """CorePort over the services of the core."""

    def __init__(
        self,
        *,
        welcome: Welcome,
        issuance: Issuance,
        revocation: Revocation,
        responder: OcspResponder,
        accounts: ExternalAccounts,
        health: Callable[[], Awaitable[Health]],
        gate: WriteGate,
        listener_names: frozenset[Identifier],
        audit: AuditStore,
        events: EventFactory,
    ) -> None:
        self._audit = audit
        self._events = events
        self._welcome = welcome
        self._issuance = issuance
        self._revocation = revocation
        self._responder = responder
        self._accounts = accounts
        self._health = health
        self._gate = gate
        self._listener_names = listener_names

    async def hello(self, hello: Hello) -> Welcome:
        if hello.version != PORT_VERSION:
            raise CaError(ErrorKind.MALFORMED, f"this core speaks version {PORT_VERSION} of its port")
        return self._welcome

    async def ping(self, ping: Ping) -> Health:  # noqa: ARG002 - the port gives each operation one argument
        return await self._health()

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        self._gate.check()
        if not self._may_issue(request):
            await self._refuse(
                f"issue for {request.requester.protocol.value}:{request.requester.id}", request.request_id
            )
        return await self._issuance.issue(request)

    def _may_issue(self, request: EnrollmentRequest) -> bool:
        """A front speaks for its protocols' requesters, and for itself for the TLS certificate of its listeners."""
        requester = request.requester
        if requester.tenant != self._events.tenant:
            return False
        if requester.protocol is Protocol.INTERNAL:
            own = requester.id == LISTENER and request.profile == LISTENER and not request.issuer
            return own and self._listener_names.issuperset(request.identifiers)
        return requester.protocol in FRONT_PROTOCOLS and not request.issuer

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        self._gate.check()
        if request.requester_protocol not in FRONT_PROTOCOLS or request.authenticated_by == OPERATOR:
            await self._refuse(f"revoke as {request.requester_protocol}:{request.requester_id}", request.request_id)
        return await self._revocation.revoke(request)

    async def _refuse(self, what: str, request_id: str) -> NoReturn:
        """A front that asks for what no front may ask for is broken or broken into: it is on record as itself."""
        await self._audit.append(
            [
                self._events.make(
                    EventType.ACCESS_REFUSED,
                    outcome=Outcome.DENIED,
                    actor="internal:front",
                    authenticated_by="core-port",
                    request_id=request_id or None,
                    reason=f"a front asked to {what}"[:500],
                    rule="port.front",
                )
            ]
        )
        raise CaError(ErrorKind.UNAUTHORIZED, "no front may ask for this", rule="port.front")

    async def respond_ocsp(self, query: OcspQuery) -> OcspAnswer:
        if self._gate.reason is not None:
            return try_later()
        return await self._responder.respond(query)

    async def register_account(self, registration: AccountRegistration) -> AccountRegistered:
        self._gate.check()
        return await self._accounts.register(registration)


class AdminService:
    """AdminPort over the services of the core; `actor` tells who is asking, from the socket's peer credentials."""

    def __init__(
        self,
        *,
        revocation: Revocation,
        publisher: CrlPublisher,
        accounts: ExternalAccounts,
        blocklist: Blocklist,
        incidents: Incidents,
        limits: LimitKeys,
        cross: CrossCertificates,
        reload: Callable[[str], Awaitable[tuple[str, ...]]],
        health: Callable[[], Awaitable[Health]],
        gate: WriteGate,
        actor: Callable[[], str],
    ) -> None:
        self._revocation = revocation
        self._publisher = publisher
        self._accounts = accounts
        self._blocklist = blocklist
        self._incidents = incidents
        self._limits = limits
        self._cross = cross
        self._reload = reload
        self._health = health
        self._gate = gate
        self._actor = actor

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        self._gate.check()
        kind, _, who = self._actor().partition(":")
        asked = RevocationRequest(
            issuer=request.issuer,
            serial=request.serial,
            reason=request.reason,
            requester_protocol=kind,
            requester_id=who,
            authenticated_by=OPERATOR,
            request_id=request.request_id,
            invalidity_date=request.invalidity_date,
        )
        return await self._revocation.revoke(asked, may_release=True)

    async def publish_crl(self, request: PublishCrl) -> Crl:
        self._gate.check()
        return await self._publisher.publish(request.issuer, actor=self._actor())

    async def create_eab(self, request: CreateEab) -> CreatedEab:
        self._gate.check()
        return await self._accounts.create(request, self._actor())

    async def update_eab(self, request: UpdateEab) -> EabKey:
        self._gate.check()
        return await self._accounts.update(request, self._actor())

    async def disable_eab(self, request: DisableEab) -> Done:
        self._gate.check()
        return Done(await self._accounts.disable(request, self._actor()))

    async def revoke_account(self, request: RevokeAccount) -> Done:
        self._gate.check()
        return Done(await self._accounts.revoke_account(request, self._actor()))

    async def block_key(self, request: BlockKey) -> Done:
        self._gate.check()
        return Done(await self._blocklist.block(request.spki_sha256, request.reason, self._actor()))

    async def unblock_key(self, request: UnblockKey) -> Done:
        self._gate.check()
        return Done(await self._blocklist.unblock(request.spki_sha256, self._actor()))

    async def reset_limit(self, request: ResetLimit) -> Done:
        self._gate.check()
        return Done(await self._limits.reset(request.key, self._actor()))

    async def sign_issuer_csr(self, request: SignIssuerCsr) -> IssuerCsr:
        self._gate.check()
        return IssuerCsr(await self._cross.sign_csr(request.issuer, self._actor()))

    async def import_cross_certificate(self, request: ImportCrossCertificate) -> CrossCertificate:
        self._gate.check()
        return await self._cross.take_in(request, self._actor())

    async def create_incident(self, request: CreateIncident) -> Incident:
        self._gate.check()
        return await self._incidents.create(request, self._actor())

    async def end_incident(self, request: EndIncident) -> Done:
        self._gate.check()
        return Done(await self._incidents.end(request.id, self._actor()))

    async def reload(self, request: Reload) -> Reloaded:  # noqa: ARG002 - the port gives each operation one argument
        return Reloaded(await self._reload(self._actor()))

    async def ping(self, ping: Ping) -> Health:  # noqa: ARG002 - the port gives each operation one argument
        return await self._health()
