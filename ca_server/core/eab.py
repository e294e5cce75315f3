"""External account keys: made and checked by the core alone, their HMAC secrets encrypted under a key in the token."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ca_server.core.audit import EventFactory
from ca_server.core.ports import (
    AuditStore,
    CreatedEab,
    CreateEab,
    DisableEab,
    EabStore,
    KeyStore,
    RevokeAccount,
    UpdateEab,
)
from ca_server.core.profiles import ProfileBook
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.bindings import EabKey, EabPolicy, NamePatterns
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_handle

_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
_SECRET_BYTES = 32
_MOST_PATTERNS = 1000
_REVOKED_AT_ONCE = 500
_MAX_REASON = 500


class ExternalAccounts:
    """Makes external account keys and lets accounts in by them (RFC 8555 section 7.3.4)."""

    def __init__(
        self,
        *,
        store: EabStore,
        keys: KeyStore,
        secret_key: str,
        profiles: ProfileBook,
        audit: AuditStore,
        events: EventFactory,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keys = keys
        self._secret_key = secret_key
        self._profiles = profiles
        self._audit = audit
        self._events = events
        self._clock = clock

    async def create(self, request: CreateEab, actor: str) -> CreatedEab:
        """Make a key; its secret is told this once. NOT_FOUND where a profile does not exist, MALFORMED."""
        self._check(request.policy)
        if request.max_uses is not None and not request.reusable:
            raise CaError(ErrorKind.MALFORMED, "a key for one account has no other number of uses")
        now = self._clock()
        lifetime = request.lifetime_seconds
        key = EabKey(
            # No hyphen: as an argument, an id that began with one would be taken for an option.
            kid=new_handle(),
            created_at=now,
            expires_at=None if lifetime is None else now + timedelta(seconds=lifetime),
            reusable=request.reusable,
            disabled_at=None,
            owner=request.owner,
            uses=0,
            last_used_at=None,
            tenant=self._events.tenant,
            max_uses=request.max_uses,
            policy=request.policy,
        )
        secret = await self._keys.random(_SECRET_BYTES)
        ciphertext = await self._keys.encrypt(self._secret_key, secret, f"eab:{key.kid}".encode())
        await self._store.create_eab(key, ciphertext, [self._event(EventType.EAB_CREATED, key, actor)])
        return CreatedEab(key, urlsafe_b64encode(secret).rstrip(b"=").decode())

    async def update(self, request: UpdateEab, actor: str) -> EabKey:
        """Change what is given; it holds for the next order of each account, and for the next account.

        NOT_FOUND where there is no such key or profile, MALFORMED.
        """
        self._check(request.policy)
        found = await self._store.eab(request.kid)
        if found is None or found[0].tenant != self._events.tenant:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no key {request.kid!r}")
        if request.max_uses is not None and not found[0].reusable:
            raise CaError(ErrorKind.MALFORMED, "a key for one account has no other number of uses")
        changed = replace(
            found[0],
            owner=request.owner,
            expires_at=request.expires_at,
            max_uses=request.max_uses,
            policy=request.policy,
        )
        await self._store.update_eab(changed, [self._event(EventType.EAB_UPDATED, changed, actor)])
        return changed

    async def disable(self, request: DisableEab, actor: str) -> bool:
        """Disable a key, and with `and_accounts` revoke its accounts; false where nothing was left to change."""
        event = self._events.make(
            EventType.EAB_DISABLED,
            actor=actor,
            object=f"eab:{request.kid}",
            extra={"accounts": "revoked" if request.and_accounts else "stay"},
        )
        changed = await self._store.disable_eab(request.kid, self._clock(), [event], and_accounts=request.and_accounts)
        # From here on no account is bound any more: who begins again after a crash finds those that are left.
        while request.and_accounts and (left := await self._store.valid_accounts(request.kid, _REVOKED_AT_ONCE)):
            events = [
                self._events.make(
                    EventType.ACCOUNT_REVOKED, actor=actor, object=f"acme:{account}", extra={"eab": request.kid}
                )
                for account in left
            ]
            await self._store.revoke_accounts(left, events)
            changed = True
        return changed

    async def revoke_account(self, request: RevokeAccount, actor: str) -> bool:
        """Revoke an account, however it was let in; false where there is none that is valid. MALFORMED."""
        if not request.reason.strip() or not request.reason.isprintable() or len(request.reason) > _MAX_REASON:
            raise CaError(ErrorKind.MALFORMED, f"give a reason, of at most {_MAX_REASON} printable characters")
        event = self._events.make(
            EventType.ACCOUNT_REVOKED, actor=actor, object=f"acme:{request.account_id}", reason=request.reason
        )
        return await self._store.revoke_accounts([request.account_id], [event]) == 1

    def _check(self, policy: EabPolicy) -> None:
        for profile in policy.profiles:
            if self._profiles.get(profile) is None:
                raise CaError(ErrorKind.NOT_FOUND, f"there is no profile {profile!r}")
        if len(policy.names) > _MOST_PATTERNS:
            raise CaError(ErrorKind.MALFORMED, f"at most {_MOST_PATTERNS} patterns of names")
        try:
            NamePatterns.parse(policy.names)
            _ = policy.parsed_rate
        except ValueError as error:
            raise CaError(ErrorKind.MALFORMED, str(error)) from None

    def _event(self, kind: EventType, key: EabKey, actor: str) -> AuditEvent:
        """An event with all that is bound to a key: the log tells what held when."""
        policy = key.policy
        told = {
            "owner": key.owner,
            "expires": None if key.expires_at is None else key.expires_at.isoformat(),
            "uses": str(key.max_uses or "any") if key.reusable else "1",
            "profiles": ",".join(policy.profiles),
            "names": ",".join(policy.names),
            "live": None if policy.live is None else str(policy.live),
            "rate": policy.rate,
        }
        return self._events.make(
            kind,
            actor=actor,
            object=f"eab:{key.kid}",
            profile=policy.profiles[0] if len(policy.profiles) == 1 else None,
            extra={name: value for name, value in told.items() if value},
        )

    async def register(self, registration: AccountRegistration) -> AccountRegistered:
        """Check a binding and create the account (CorePort.register_account)."""
        binding = registration.binding
        account = registration.account
        found = await self._store.eab(binding.kid)
        problem = None
        if found is None:
            problem = "no such key"
        elif binding.algorithm not in _DIGESTS:
            problem = "algorithm"
        elif not registration.has_use_for(found[0].policy.profiles):
            problem = "another profile's key"
        else:
            secret = await self._keys.decrypt(self._secret_key, found[1], f"eab:{binding.kid}".encode())
            expected = hmac.digest(secret, binding.signing_input, _DIGESTS[binding.algorithm])
            if not hmac.compare_digest(expected, binding.mac):
                problem = "wrong MAC"
        common: dict[str, Any] = {
            "source": registration.source,
            "request_id": registration.request_id or None,
            "object": f"eab:{binding.kid[:100]}",
            "profile": registration.profile,
        }
        if problem is not None:
            await self._audit.append(
                [
                    self._events.make(
                        EventType.ACCESS_REFUSED,
                        outcome=Outcome.DENIED,
                        actor=f"acme:{account.key_thumbprint}",
                        reason=problem,
                        rule="eab",
                        **common,
                    )
                ]
            )
            raise CaError(ErrorKind.BAD_BINDING, "the external account binding was not accepted")
        actor = f"acme:{account.id}"
        owner = None if found is None else found[0].owner
        if owner is not None:
            common["extra"] = {"owner": owner}
        return await self._store.bind_account(
            registration,
            self._clock(),
            [
                self._events.make(EventType.EAB_USED, actor=actor, authenticated_by="eab", **common),
                self._events.make(
                    EventType.ACCOUNT_CREATED, actor=actor, authenticated_by="eab", **{**common, "object": actor}
                ),
            ],
        )
