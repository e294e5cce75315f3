"""Authorizations and challenges (RFC 8555 sections 7.1.4, 7.1.5 and 7.5)."""

import json
from datetime import datetime
from typing import Any

import msgspec

from ca_server.core.policy import DEVICE_ATTEST
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from protocols.acme.attestation import MAX_OBJECT
from protocols.acme.exchange import Exchange
from protocols.acme.model import DNS_PERSIST, Authorization, AuthorizationStatus, Challenge, ChallengeStatus
from protocols.acme.objects import AuthorizationUpdate, ChallengeResponse, DeviceAttestation, decode_payload
from protocols.acme.orders import rfc3339
from protocols.acme.ports import AcmeStore
from protocols.acme.problems import ErrorType, Problem, ProblemError
from protocols.acme.urls import Urls
from protocols.acme.validating import Validating

_ATTESTATION_PATIENCE = 5.0
"""Seconds that the answer to an attestation waits for its verdict: clients of devices may not ask again."""


class Authorizations:
    """Shows authorizations and challenges, and starts validations."""

    def __init__(
        self, store: AcmeStore, validating: Validating, urls: Urls, issuer_domain_names: tuple[str, ...] = ()
    ) -> None:
        self._store = store
        self._validating = validating
        self._urls = urls
        self._issuer_domain_names = issuer_domain_names

    async def show(self, exchange: Exchange, authorization_id: str) -> Authorization:
        """POST-as-GET an authorization, or deactivate it (RFC 8555 section 7.5.2)."""
        found = await self._store.authorization(authorization_id)
        if found is None or found.account_id != exchange.own_account.id:
            raise CaError(ErrorKind.NOT_FOUND, "there is no such authorization")
        if exchange.is_post_as_get:
            return found
        wanted = decode_payload(AuthorizationUpdate, exchange.payload)
        if wanted.status != AuthorizationStatus.DEACTIVATED.value:
            raise CaError(ErrorKind.MALFORMED, "an authorization's status can be set to deactivated alone")
        event = exchange.event(
            EventType.AUTHORIZATION_DEACTIVATED,
            object=f"acme-authorization:{found.id}",
            names=(str(found.identifier),),
        )
        lost = Problem(ErrorType.UNAUTHORIZED, f"the authorization for {found.identifier.value} was deactivated")
        changed = await self._store.deactivate_authorization(
            found.account_id, found.id, msgspec.json.encode(lost.json()), [event], exchange.nonce
        )
        exchange.nonce_used()
        return changed

    async def respond(self, exchange: Exchange, challenge_id: str) -> tuple[Challenge, Authorization]:
        """POST to a challenge: start its validation and answer at once; POST-as-GET shows it."""
        found = await self._find(exchange, challenge_id)
        if exchange.is_post_as_get:
            return found
        decode_payload(ChallengeResponse, exchange.payload)
        challenge, authorization = found
        if (
            challenge.status is not ChallengeStatus.PENDING
            or authorization.status_at(exchange.now) is not AuthorizationStatus.PENDING
        ):
            return found
        thumbprint = exchange.own_account.key_thumbprint
        response = _attestation(exchange.payload) if challenge.type == DEVICE_ATTEST else None
        begun = await self._validating.begin(
            challenge, authorization, thumbprint, exchange.nonce, response, is_tried=exchange.is_tried
        )
        exchange.nonce_used()
        if response is not None:
            await self._validating.settled(challenge_id, _ATTESTATION_PATIENCE)
        elif begun is not None:
            return begun, authorization
        return await self._find(exchange, challenge_id)

    async def _find(self, exchange: Exchange, challenge_id: str) -> tuple[Challenge, Authorization]:
        found = await self._store.challenge(challenge_id)
        if found is None or found[1].account_id != exchange.own_account.id:
            raise CaError(ErrorKind.NOT_FOUND, "there is no such challenge")
        return found

    def render(self, authorization: Authorization, now: datetime) -> dict[str, Any]:
        """The authorization object (RFC 8555 section 7.1.4)."""
        status = authorization.status_at(now)
        challenges = authorization.challenges
        if status is AuthorizationStatus.VALID:
            challenges = tuple(each for each in challenges if each.status is ChallengeStatus.VALID)
        shown: dict[str, Any] = {
            "identifier": {
                "type": authorization.identifier.type.value,
                "value": authorization.identifier.value,
            },
            "status": status.value,
            "expires": rfc3339(authorization.expires_at),
            "challenges": [self.render_challenge(each) for each in challenges],
        }
        if authorization.wildcard:
            shown["wildcard"] = True
        if authorization.subdomains:
            shown["subdomainAuthAllowed"] = True
        return shown

    def render_challenge(self, challenge: Challenge) -> dict[str, Any]:
        """The challenge object (RFC 8555 section 8)."""
        shown: dict[str, Any] = {
            "type": challenge.type,
            "url": self._urls.challenge(challenge.id),
            "status": challenge.status.value,
        }
        if challenge.type == DNS_PERSIST:
            shown["issuerDomainNames"] = list(self._issuer_domain_names)
        else:
            shown["token"] = challenge.token
        if challenge.validated_at is not None:
            shown["validated"] = rfc3339(challenge.validated_at)
        if challenge.error is not None and challenge.status is not ChallengeStatus.VALID:
            shown["error"] = json.loads(challenge.error)
        return shown


def _attestation(payload: bytes) -> bytes:
    """The attestation object that a client sent; what it is worth is for the validation to say."""
    attestation = bytes(decode_payload(DeviceAttestation, payload).attObj)
    if len(attestation) > MAX_OBJECT:
        detail = f"the attestation object has more than {MAX_OBJECT} octets"
        raise ProblemError(Problem(ErrorType.BAD_ATTESTATION_STATEMENT, detail))
    return attestation
