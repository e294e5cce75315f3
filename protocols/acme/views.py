"""The ACME front-end over HTTP: routes, the directory, and one place where errors become problem documents."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from ca_server.core.audit import EventFactory
from ca_server.core.ports import CorePort
from ca_server.domain.accounts import Account
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.web.middleware import render_refusals
from protocols.acme.accounts import Accounts
from protocols.acme.authorizations import Authorizations
from protocols.acme.caa.checking import CaaChecks, ObserveCaa
from protocols.acme.catalogue import DEFAULT, Catalogue
from protocols.acme.certid import CertIdError
from protocols.acme.chains import CHAIN, Chains, pem_chain
from protocols.acme.exchange import Doorkeeper, Exchange
from protocols.acme.issuing import Issuing, retry_after
from protocols.acme.jwk import JwsError
from protocols.acme.model import DNS_PERSIST, Authorization, AuthorizationStatus, ChallengeStatus, Order, OrderStatus
from protocols.acme.nonces import BadNonceError, NonceBook
from protocols.acme.objects import ContactError, OrderUpdate, PayloadError, decode_payload
from protocols.acme.options import MAX_JWS, AcmeOptions
from protocols.acme.order_object import order_object, rfc3339
from protocols.acme.orders import Orders
from protocols.acme.ports import NonceReplayedError, ProfileSource
from protocols.acme.problems import ErrorType, Problem, ProblemError, internal_problem, problem_of
from protocols.acme.refusals import Refusals
from protocols.acme.rendering import response as problem_response
from protocols.acme.renewal import Renewals
from protocols.acme.revocation import Revocations
from protocols.acme.star.ports import FrontStore
from protocols.acme.star.renewing import ObserveRenewal, Renewing
from protocols.acme.star.serving import Serving
from protocols.acme.urls import CHALLENGE_ID, ID, Urls, is_id
from protocols.acme.validating import ObserveValidation, Validating
from protocols.acme.validation import Resolver, validators
from protocols.acme.watch import CoreWatch

_log = structlog.get_logger(__name__)

RESUME_SECONDS = 5.0
DRAIN_SECONDS = 15.0
REFUSALS_SECONDS = 60.0
"""One event tells of all requests without a genuine nonce in this time."""
PRUNE_LIMIT = 10_000
FORGET_LIMIT = 200
RETENTION_INTERVAL = timedelta(minutes=10)
_CANCELED = OrderStatus.CANCELED.value
RETRY_AFTER = "1"
"""Seconds until a client should look again at what is being worked on."""
_BODY_ERRORS = (web.HTTPRequestEntityTooLarge,)

_FIRST_SERVER_ERROR = 500

T = TypeVar("T", bound=web.StreamResponse)
Answer = Callable[[web.Request, Exchange], Awaitable[web.Response]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AcmeFrontEnd:
    """ACME for every profile in force: `/acme/directory` for the default one, `/acme/PROFILE/directory` for each."""

    def __init__(
        self,
        *,
        options: AcmeOptions,
        store: FrontStore,
        core: CorePort,
        profiles: ProfileSource,
        events: EventFactory,
        nonce_key: bytes,
        observe_validation: ObserveValidation = lambda _type, _outcome: None,
        observe_limit: Callable[[str], None] = lambda _limit: None,
        observe_caa: ObserveCaa = lambda _mode, _outcome: None,
        observe_renewal: ObserveRenewal = lambda _outcome: None,
    ) -> None:
        holder = events.process
        checks = validators(options.validation, options.challenges)
        network = options.validation
        resolver = Resolver(network.nameservers, network.dns_timeout, network.dnssec)
        caa = CaaChecks(options, store, profiles, resolver, events, observe_caa)
        self._options = options
        self._store = store
        self._profiles = profiles
        self._events = events
        self._urls = Urls(options.external_url, options.default_profile)
        self._catalogue = Catalogue(profiles, options.default_profile)
        self._nonces = NonceBook(nonce_key, options.nonce_lifetime)
        self._watch = CoreWatch(core)
        self._refusals = Refusals(store, events, rule="acme.door", reason="before they were known to be anybody's")
        self._limited = Refusals(store, events, rule="acme.limits", reason="for a limit")
        self._observe_limit = observe_limit
        self._door = Doorkeeper(options, store, self._nonces, self._urls, events, self._refusals)
        self._issuing = Issuing(options, store, core, caa, events, holder)
        self._validating = Validating(options, store, checks, events, holder, observe_validation)
        self._accounts = Accounts(options, store, core, self._catalogue, self._urls)
        self._renewals = Renewals(options, store)
        self._orders = Orders(
            options, store, profiles, self._catalogue, checks, self._issuing, self._renewals, self._urls
        )
        self._authorizations = Authorizations(
            store, self._validating, self._urls, options.validation.issuer_domain_names
        )
        self._revocations = Revocations(store, core)
        self._chains = Chains(store, options.preferred_chains)
        self._renewing = Renewing(options, store, core, caa, events, observe_renewal)
        self._serving = Serving(store, self._chains, self._urls, events)
        self._tasks: list[asyncio.Task[None]] = []
        self._retention_due = datetime.now(UTC)
        """Owned by the task of the housekeeping."""

    @property
    def door(self) -> Doorkeeper:
        """What turns requests into exchanges."""
        return self._door

    @property
    def orders(self) -> Orders:
        """What answers newOrder and finalize."""
        return self._orders

    # --- Life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up work that was left, and go on looking for it."""
        await self._watch.look()
        self._tasks = [
            asyncio.create_task(self._watch.run(), name="acme core watch"),
            asyncio.create_task(self._keep_house(), name="acme housekeeping"),
            asyncio.create_task(self._record_refusals(), name="acme refusals"),
        ]

    async def stop(self) -> None:
        """Finish issuance under way within a limit; leave validations to their leases."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._record_refusals_once()
        await asyncio.gather(self._issuing.drain(DRAIN_SECONDS), self._renewing.drain(DRAIN_SECONDS))
        await self._validating.stop()

    async def _keep_house(self) -> None:
        # The first time, also what an earlier run of this process left behind whose lease still runs.
        restarted = True
        while True:
            try:
                self._watch.check()
                await self._issuing.resume(restarted=restarted)
                await self._validating.resume(restarted=restarted)
                await self._renewing.resume()
                restarted = False
                await self._forget()
            except CaError as error:
                _log.warning("acme housekeeping waits", error=error.detail)
            except Exception:  # noqa: BLE001 - logged with its traceback; the loop goes on
                _log.exception("acme housekeeping waits")
            await asyncio.sleep(RESUME_SECONDS)

    async def _record_refusals(self) -> None:
        while True:
            await asyncio.sleep(REFUSALS_SECONDS)
            await self._record_refusals_once()

    async def _record_refusals_once(self) -> None:
        try:
            await self._refusals.record()
            await self._limited.record()
        except CaError as error:
            _log.warning("refusals not on record yet", error=error.detail)

    async def _forget(self) -> None:
        """Delete what nobody can use any more: nonces at once, orders when their retention is over."""
        now = datetime.now(UTC)
        # By every node's clock, and a nonce that was refused a moment ago is told to have expired, not been used.
        while await self._store.prune(now - self._options.nonce_lifetime, PRUNE_LIMIT) == PRUNE_LIMIT:
            pass
        if now < self._retention_due:
            return
        while await self._store.prune_limits(now - RETENTION_INTERVAL, PRUNE_LIMIT) == PRUNE_LIMIT:
            pass
        while await self._store.prune_caa(now - self._options.caa_max_age, PRUNE_LIMIT) == PRUNE_LIMIT:
            pass
        while found := await self._store.expired_orders(now - self._options.retention, FORGET_LIMIT):
            await self._store.forget_orders(found)
        before = now - self._options.retention
        while await self._store.forget_preauthorizations(before, FORGET_LIMIT) == FORGET_LIMIT:
            pass
        self._retention_due = now + RETENTION_INTERVAL

    # --- Routes ---------------------------------------------------------------------------------------------------

    def register(self, application: web.Application) -> None:
        """Add the routes; entry points come with and without a profile."""
        render_refusals(application, "/acme/", self._refusal, max_body=MAX_JWS)
        add = application.router.add_route
        for prefix in ("/acme", "/acme/{profile:[a-z0-9][a-z0-9-]{0,62}}"):
            for method in ("HEAD", "GET"):
                add(method, f"{prefix}/directory", self._guarded(self._directory))
            add("HEAD", f"{prefix}/new-nonce", self._guarded(self._new_nonce))
            add("GET", f"{prefix}/new-nonce", self._guarded(self._new_nonce))
            add("POST", f"{prefix}/new-account", self._signed(self._new_account, by_key=True))
            add("POST", f"{prefix}/new-order", self._signed(self._new_order))
            add("POST", f"{prefix}/new-authz", self._signed(self._new_authorization))
            add("POST", f"{prefix}/key-change", self._signed(self._change_key))
            add("POST", f"{prefix}/revoke-cert", self._signed(self._revoke, by_key=True))
        for method in ("HEAD", "GET"):
            add(method, "/acme/renewal-info/{certid}", self._guarded(self._renewal_info))
        which = f"{{id:{ID}}}"
        add("POST", f"/acme/account/{which}", self._signed(self._account))
        add("POST", f"/acme/account/{which}/orders", self._signed(self._account_orders))
        add("POST", f"/acme/order/{which}", self._signed(self._order))
        add("POST", f"/acme/order/{which}/finalize", self._signed(self._finalize))
        add("POST", f"/acme/authorization/{which}", self._signed(self._authorization))
        add("POST", f"/acme/challenge/{{id:{CHALLENGE_ID}}}", self._signed(self._challenge))
        add("POST", f"/acme/certificate/{which}", self._signed(self._certificate))
        add("POST", f"/acme/certificate/{which}/{{chain:{CHAIN}}}", self._signed(self._certificate))
        for path in (f"/acme/star-certificate/{which}", f"/acme/star-certificate/{which}/{{chain:{CHAIN}}}"):
            for method in ("HEAD", "GET"):
                add(method, path, self._guarded(self._public_star_certificate))
            add("POST", path, self._signed(self._star_certificate))
        add("*", "/acme/{rest:.*}", self._guarded(self._nowhere))

    def _guarded(self, handler: Handler) -> Handler:
        """Turn errors into problem documents, and put a nonce on what answers a POST."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                answer = await handler(request)
            except Exception as error:  # noqa: BLE001 - every error has its problem document
                problem = self._problem(request, error)
                answer = problem_response(problem)
                if problem.type is ErrorType.RATE_LIMITED and self._options.limits_help_url:
                    answer.headers.add("Link", f'<{self._options.limits_help_url}>;rel="help"')
            return self._completed(request, answer)

        return guarded

    def _completed(self, request: web.Request, answer: T) -> T:
        """Put on what every answer carries."""
        if request.method == "POST":
            answer.headers["Replay-Nonce"] = self._new_nonce_for(request)
            answer.headers.setdefault("Cache-Control", "no-store")
        profile = self._directory_of(request) or self._options.default_profile
        answer.headers.add("Link", f'<{self._urls.directory(profile)}>;rel="index"')
        return answer

    def _new_nonce_for(self, request: web.Request) -> str:
        chaos = self._options.chaos
        return self._nonces.issue() if chaos is None else self._nonces.issue(chaos.next_flavour(request))

    def _refusal(self, request: web.Request, status: int, detail: str, retry_after: int | None) -> web.Response:
        """How the listener's limits say no on ACME's URLs."""
        kind = ErrorType.SERVER_INTERNAL if status >= _FIRST_SERVER_ERROR else ErrorType.MALFORMED
        problem = Problem(kind, detail, status, retry_after=retry_after)
        return self._completed(request, problem_response(problem))

    def _problem(self, request: web.Request, error: Exception) -> Problem:
        """The one place where an error becomes a problem document."""
        if isinstance(error, NonceReplayedError):
            return problem_of(BadNonceError("the nonce was used before"))
        if isinstance(error, _BODY_ERRORS):
            return Problem(ErrorType.MALFORMED, "the body is larger than this server takes", status=413)
        if isinstance(error, CaError) and error.kind is ErrorKind.RATE_LIMITED and error.rule:
            self._observe_limit(error.rule)
            self._limited.count(error.rule, request.remote)
        if isinstance(error, (CaError, JwsError, PayloadError, CertIdError, ContactError, BadNonceError, ProblemError)):
            return problem_of(error)
        _log.exception("request failed", path=request.path, exc_info=error)
        return internal_problem()

    def _signed(self, answer: Answer, *, by_key: bool = False) -> Handler:
        """A handler for signed POSTs: checks the request, answers, and sees that its nonce is used up."""

        async def signed(request: web.Request) -> web.StreamResponse:
            self._watch.check()
            profile = self._profile(request)
            exchange = await self._door.open(request, profile, by_key=by_key)
            try:
                response = await answer(request, exchange)
            except NonceReplayedError:
                raise
            except Exception:
                # A request that failed has used its nonce up all the same; a replay is told so first.
                await self._door.close(exchange)
                raise
            await self._door.close(exchange)
            return response

        return self._guarded(signed)

    def _directory_of(self, request: web.Request) -> str | None:
        """The profile of an entry point, where it is one for ACME."""
        return self._catalogue.directory(request.match_info.get("profile", DEFAULT))

    def _profile(self, request: web.Request) -> str:
        if "id" in request.match_info:
            return self._options.default_profile  # resources have no profile
        name = self._directory_of(request)
        if name is None:
            raise ProblemError(Problem(ErrorType.MALFORMED, "there is no such profile", status=404))
        if self._options.chaos is not None:
            self._options.chaos.enter(request, self._profiles.get(name))
        return name

    # --- Unsigned -------------------------------------------------------------------------------------------------

    async def _directory(self, request: web.Request) -> web.Response:
        """GET the directory (RFC 8555 section 7.1.1): what stands in it works."""
        profile = self._profile(request)
        meta: dict[str, Any] = {"profiles": self._catalogue.offered(profile)}
        if self._options.terms_of_service:
            meta["termsOfService"] = self._options.terms_of_service
        if self._options.website:
            meta["website"] = self._options.website
        if self._options.caa_identities:
            meta["caaIdentities"] = list(self._options.caa_identities)
        if self._options.require_eab:
            meta["externalAccountRequired"] = True
        if DNS_PERSIST in self._options.challenges:
            meta["issuerDomainNames"] = list(self._options.validation.issuer_domain_names)
            meta["accountHashPrefix"] = self._urls.account_hash_prefix()
        if (star := self._options.star.meta(meta["profiles"])) is not None:
            meta["auto-renewal"] = star
        if self._orders.authorizes_subdomains(profile):
            meta["subdomainAuthAllowed"] = True
        directory = {
            "newNonce": self._urls.entry("new-nonce", profile),
            "newAccount": self._urls.entry("new-account", profile),
            "newOrder": self._urls.entry("new-order", profile),
            "newAuthz": self._urls.entry("new-authz", profile),
            "revokeCert": self._urls.entry("revoke-cert", profile),
            "keyChange": self._urls.entry("key-change", profile),
            "renewalInfo": self._urls.renewal_info(),
            "meta": meta,
        }
        if not self._options.authorization_reuse_lifetime:
            del directory["newAuthz"]
        return _json(directory, headers={"Cache-Control": "public, max-age=60"})

    async def _new_nonce(self, request: web.Request) -> web.Response:
        """HEAD or GET a nonce (RFC 8555 section 7.2); writes nothing."""
        self._profile(request)
        return web.Response(
            status=200 if request.method == "HEAD" else 204,
            headers={"Replay-Nonce": self._new_nonce_for(request), "Cache-Control": "no-store"},
        )

    async def _renewal_info(self, request: web.Request) -> web.Response:
        """GET when to renew a certificate (RFC 9773 section 4.1)."""
        info = await self._renewals.info(request.match_info["certid"], datetime.now(UTC))
        window = {"start": rfc3339(info.window.start), "end": rfc3339(info.window.end)}
        shown: dict[str, Any] = {"suggestedWindow": window}
        if info.explanation_url:
            shown["explanationURL"] = info.explanation_url
        return _json(shown, headers={"Retry-After": str(info.retry_after)})

    async def _nowhere(self, request: web.Request) -> web.Response:
        allowed = self._allowed_methods(request)
        if allowed:
            problem = Problem(ErrorType.MALFORMED, f"{request.method} is not for this URL; use {allowed}", status=405)
            answer = problem_response(problem)
            answer.headers["Allow"] = allowed
            return answer
        return problem_response(Problem(ErrorType.MALFORMED, "there is nothing at this URL", status=404))

    def _allowed_methods(self, request: web.Request) -> str:
        """The methods of the other routes of this path."""
        path = request.rel_url.raw_path
        methods: set[str] = set()
        for resource in request.app.router.resources():
            if resource.canonical == "/acme/{rest}":
                continue
            info = resource.get_info()
            pattern = info.get("pattern")
            if path == info.get("path") or (pattern is not None and pattern.fullmatch(path)):
                methods.update(route.method for route in resource)
        return ", ".join(sorted(methods))

    # --- Signed ---------------------------------------------------------------------------------------------------

    async def _new_account(self, _request: web.Request, exchange: Exchange) -> web.Response:
        found = await self._accounts.create(exchange)
        return _json(
            self._accounts.render(found.account),
            status=201 if found.created else 200,
            headers={"Location": self._urls.account(found.account.id)},
        )

    def _check_own(self, request: web.Request, exchange: Exchange) -> None:
        if request.match_info["id"] != exchange.own_account.id:
            raise ProblemError(Problem(ErrorType.UNAUTHORIZED, "this is another account's URL"))

    async def _account(self, request: web.Request, exchange: Exchange) -> web.Response:
        self._check_own(request, exchange)
        return self._show_account(await self._accounts.change(exchange))

    async def _change_key(self, _request: web.Request, exchange: Exchange) -> web.Response:
        return self._show_account(await self._accounts.change_key(exchange))

    def _show_account(self, account: Account) -> web.Response:
        return _json(self._accounts.render(account), headers={"Location": self._urls.account(account.id)})

    async def _account_orders(self, request: web.Request, exchange: Exchange) -> web.Response:
        self._check_own(request, exchange)
        after = request.query.get("after")
        if after is not None and not is_id(after):
            raise ProblemError(Problem(ErrorType.MALFORMED, "after is the id of an order"))
        page = await self._accounts.orders(exchange.own_account, after)
        answer = _json({"orders": [self._urls.order(order_id) for order_id in page.ids]})
        if page.next_after is not None:
            url = f"{self._urls.account_orders(exchange.own_account.id)}?after={page.next_after}"
            answer.headers.add("Link", f'<{url}>;rel="next"')
        return answer

    async def _new_order(self, _request: web.Request, exchange: Exchange) -> web.Response:
        return self._show_order(await self._orders.create(exchange), exchange.now, status=201)

    async def _order(self, request: web.Request, exchange: Exchange) -> web.Response:
        order = await self._orders.find(exchange, request.match_info["id"])
        if not exchange.is_post_as_get and decode_payload(OrderUpdate, exchange.payload).status == _CANCELED:
            order = await self._serving.cancel(exchange, order)
        return self._show_order(order, exchange.now)

    async def _finalize(self, request: web.Request, exchange: Exchange) -> web.Response:
        order = await self._orders.finalize(exchange, request.match_info["id"])
        return self._show_order(order, exchange.now)

    def _show_order(self, order: Order, now: datetime, status: int = 200) -> web.Response:
        answer = _json(
            order_object(order, now, self._urls), status=status, headers={"Location": self._urls.order(order.id)}
        )
        if order.status_at(now) is OrderStatus.PROCESSING:
            answer.headers["Retry-After"] = str(retry_after(order, datetime.now(UTC)))
        return answer

    async def _new_authorization(self, _request: web.Request, exchange: Exchange) -> web.Response:
        found = await self._orders.authorize(exchange)
        # Also for one that stood: Go's client takes no other answer.
        answer = self._show_authorization(found, exchange.now, status=201)
        answer.headers["Location"] = self._urls.authorization(found.id)
        return answer

    async def _authorization(self, request: web.Request, exchange: Exchange) -> web.Response:
        found = await self._authorizations.show(exchange, request.match_info["id"])
        return self._show_authorization(found, exchange.now)

    def _show_authorization(self, found: Authorization, now: datetime, status: int = 200) -> web.Response:
        answer = _json(self._authorizations.render(found, now), status=status)
        if found.status_at(now) is AuthorizationStatus.PENDING:
            answer.headers["Retry-After"] = RETRY_AFTER
        return answer

    async def _challenge(self, request: web.Request, exchange: Exchange) -> web.Response:
        challenge, authorization = await self._authorizations.respond(exchange, request.match_info["id"])
        answer = _json(self._authorizations.render_challenge(challenge))
        answer.headers.add("Link", f'<{self._urls.authorization(authorization.id)}>;rel="up"')
        if challenge.status is ChallengeStatus.PROCESSING:
            answer.headers["Retry-After"] = RETRY_AFTER
        return answer

    async def _certificate(self, request: web.Request, exchange: Exchange) -> web.Response:
        order = await self._orders.find(exchange, request.match_info["id"])
        if order.auto_renewal is not None:
            raise CaError(ErrorKind.NOT_FOUND, "the certificates of this order are at its star-certificate URL")
        if order.certificate is None:
            raise ProblemError(Problem(ErrorType.ORDER_NOT_READY, "the order has no certificate", status=404))
        chains = await self._chains.of(order.certificate)
        name = request.match_info.get("chain", next(iter(chains)))
        if name not in chains:
            raise ProblemError(Problem(ErrorType.MALFORMED, "the certificate has no such chain (any more)", status=404))
        body = pem_chain((order.certificate.certificate_der, *chains[name]))
        answer = web.Response(body=body, content_type="application/pem-certificate-chain")
        for other in chains:
            if other != name:
                answer.headers.add("Link", f'<{self._urls.alternate(order.id, other)}>;rel="alternate"')
        return answer

    async def _star_certificate(self, request: web.Request, exchange: Exchange) -> web.Response:
        where = request.match_info
        return await self._serving.certificate(where["id"], exchange.own_account, where.get("chain"))

    async def _public_star_certificate(self, request: web.Request) -> web.Response:
        """GET, for whoever knows the URL, where the order allows it (RFC 8739 section 3.4)."""
        return await self._serving.certificate(request.match_info["id"], None, request.match_info.get("chain"))

    async def _revoke(self, _request: web.Request, exchange: Exchange) -> web.Response:
        await self._revocations.revoke(exchange)
        return web.Response(status=200)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=headers
    )
