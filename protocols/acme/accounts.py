"""Accounts (RFC 8555 section 7.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ca_server.core.keycheck import check_strength
from ca_server.core.ports import CorePort
from ca_server.domain.accounts import Account, AccountRegistered, AccountRegistration, AccountStatus
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_handle
from protocols.acme.catalogue import Catalogue
from protocols.acme.exchange import Exchange, blocked_account_key
from protocols.acme.jwk import Jwk
from protocols.acme.jws import parse_binding
from protocols.acme.key_change import parse_key_change
from protocols.acme.objects import AccountUpdate, NewAccount, decode_payload, parse_contact
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore, Agreement
from protocols.acme.problems import ErrorType, Problem, ProblemError
from protocols.acme.terms import has_agreed, must_agree
from protocols.acme.urls import Urls

ORDERS_PAGE = 100


@dataclass(frozen=True, slots=True)
class OrdersPage:
    """A page of an account's orders; `next_after` where there are more."""

    ids: tuple[str, ...]
    next_after: str | None


class Accounts:
    """Creates, finds, changes and deactivates accounts."""

    def __init__(
        self, options: AcmeOptions, store: AcmeStore, core: CorePort, catalogue: Catalogue, urls: Urls
    ) -> None:
        self._options = options
        self._store = store
        self._core = core
        self._catalogue = catalogue
        self._urls = urls

    async def create(self, exchange: Exchange) -> AccountRegistered:
        """NewAccount: create the key's account, or find it. Signed by the key itself (RFC 8555 section 6.2)."""
        if exchange.account is not None:
            raise CaError(ErrorKind.MALFORMED, "sign this request with jwk, the account's key")
        wanted = decode_payload(NewAccount, exchange.payload)
        standing = await self._store.account_by_key(self._options.tenant, exchange.key.thumbprint)
        if standing is not None:
            if standing.status is not AccountStatus.VALID:
                raise CaError(ErrorKind.UNAUTHENTICATED, f"the account of this key is {standing.status.value}")
            if standing.key_blocked:
                raise blocked_account_key()
            return AccountRegistered(standing, created=False)
        if wanted.onlyReturnExisting:
            raise ProblemError(Problem(ErrorType.ACCOUNT_DOES_NOT_EXIST, "there is no account for this key"))
        await self._check_key(exchange, exchange.key)
        contacts = self._contacts(wanted.contact or ())
        if self._options.terms_of_service and not wanted.termsOfServiceAgreed:
            raise must_agree(self._options.terms_of_service)
        account = Account(
            id=new_handle(),
            key_thumbprint=exchange.key.thumbprint,
            jwk=exchange.key.canonical,
            status=AccountStatus.VALID,
            created_at=exchange.now,
            contacts=contacts,
            terms_agreed_at=exchange.now if wanted.termsOfServiceAgreed else None,
            tenant=self._options.tenant,
            spki_sha256=exchange.key.spki_sha256,
            terms_of_service=self._terms if wanted.termsOfServiceAgreed else None,
        )
        if wanted.externalAccountBinding is not None:
            return await self._create_bound(exchange, account, bytes(wanted.externalAccountBinding))
        if self._options.require_eab:
            raise ProblemError(
                Problem(
                    ErrorType.EXTERNAL_ACCOUNT_REQUIRED,
                    "this CA wants an external account binding; ask its operators for a key",
                )
            )
        subject = f"acme:{account.id}"
        event = exchange.event(EventType.ACCOUNT_CREATED, actor=subject, object=subject, profile=exchange.profile)
        draws = self._options.limits.new_account(exchange.source)
        created = await self._store.create_account(account, [event], exchange.nonce, draws)
        exchange.nonce_used()
        return created

    async def _create_bound(self, exchange: Exchange, account: Account, raw: bytes) -> AccountRegistered:
        """With a binding the core creates the account: it alone can check the MAC."""
        binding = parse_binding(raw, exchange.url, exchange.key)
        bound = replace(account, eab_kid=binding.kid, eab_binding=raw)
        nonce = exchange.nonce
        if nonce is not None:
            await self._store.consume_nonce(nonce)
            exchange.nonce_used()
        return await self._core.register_account(
            AccountRegistration(
                bound,
                binding,
                exchange.profile,
                exchange.request_id,
                exchange.source,
                self._options.limits.new_account(exchange.source),
                tuple(self._catalogue.offered(exchange.profile)),
            )
        )

    @property
    def _terms(self) -> str | None:
        return self._options.terms_of_service or None

    def _has_agreed(self, account: Account) -> bool:
        """Whether the account agreed to what there is to agree to; an agreement to nothing is remembered too."""
        return account.terms_agreed_at is not None and has_agreed(account, self._options.terms_of_service)

    def _contacts(self, contacts: Sequence[str]) -> tuple[str, ...]:
        if len(contacts) > self._options.max_contacts:
            raise CaError(ErrorKind.MALFORMED, f"at most {self._options.max_contacts} contacts")
        for contact in contacts:
            parse_contact(contact)
        return tuple(contacts)

    async def change(self, exchange: Exchange) -> Account:
        """POST to an account: update contacts or terms, deactivate; POST-as-GET reads it."""
        account = exchange.own_account
        if exchange.is_post_as_get:
            return account
        wanted = decode_payload(AccountUpdate, exchange.payload)
        subject = f"acme:{account.id}"
        if wanted.status not in {None, account.status.value}:
            if wanted.status != AccountStatus.DEACTIVATED.value:
                raise CaError(ErrorKind.MALFORMED, "an account's status can be set to deactivated alone")
            event = exchange.event(EventType.ACCOUNT_DEACTIVATED, object=subject)
            lost = Problem(ErrorType.UNAUTHORIZED, "the account was deactivated")
            changed = await self._store.deactivate_account(
                account.id, msgspec.json.encode(lost.json()), [event], exchange.nonce
            )
            exchange.nonce_used()
            return changed
        contacts = None if wanted.contact is None else self._contacts(wanted.contact)
        agreement = None
        if wanted.termsOfServiceAgreed and not self._has_agreed(account):
            agreement = Agreement(exchange.now, self._terms)
        if contacts is None and agreement is None:
            return account
        event = exchange.event(EventType.ACCOUNT_UPDATED, object=subject)
        changed = await self._store.update_account(account.id, contacts, agreement, [event], exchange.nonce)
        exchange.nonce_used()
        return changed

    async def change_key(self, exchange: Exchange) -> Account:
        """KeyChange (RFC 8555 section 7.3.5): orders and authorizations stay, the old key is nobody's from then on.

        A key that an account has already, be it this one, is refused with that account's URL.
        """
        account = exchange.own_account
        new = parse_key_change(exchange.payload, exchange.url, self._urls.account(account.id), exchange.key)
        await self._check_key(exchange, new)
        event = exchange.event(
            EventType.ACCOUNT_KEY_CHANGED,
            object=f"acme:{account.id}",
            extra={"old": account.key_thumbprint, "new": new.thumbprint},
        )
        changed = replace(
            account, jwk=new.canonical, key_thumbprint=new.thumbprint, spki_sha256=new.spki_sha256, key_blocked=False
        )
        holder = await self._store.change_account_key(account, changed, [event], exchange.nonce)
        exchange.nonce_used()
        if holder.changed:
            return holder.account
        url = self._urls.account(holder.account.id)
        await self._record_refusal(exchange, new, f"the key is that of {url}", "acme.key_taken")
        raise ProblemError(
            Problem(ErrorType.MALFORMED, "an account has this key already", 409, rule="acme.key_taken", location=url)
        )

    async def _check_key(self, exchange: Exchange, key: Jwk) -> None:
        """Refuse a key on the blocklist or a weak one for an account, on record. BAD_PUBLIC_KEY."""
        blocked = await self._store.spki_blocked(key.spki_sha256)
        try:
            check_strength(key.public_key, blocked=blocked)
        except CaError as error:
            await self._record_refusal(exchange, key, error.detail, error.rule)
            raise

    async def _record_refusal(self, exchange: Exchange, key: Jwk, reason: str, rule: str | None) -> None:
        event = exchange.event(
            EventType.ACCESS_REFUSED,
            Outcome.DENIED,
            object=f"acme-key:{key.thumbprint}",
            profile=exchange.profile,
            reason=reason,
            rule=rule,
        )
        await self._store.record([event], exchange.nonce)
        exchange.nonce_used()

    async def orders(self, account: Account, after: str | None) -> OrdersPage:
        """A page of the account's orders (RFC 8555 section 7.1.2.1)."""
        ids = await self._store.orders_of(account.id, after, ORDERS_PAGE + 1)
        page = ids[:ORDERS_PAGE]
        return OrdersPage(page, page[-1] if len(ids) > ORDERS_PAGE else None)

    def render(self, account: Account) -> dict[str, Any]:
        """The account object (RFC 8555 section 7.1.2)."""
        shown: dict[str, Any] = {
            "status": account.status.value,
            "contact": list(account.contacts),
            "orders": self._urls.account_orders(account.id),
        }
        if self._has_agreed(account):
            shown["termsOfServiceAgreed"] = True
        if account.eab_binding is not None:
            shown["externalAccountBinding"] = msgspec.Raw(account.eab_binding)
        return shown
