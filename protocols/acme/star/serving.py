"""Giving the rolling certificate of an auto-renewal order out (RFC 8739 sections 3.3 and 3.4), and canceling it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Final

from aiohttp import web

from ca_server.core.audit import EventFactory
from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from protocols.acme.chains import Chains, pem_chain
from protocols.acme.exchange import Exchange
from protocols.acme.model import Order, OrderStatus
from protocols.acme.problems import ErrorType, Problem, ProblemError
from protocols.acme.star.ports import Newest, Served, StarStore
from protocols.acme.star.terms import AutoRenewal
from protocols.acme.urls import Urls

LONGEST: Final = timedelta(hours=1)
"""How long caches keep a certificate at most: so long one may be seen after its order was canceled."""
SHORTEST: Final = timedelta(seconds=10)
"""And so long they keep one whose successor is late."""


class Serving:
    """Answers for `star-certificate` URLs."""

    def __init__(
        self,
        store: StarStore,
        chains: Chains,
        urls: Urls,
        events: EventFactory,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._chains = chains
        self._urls = urls
        self._events = events
        self._clock = clock

    async def certificate(self, order_id: str, account: Account | None, chain: str | None) -> web.Response:
        """The newest certificate of an order: for its account, or without one (None) where the order allows it.

        NOT_FOUND; autoRenewalCanceled, autoRenewalExpired; UNAVAILABLE where the newest has expired or is on hold.
        """
        served = await self._store.served(order_id)
        terms = None if served is None else served.order.auto_renewal
        if served is None or terms is None or (account is not None and account.id != served.order.account_id):
            raise CaError(ErrorKind.NOT_FOUND, "there is no such order")
        if account is None and not terms.allow_get:
            raise CaError(ErrorKind.NOT_FOUND, "nothing to GET here; use POST-as-GET, as the order's account")
        now = self._clock()
        newest = _newest(served, terms, now)
        chains = await self._chains.of(newest.certificate)
        name = chain or next(iter(chains))
        if name not in chains:
            raise ProblemError(Problem(ErrorType.MALFORMED, "the certificate has no such chain (any more)", status=404))
        answer = web.Response(
            body=pem_chain((newest.certificate.certificate_der, *chains[name])),
            content_type="application/pem-certificate-chain",
            headers={
                "Cert-Not-Before": _quoted(newest.certificate.not_before),
                "Cert-Not-After": _quoted(newest.certificate.not_after),
            },
        )
        for other in chains:
            if other != name:
                answer.headers.add("Link", f'<{self._urls.star_alternate(order_id, other)}>;rel="alternate"')
        if account is None:
            fresh = _fresh(served, terms, newest, now)
            answer.headers["Cache-Control"] = f"public, max-age={int(fresh.total_seconds())}"
            answer.headers["Expires"] = format_datetime(now + fresh, usegmt=True)
        return answer

    async def cancel(self, exchange: Exchange, order: Order) -> Order:
        """Cancel a valid auto-renewal order of the account that asks. autoRenewalCancellationInvalid."""
        event = exchange.event(EventType.ORDER_CANCELED, object=f"acme-order:{order.id}", profile=order.profile)
        done = False
        if order.auto_renewal is not None:
            done = await self._store.cancel_order(order.account_id, order.id, [event], exchange.nonce)
            exchange.nonce_used()
        if not done:
            what = "no auto-renewal order" if order.auto_renewal is None else order.status_at(exchange.now).value
            detail = f"an auto-renewal order that is valid can be canceled; this is {what}"
            raise ProblemError(Problem(ErrorType.AUTO_RENEWAL_CANCELLATION_INVALID, detail))
        found = await self._store.served(order.id)
        return order if found is None else found.order


def _newest(served: Served, terms: AutoRenewal, now: datetime) -> Newest:
    """The certificate that there is to be given out now."""
    newest = served.newest
    is_revoked = newest is not None and newest.revoked and not newest.held
    is_over = served.account_status is not AccountStatus.VALID or is_revoked
    if served.order.status is OrderStatus.CANCELED or (is_over and newest is not None):
        raise ProblemError(Problem(ErrorType.AUTO_RENEWAL_CANCELED, "the order was canceled", status=403))
    if newest is None:
        raise ProblemError(Problem(ErrorType.ORDER_NOT_READY, "the order has no certificate", status=404))
    if now >= terms.end:
        detail = f"the order ended at {terms.end:%Y-%m-%dT%H:%M:%SZ}"
        raise ProblemError(Problem(ErrorType.AUTO_RENEWAL_EXPIRED, detail, status=403))
    if newest.held:
        raise CaError(ErrorKind.UNAVAILABLE, "the newest certificate of the order is on hold")
    if now >= newest.certificate.not_after:
        raise CaError(ErrorKind.UNAVAILABLE, "the order could not be renewed in time; it is tried again")
    return newest


def _fresh(served: Served, terms: AutoRenewal, newest: Newest, now: datetime) -> timedelta:
    """How long caches may keep a certificate: until the next is due, and never beyond its own end."""
    due = None if served.first is None else terms.due(served.first, newest.number + 1)
    until_next = LONGEST if due is None else max(due - now, SHORTEST)
    return max(min(until_next, newest.certificate.not_after - now, LONGEST), timedelta(0))


def _quoted(moment: datetime) -> str:
    """An HTTP-date in double quotes (RFC 8739 section 3.3)."""
    return f'"{format_datetime(moment, usegmt=True)}"'
