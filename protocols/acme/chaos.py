"""Trouble made on purpose for the clients of staging profiles: what a client must live with, it meets here often.

Some nonces are refused when they come back, validations begin late, and valid authorizations are sometimes not reused.
All of it is allowed by RFC 8555, and none of it lets anybody have what policy would not give.

Which requests are meant: those to the entry points of a staging profile and, since accounts, orders and challenges have
no profile in their URLs, those to resources that carry a nonce which such a request was given. That a nonce will be
refused is drawn, and written into it, when it is made: every front sees the same, and the nonce that comes with a
refusal, or that its client asks the same front for, is always a good one.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from ca_server.domain.profiles import Profile
from protocols.acme.model import Authorization
from protocols.acme.nonces import BadNonceError, Flavour

_STANDING = web.RequestKey("acme_standing", Flavour)
"""What a request is: its client's, where that is tried, and one whose nonce was refused for that."""


_REMEMBERED = 1_000
"""Addresses."""


class DoomedNonceError(BadNonceError):
    """The nonce is refused for no reason but to try the client."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How clients are tried; nothing is done but for profiles of that name that issue from one of the issuers."""

    profiles: frozenset[str]
    issuers: frozenset[str]
    """Those whose certificates say staging."""
    bad_nonces: float
    """The part of nonces that are refused, from 0 to 1."""
    validation_delay: float
    """Seconds until a validation begins, at most."""
    authorization_reuse: float
    """How often a valid authorization is reused, from 0 to 1."""


class Chaos:
    """Draws what happens. `chance` gives numbers from 0 up to 1, as `random.random` does.

    `_refused` has the last addresses that were refused here and have not asked for a nonce since; owned by the event
    loop. Some clients take the nonce to try again with from newNonce, whatever the refusal brought.
    """

    def __init__(self, options: ChaosOptions, chance: Callable[[], float] = random.random) -> None:
        self._options = options
        self._chance = chance
        self._refused: dict[str | None, None] = {}

    def applies(self, profile: Profile | None) -> bool:
        """Whether the clients of a profile are tried."""
        options = self._options
        return profile is not None and profile.name in options.profiles and profile.issuer in options.issuers

    def enter(self, request: web.Request, profile: Profile | None) -> None:
        """Take a request to an entry point of a profile: that decides, whatever nonce it carries."""
        request[_STANDING] = Flavour.TRIED if self.applies(profile) else Flavour.PLAIN

    def admit(self, request: web.Request, nonce: Flavour) -> None:
        """Take a request with a genuine nonce. DoomedNonceError where it is to be refused."""
        if _STANDING not in request:
            request[_STANDING] = Flavour.PLAIN if nonce is Flavour.PLAIN else Flavour.TRIED
        if nonce is Flavour.DOOMED and is_tried(request):
            request[_STANDING] = Flavour.DOOMED
            self._remember(request.remote)
            raise DoomedNonceError("this nonce is refused to test you; send the request again, with the new one")

    def next_flavour(self, request: web.Request) -> Flavour:
        """Of the nonce in the answer to a request; good after a refusal, here and at newNonce."""
        if request.get(_STANDING) is Flavour.DOOMED:
            return Flavour.TRIED
        if not is_tried(request):
            return Flavour.PLAIN
        if request.method != "POST" and request.remote in self._refused:
            del self._refused[request.remote]
            return Flavour.TRIED
        return Flavour.DOOMED if self._chance() < self._options.bad_nonces else Flavour.TRIED

    def _remember(self, address: str | None) -> None:
        self._refused[address] = None
        if len(self._refused) > _REMEMBERED:
            del self._refused[next(iter(self._refused))]

    def delay(self) -> float:
        """Seconds until a validation begins."""
        return self._chance() * self._options.validation_delay

    def afresh(self, candidates: Sequence[Authorization]) -> frozenset[str]:
        """Ids of the candidates that are created whether or not the account has a valid authorization."""
        return frozenset(each.id for each in candidates if self._chance() >= self._options.authorization_reuse)


def is_tried(request: web.Request) -> bool:
    """Whether a request is of a client that is tried."""
    return request.get(_STANDING) is Flavour.TRIED
