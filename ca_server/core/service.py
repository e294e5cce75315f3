"""The core's two faces: the port that fronts use and the port that operators use. Both only dispatch."""

from collections.abc import Awaitable, Callable

from ca_server.core.crl import CrlPublisher
from ca_server.core.eab import ExternalAccounts
from ca_server.core.issuance import Issuance
from ca_server.core.ocsp import OcspResponder, try_later
from ca_server.core.ports import (
    CreatedEab,
    CreateEab,
    DisableEab,
    Done,
    Health,
    Hello,
    OcspAnswer,
    OcspQuery,
    Ping,
    PublishCrl,
    Reload,
    Reloaded,
    Welcome,
)
from ca_server.core.revocation import Revocation
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.certificates import Crl, IssuedCertificate, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import EnrollmentRequest, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier

PORT_VERSION = 1
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
    ) -> None:
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
        self._check_front_may_ask(request)
        return await self._issuance.issue(request)

    def _check_front_may_ask(self, request: EnrollmentRequest) -> None:
        """A front speaks for its protocols' requesters, and for itself for the TLS certificate of its listeners."""
        requester = request.requester
        if requester.protocol is Protocol.ADMIN:
            raise CaError(ErrorKind.UNAUTHORIZED, "operators use the admin port")
        if requester.protocol is Protocol.INTERNAL:
            own = requester.id == LISTENER and request.profile == LISTENER and not request.issuer
            if not own or not self._listener_names.issuperset(request.identifiers):
                raise CaError(ErrorKind.UNAUTHORIZED, "a front may ask for its own TLS certificate only")

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        self._gate.check()
        return await self._revocation.revoke(request)

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
        reload: Callable[[], Awaitable[tuple[str, ...]]],
        health: Callable[[], Awaitable[Health]],
        gate: WriteGate,
        actor: Callable[[], str],
    ) -> None:
        self._revocation = revocation
        self._publisher = publisher
        self._accounts = accounts
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
            authenticated_by="operator",
            request_id=request.request_id,
            invalidity_date=request.invalidity_date,
        )
        return await self._revocation.revoke(asked, may_release=True)

    async def publish_crl(self, request: PublishCrl) -> Crl:
        self._gate.check()
        return await self._publisher.publish(request.issuer)

    async def create_eab(self, request: CreateEab) -> CreatedEab:
        self._gate.check()
        return await self._accounts.create(request, self._actor())

    async def disable_eab(self, request: DisableEab) -> Done:
        self._gate.check()
        return Done(await self._accounts.disable(request.kid, self._actor()))

    async def reload(self, request: Reload) -> Reloaded:  # noqa: ARG002 - the port gives each operation one argument
        return Reloaded(await self._reload())

    async def ping(self, ping: Ping) -> Health:  # noqa: ARG002 - the port gives each operation one argument
        return await self._health()
