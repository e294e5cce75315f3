"""Orders: from newOrder to the certificate (RFC 8555 section 7.4)."""

import json
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from secrets import token_urlsafe
from typing import Any

from ca_server.core.bindings import decide_binding
from ca_server.core.csr import ParsedCsr, parse_csr
from ca_server.core.keycheck import check_key
from ca_server.core.policy import (
    DEVICE_ATTEST,
    decide,
    decide_identifiers,
    decide_validity,
    refusal,
    unattested_key,
)
from ca_server.domain.accounts import Account
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, IssuedCertificate
from ca_server.domain.enrollment import Deny
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_id
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profiles import Profile
from protocols.acme.certid import parse_certid
from protocols.acme.exchange import Exchange
from protocols.acme.identifiers import DEVICE_PARSERS, PARSERS, denied, read_identifiers, refused
from protocols.acme.issuing import Issuing, enrollment_request, evidence_of
from protocols.acme.model import (
    Authorization,
    AuthorizationStatus,
    Challenge,
    Order,
    OrderIdentifier,
    OrderStatus,
    challenge_id,
)
from protocols.acme.objects import Finalize, NewAuthorization, NewOrder, decode_payload
from protocols.acme.objects import OrderIdentifier as Wanted
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, AlreadyReplacedError, OpenBounds, ProfileSource, Reuse
from protocols.acme.problems import ErrorType, Problem, ProblemError
from protocols.acme.renewal import Renewals
from protocols.acme.terms import has_agreed, must_agree
from protocols.acme.urls import Urls
from protocols.acme.validation import Validator


class Orders:
    """Creates, shows and finalizes orders."""

    def __init__(
        self,
        options: AcmeOptions,
        store: AcmeStore,
        profiles: ProfileSource,
        validators: dict[str, Validator],
        issuing: Issuing,
        renewals: Renewals,
        urls: Urls,
    ) -> None:
        self._options = options
        self._store = store
        self._profiles = profiles
        self._validators = validators
        self._issuing = issuing
        self._renewals = renewals
        self._urls = urls
        self._parsers = {**PARSERS, **(DEVICE_PARSERS if DEVICE_ATTEST in validators else {})}

    # --- newOrder -------------------------------------------------------------------------------------------------

    async def create(self, exchange: Exchange) -> Order:
        """NewOrder: names by policy, authorizations new or reused; refusals are on record with their rule."""
        account = self._agreed(exchange)
        wanted = decode_payload(NewOrder, exchange.payload)
        profile = self._profile(exchange.profile)
        identifiers = await self._identifiers(exchange, profile, wanted.identifiers)
        names = tuple(item.identifier for item in identifiers)
        denials = decide_validity(profile, wanted.notBefore, wanted.notAfter, exchange.now)
        if denials:
            await self._record_refusal(exchange, profile.name, names, denials[0])
            raise refusal(denials)
        replaced = await self._check_replaces(exchange, profile.name, names, wanted.replaces)
        order_id = new_id()
        expires = exchange.now + self._options.order_lifetime
        order = Order(
            id=order_id,
            account_id=account.id,
            profile=profile.name,
            profile_hash=profile.hash,
            status=OrderStatus.PENDING,
            identifiers=identifiers,
            created_at=exchange.now,
            expires_at=expires,
            not_before=wanted.notBefore,
            not_after=wanted.notAfter,
            source=exchange.source,
            request_id=exchange.request_id,
            replaces=wanted.replaces,
        )
        candidates = self._candidates(account, profile, identifiers, exchange.now, expires)
        event = exchange.event(
            EventType.ORDER_CREATED,
            object=f"acme-order:{order_id}",
            profile=profile.name,
            names=tuple(str(name) for name in names),
            extra={} if wanted.replaces is None else {"replaces": wanted.replaces},
        )
        draws = self._options.limits.new_order(order)
        if draws and await self._renews(order, replaced):
            draws = self._options.limits.new_order(order, renews=True)
        bounds = OpenBounds(self._options.max_open_orders, self._options.max_open_names, draws)
        chaos = self._options.chaos
        afresh = chaos.afresh(candidates) if chaos is not None and chaos.applies(profile) else frozenset()
        try:
            created = await self._store.create_order(
                order, candidates, bounds, [event], exchange.nonce, self._reuse(profile, exchange.now), afresh
            )
        except AlreadyReplacedError:
            detail = "another order replaces that certificate"
            raise ProblemError(Problem(ErrorType.ALREADY_REPLACED, detail, rule="acme.replaced")) from None
        exchange.nonce_used()
        return created

    async def authorize(self, exchange: Exchange) -> Authorization:
        """NewAuthz: one name by policy as for an order, authorized before there is any (RFC 8555 section 7.4.1).

        The account's valid authorization is given where it has one. REJECTED_IDENTIFIER for wildcards and devices:
        orders alone can have them. NOT_FOUND where no order could stand on it.
        """
        account = self._agreed(exchange)
        profile = self._profile(exchange.profile)
        reuse = self._reuse(profile, exchange.now)
        if reuse is None:
            raise CaError(ErrorKind.NOT_FOUND, "authorizations are for their orders alone here; use newOrder")
        wanted = decode_payload(NewAuthorization, exchange.payload).identifier
        asked = (Wanted(wanted.type, wanted.value),)
        name = (await self._identifiers(exchange, profile, asked, counted=False))[0].identifier
        if name.is_wildcard or name.is_device:
            what = "a device attests one key, and" if name.is_device else "a wildcard"
            deny = Deny("names.preauthorization", f"{what} is authorized with its order alone; use newOrder", name)
            await self._record_refusal(exchange, profile.name, (name,), deny)
            raise refusal((deny,))
        candidate = self._authorization(
            account,
            name,
            exchange.now,
            exchange.now + self._options.order_lifetime,
            subdomains=bool(wanted.subdomainAuthAllowed) and self._may_cover_subdomains(profile, name),
        )
        event = exchange.event(
            EventType.AUTHORIZATION_CREATED,
            object=f"acme-authorization:{candidate.id}",
            profile=profile.name,
            names=(str(name),),
        )
        draws = self._options.limits.validation(candidate, failed=False)
        found = await self._store.create_authorization(
            candidate, self._options.max_open_authorizations, [event], exchange.nonce, reuse, draws
        )
        exchange.nonce_used()
        return found

    def _agreed(self, exchange: Exchange) -> Account:
        """The account, which agreed to the terms that are in force now."""
        terms = self._options.terms_of_service
        if not has_agreed(exchange.own_account, terms):
            raise must_agree(terms)
        return exchange.own_account

    async def _check_replaces(
        self, exchange: Exchange, profile: str, names: Sequence[Identifier], replaces: str | None
    ) -> CertificateRecord | None:
        """What an order replaces is a certificate of its account with a name of the order's (RFC 9773 section 5)."""
        if replaces is None:
            return None
        record = await self._renewals.find(parse_certid(replaces))
        if record is None or record.requester_id != exchange.own_account.id:
            # The same answer for both: who has which certificate is nobody else's business.
            deny = Deny("acme.replaces", "the account has no certificate with the CertID that the order replaces")
        elif not {str(name) for name in names}.intersection(record.names):
            deny = Deny("acme.replaces", "the certificate that the order replaces has none of the order's names")
        else:
            return record
        await self._record_refusal(exchange, profile, names, deny)
        raise CaError(ErrorKind.MALFORMED, deny.detail, rule=deny.rule)

    async def _renews(self, order: Order, replaced: CertificateRecord | None) -> bool:
        """Whether an order that replaces a certificate is one that limits don't count: with the same names, in time."""
        names = frozenset(str(item.identifier) for item in order.identifiers)
        return replaced is not None and await self._renewals.is_due(replaced, names, order.created_at)

    async def _identifiers(
        self, exchange: Exchange, profile: Profile, wanted: Sequence[Wanted], *, counted: bool = True
    ) -> tuple[OrderIdentifier, ...]:
        """What is asked for, where all may be had; or one error for all that may not, on record if policy says no.

        `counted`: in a certificate, which the quota of the account's external account key must have room for.
        """
        if not wanted:
            raise CaError(ErrorKind.MALFORMED, "an order names at least one identifier")
        if len(wanted) > self._options.max_identifiers:
            raise CaError(ErrorKind.MALFORMED, f"an order names at most {self._options.max_identifiers} identifiers")
        identifiers, wrong = read_identifiers(wanted, self._parsers)
        names = tuple(item.identifier for item in identifiers)
        denials = await self._denials(exchange, profile, names, counted=counted and not wrong) if names else ()
        if denials:
            await self._record_refusal(exchange, profile.name, names, denials[0])
        wrong += denied(denials)
        if wrong:
            raise refused(wrong, len(wanted))
        if denials:
            raise refusal(denials)
        return identifiers

    async def _denials(
        self, exchange: Exchange, profile: Profile, names: Sequence[Identifier], *, counted: bool
    ) -> tuple[Deny, ...]:
        denials = decide_identifiers(profile, names, exchange.requester()) or tuple(
            Deny("names.challenge", f"no challenge of this server can show control of {name.value!r}", name)
            for name in names
            if not self._applicable(name)
        )
        return denials or await self._binding_denials(exchange, profile.name, names, counted=counted)

    def _applicable(self, name: Identifier, *, subdomains: bool = False) -> tuple[str, ...]:
        """The challenges that can be offered for a name; for all below it, as for wildcards, those of the DNS alone."""
        more = name.is_wildcard or subdomains
        return tuple(kind for kind, validator in self._validators.items() if validator.applies(name.base, more))

    async def _binding_denials(
        self, exchange: Exchange, profile: str, names: Sequence[Identifier], *, counted: bool = True
    ) -> tuple[Deny, ...]:
        """What the account's external account key has against names; `counted`: against a certificate for them.

        RATE_LIMITED where nothing but its quota is against it. Nothing is read for an account without such a key.
        """
        binding = await self._store.binding(exchange.own_account, names if counted else (), exchange.now)
        if binding is None:
            return ()
        denials = decide_binding(binding.key, profile, names)
        if not denials and binding.no_room is not None:
            raise binding.no_room
        return denials

    def _profile(self, name: str) -> Profile:
        profile = self._profiles.get(name)
        if profile is None:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no profile {name!r}")
        return profile

    # --- Authorizations -------------------------------------------------------------------------------------------

    def _reuse(self, profile: Profile, now: datetime) -> Reuse | None:
        """Which authorizations a new order may stand on."""
        lifetime = self._options.authorization_reuse_lifetime
        return Reuse(now - lifetime, subdomains=profile.names.allow_subdomain_authorization) if lifetime else None

    def authorizes_subdomains(self, profile: str) -> bool:
        """Whether authorizations for all names below a domain can be had under a profile (RFC 9444)."""
        found = self._profiles.get(profile)
        return found is not None and self._may_cover_subdomains(found, Identifier(IdentifierType.DNS, "any.test"))

    def _may_cover_subdomains(self, profile: Profile, domain: Identifier) -> bool:
        """Whether an authorization for a domain can be one for all names below it (RFC 9444)."""
        return (
            profile.names.allow_subdomain_authorization
            and bool(self._applicable(domain, subdomains=True))
            and "." in domain.value
        )

    def _candidates(
        self,
        account: Account,
        profile: Profile,
        identifiers: Sequence[OrderIdentifier],
        now: datetime,
        expires: datetime,
    ) -> list[Authorization]:
        """The authorization to make for each identifier: its own, or one that all names below a domain share."""
        above = {
            item.identifier: item.ancestor
            for item in identifiers
            if item.ancestor is not None
            and not item.identifier.is_wildcard
            and self._may_cover_subdomains(profile, item.ancestor)
        }
        shared = {
            domain: self._authorization(account, domain, now, expires, subdomains=True)
            for domain in dict.fromkeys(above.values())
        }
        names = [item.identifier for item in identifiers]
        # A domain that others of the order are validated by needs no other authorization itself.
        return [shared.get(above.get(name, name)) or self._authorization(account, name, now, expires) for name in names]

    def _authorization(
        self, account: Account, name: Identifier, now: datetime, expires: datetime, *, subdomains: bool = False
    ) -> Authorization:
        authorization_id = new_id()
        token = token_urlsafe(32)
        challenges = tuple(
            Challenge(challenge_id(authorization_id, kind), authorization_id, kind, token)
            for kind in self._applicable(name, subdomains=subdomains)
        )
        return Authorization(
            id=authorization_id,
            account_id=account.id,
            identifier=name.base,
            wildcard=name.is_wildcard,
            status=AuthorizationStatus.PENDING,
            created_at=now,
            expires_at=expires,
            challenges=challenges,
            subdomains=subdomains,
        )

    # --- Finalize -------------------------------------------------------------------------------------------------

    async def find(self, exchange: Exchange, order_id: str) -> Order:
        """An order of the account that asks. NOT_FOUND otherwise, whether or not it exists."""
        order = await self._store.order(order_id)
        if order is None or order.account_id != exchange.own_account.id:
            raise CaError(ErrorKind.NOT_FOUND, "there is no such order")
        return order

    async def finalize(self, exchange: Exchange, order_id: str) -> Order:
        """Finalize: the CSR is checked at once, the certificate issued in the background, and waited for a little.

        The same CSR again on an order that is processing or valid shows the order as it stands.
        """
        order = await self.find(exchange, order_id)
        csr_der = bytes(decode_payload(Finalize, exchange.payload).csr)
        status = order.status_at(exchange.now)
        if status in {OrderStatus.PROCESSING, OrderStatus.VALID} and order.csr_der == csr_der:
            return await self._issuing.settled(order)
        if status is not OrderStatus.READY:
            raise ProblemError(Problem(ErrorType.ORDER_NOT_READY, f"the order is {status.value}"))
        await self._check(exchange, order, csr_der)
        draws = self._options.limits.certificate(order)
        if draws and order.replaces is not None:
            replaced = await self._renewals.find(parse_certid(order.replaces))
            draws = () if await self._renews(order, replaced) else draws
        begun = await self._issuing.begin(order, csr_der, exchange.nonce, draws)
        exchange.nonce_used()
        if begun is None:
            # Another finalize of this order came first.
            begun = await self.find(exchange, order_id)
            if begun.csr_der != csr_der:
                status = begun.status_at(exchange.now)
                raise ProblemError(Problem(ErrorType.ORDER_NOT_READY, f"the order is {status.value}"))
        return await self._issuing.settled(begun)

    async def _check(self, exchange: Exchange, order: Order, csr_der: bytes) -> None:
        """Refuse now what the core would refuse later, so that the order stays ready for a better CSR."""
        names = tuple(item.identifier for item in order.identifiers)
        profile = await self._profiles.by_hash(order.profile_hash)
        if profile is None or self._profiles.get(order.profile) is None:
            raise CaError(ErrorKind.POLICY_DENIED, "the order's profile was withdrawn", rule="profile.unknown")
        try:
            csr = parse_csr(csr_der)
            self._check_not_account_key(exchange, csr)
            check_key(csr.public_key, profile, blocked=await self._store.spki_blocked(csr.spki_sha256))
        except CaError as error:
            deny = Deny(error.rule or error.kind.value, error.detail)
            await self._record_refusal(exchange, profile.name, names, deny, order.id)
            raise
        request = enrollment_request(order, exchange.own_account.tenant, csr_der, ())
        decision = decide(profile, request, csr, now=exchange.now)
        denials = (
            (decision,) if isinstance(decision, Deny) else await self._binding_denials(exchange, order.profile, names)
        )
        if not denials and any(name.is_device for name in names):
            wrong = await self._wrong_key(exchange, order, csr)
            denials = () if wrong is None else (wrong,)
        if denials:
            await self._record_refusal(exchange, profile.name, names, denials[0], order.id)
            raise refusal(denials)

    async def _wrong_key(self, exchange: Exchange, order: Order, csr: ParsedCsr) -> Deny | None:
        """The denial of a CSR for another key than the devices of the order attested."""
        work = await self._store.order_work(order.id)
        evidence = () if work is None else evidence_of(work)
        return unattested_key(enrollment_request(order, exchange.own_account.tenant, csr.der, evidence), csr)

    def _check_not_account_key(self, exchange: Exchange, csr: ParsedCsr) -> None:
        """RFC 8555 section 11.1: the account's key in a CSR is refused."""
        if exchange.key_spki() == csr.spki_der:
            raise CaError(ErrorKind.BAD_CSR, "the CSR has the account's key; make another", rule="csr.account_key")

    async def _record_refusal(
        self,
        exchange: Exchange,
        profile: str,
        names: Sequence[Identifier],
        denial: Deny,
        order_id: str | None = None,
    ) -> None:
        event = exchange.event(
            EventType.ISSUANCE_REFUSED,
            Outcome.DENIED,
            object=f"acme:{exchange.own_account.id}" if order_id is None else f"acme-order:{order_id}",
            profile=profile,
            names=tuple(str(name) for name in names),
            reason=denial.detail,
            rule=denial.rule,
        )
        await self._store.record([event], exchange.nonce)
        exchange.nonce_used()

    # --- Rendering ------------------------------------------------------------------------------------------------

    def render(self, order: Order, now: datetime) -> dict[str, Any]:
        """The order object (RFC 8555 section 7.1.3)."""
        status = order.status_at(now)
        shown: dict[str, Any] = {
            "status": status.value,
            "expires": rfc3339(order.expires_at),
            "identifiers": [_shown(item) for item in order.identifiers],
            "authorizations": [self._urls.authorization(each) for each in order.authorization_ids],
            "finalize": self._urls.finalize(order.id),
        }
        if order.not_before is not None:
            shown["notBefore"] = rfc3339(order.not_before)
        if order.not_after is not None:
            shown["notAfter"] = rfc3339(order.not_after)
        if order.replaces is not None:
            shown["replaces"] = order.replaces
        if order.error is not None:
            shown["error"] = json.loads(order.error)
        if status is OrderStatus.VALID:
            shown["certificate"] = self._urls.certificate(order.id)
        return shown


def _shown(item: OrderIdentifier) -> dict[str, str]:
    shown = {"type": item.identifier.type.value, "value": item.sent}
    if item.ancestor is not None:
        shown["ancestorDomain"] = item.ancestor.value
    return shown


def rfc3339(moment: datetime) -> str:
    """A time as ACME writes it, in UTC and whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def pem_chain(issued: IssuedCertificate) -> bytes:
    """`application/pem-certificate-chain`: leaf first, root left out (RFC 8555 section 9.1)."""
    blocks = []
    for der in (issued.certificate_der, *issued.chain):
        text = b64encode(der).decode()
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    return "".join(blocks).encode()
