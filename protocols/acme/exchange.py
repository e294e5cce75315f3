"""One ACME POST: its JWS checked, its requester known, its nonce used up with its first change."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.audit import EventFactory
from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.enrollment import Protocol, Requester
from ca_server.domain.errors import RETRYABLE_KINDS, CaError, ErrorKind
from ca_server.web.middleware import request_id
from ca_server.web.throttle import LogThrottle
from protocols.acme.chaos import DoomedNonceError, is_tried
from protocols.acme.jwk import Jwk, JwsError, account_key
from protocols.acme.jws import Jws, parse_jws, verify_jws
from protocols.acme.nonces import BadNonceError, NonceBook
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, NonceUse
from protocols.acme.problems import ErrorType, Problem, ProblemError, problem_of
from protocols.acme.refusals import Refusals
from protocols.acme.urls import Urls

_log = structlog.get_logger(__name__)

JOSE = "application/jose+json"
_LOGGED_REFUSALS = 20
"""Of one type of problem, in ten seconds: what is wrong with a client, but no more of a flood of them."""
_RECORDED = frozenset({ErrorType.UNAUTHORIZED, ErrorType.BAD_SIGNATURE_ALGORITHM, ErrorType.BAD_PUBLIC_KEY})
_Refusal = JwsError | CaError | ProblemError | BadNonceError


@dataclass(slots=True)
class Exchange:
    """A verified request. `nonce` hands the nonce out until a transaction used it up; owned by the request's task."""

    profile: str
    url: str
    payload: bytes
    key: Jwk
    account: Account | None
    request_id: str
    source: str | None
    now: datetime
    events: EventFactory
    _nonce: NonceUse | None
    is_tried: bool = False
    """Whether the client is one that a staging profile tries."""

    @property
    def nonce(self) -> NonceUse | None:
        """The nonce, for the first change of this request; None once it is used up."""
        return self._nonce

    def nonce_used(self) -> None:
        """Say that a transaction with the nonce was committed."""
        self._nonce = None

    @property
    def own_account(self) -> Account:
        """The account that signed; UNAUTHENTICATED where the request was signed by a bare key."""
        if self.account is None:
            raise CaError(ErrorKind.UNAUTHENTICATED, "this request is signed by an account, with kid")
        return self.account

    @property
    def is_post_as_get(self) -> bool:
        """Whether the payload is empty (RFC 8555 section 6.3)."""
        return not self.payload

    def key_spki(self) -> bytes:
        """The signing key as a DER SubjectPublicKeyInfo."""
        return self.key.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def requester(self) -> Requester:
        """The account as the core knows it."""
        return Requester(Protocol.ACME, self.own_account.id, "jws", self.own_account.tenant)

    def event(self, kind: EventType, outcome: Outcome = Outcome.SUCCESS, **fields: Any) -> AuditEvent:
        """An audit event of this request."""
        actor = f"acme:{self.account.id}" if self.account else f"acme-key:{self.key.thumbprint}"
        return self.events.make(
            kind,
            outcome=outcome,
            **{
                "actor": actor,
                "authenticated_by": "jws",
                "source": self.source,
                "request_id": self.request_id,
                **fields,
            },
        )


def blocked_account_key() -> CaError:
    """The refusal of an account whose key was put on the blocklist: whoever has it could roll it to one of his own."""
    return CaError(
        ErrorKind.UNAUTHENTICATED,
        "the account's key is on this CA's blocklist; make an account with another key",
        rule="keys.blocklist",
    )


class Doorkeeper:
    """Turns requests into exchanges (RFC 8555 section 6)."""

    def __init__(
        self,
        options: AcmeOptions,
        store: AcmeStore,
        nonces: NonceBook,
        urls: Urls,
        events: EventFactory,
        refusals: Refusals,
    ) -> None:
        self._options = options
        self._store = store
        self._nonces = nonces
        self._urls = urls
        self._events = events
        self._refusals = refusals
        self._throttle = LogThrottle(lines=_LOGGED_REFUSALS)

    async def open(self, request: web.Request, profile: str, *, by_key: bool = False) -> Exchange:
        """Check a POST: media type, JWS, url, nonce, key or account, signature.

        `by_key` admits a bare `jwk` (newAccount, revokeCert) beside an account. Raises ProblemError, JwsError,
        BadNonceError, CaError; what has a genuine nonce and a wrong signature is on record, and the nonce used up,
        what has not even that is counted.
        """
        nonce = None
        try:
            jws = await self._read(request)
            nonce = NonceUse(jws.nonce or "", self._check_nonce(request, jws.nonce or ""))
            account, key = await self._signer(jws, by_key=by_key)
            verify_jws(jws, key)
        except (JwsError, CaError, ProblemError, BadNonceError) as error:
            await self._note(request, profile, nonce, error)
            raise
        return Exchange(
            profile=profile,
            url=jws.url,
            payload=jws.payload,
            key=key,
            account=account,
            request_id=request_id(request),
            source=request.remote,
            now=datetime.now(UTC),
            events=self._events,
            _nonce=nonce,
            is_tried=is_tried(request),
        )

    def _check_nonce(self, request: web.Request, text: str) -> datetime:
        """When the nonce expires. DoomedNonceError for one that is to be refused, where clients are tried."""
        expires_at = self._nonces.check(text)
        if self._options.chaos is not None:
            self._options.chaos.admit(request, self._nonces.flavour_of(text))
        return expires_at

    async def _read(self, request: web.Request) -> Jws:
        if request.content_type != JOSE:
            raise ProblemError(Problem(ErrorType.MALFORMED, f"send {JOSE}", status=415))
        body = await request.read()
        if len(body) > self._options.max_jws:
            raise CaError(ErrorKind.TOO_LARGE, f"a request has at most {self._options.max_jws} octets")
        jws = parse_jws(body, max_size=self._options.max_jws)
        if jws.url != self._options.external_url + request.raw_path:
            raise CaError(ErrorKind.UNAUTHENTICATED, "the url in the protected header is not that of this request")
        if jws.nonce is None:
            raise BadNonceError("the protected header has no nonce")
        return jws

    async def _note(self, request: web.Request, profile: str, nonce: NonceUse | None, error: _Refusal) -> None:
        """Record or count a request that is not let in: who it claims to be is not known. NonceReplayedError."""
        if isinstance(error, DoomedNonceError) or (isinstance(error, CaError) and error.kind in RETRYABLE_KINDS):
            return
        problem = problem_of(error)
        told = self._throttle.admit(problem.type)
        if told is not None:
            _log.info(
                "acme request refused",
                problem=problem.type.value,
                detail=problem.detail,
                remote=request.remote,
                **told,
            )
        if nonce is None or problem.type not in _RECORDED:
            self._refusals.count(problem.type.value, request.remote)
            return
        event = self._events.make(
            EventType.ACCESS_REFUSED,
            outcome=Outcome.DENIED,
            source=request.remote,
            request_id=request_id(request),
            profile=profile,
            object=request.raw_path[:200],
            reason=problem.detail,
            rule=f"jws.{problem.type.value}",
        )
        await self._store.record([event], nonce)

    async def pretend(self, account_id: str, profile: str, payload: bytes) -> Exchange:
        """An exchange as if an account had sent a payload to an entry point: for rehearsals, which nobody signs.

        It has no nonce to use up. Raises as `open` where the account may do nothing.
        """
        account = await self._account(account_id)
        return Exchange(
            profile=profile,
            url=self._urls.entry("rehearsal", profile),
            payload=payload,
            key=account_key(account.jwk),
            account=account,
            request_id="",
            source=None,
            now=datetime.now(UTC),
            events=self._events,
            _nonce=None,
        )

    async def _signer(self, jws: Jws, *, by_key: bool) -> tuple[Account | None, Jwk]:
        if jws.jwk is not None:
            if not by_key:
                raise CaError(ErrorKind.MALFORMED, "sign this request with kid, the account's URL")
            return None, jws.jwk
        account = await self._account(self._urls.account_id_of(jws.kid or ""))
        return account, account_key(account.jwk)

    async def _account(self, account_id: str | None) -> Account:
        account = None if account_id is None else await self._store.account(account_id)
        if account is None or account.tenant != self._options.tenant:
            raise ProblemError(Problem(ErrorType.ACCOUNT_DOES_NOT_EXIST, "kid names no account of this server"))
        if account.status is not AccountStatus.VALID:
            raise CaError(ErrorKind.UNAUTHENTICATED, f"the account is {account.status.value}")
        if account.key_blocked:
            raise blocked_account_key()
        return account

    async def close(self, exchange: Exchange) -> None:
        """Use the nonce up where no transaction of the request did. NonceReplayedError."""
        if exchange.nonce is not None:
            await self._store.consume_nonce(exchange.nonce)
            exchange.nonce_used()
