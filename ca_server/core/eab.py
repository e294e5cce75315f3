"""External account keys: made and checked by the core alone, their HMAC secrets encrypted under a key in the token."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from secrets import token_urlsafe
from typing import Any

from ca_server.core.audit import EventFactory
from ca_server.core.ports import AuditStore, CreatedEab, CreateEab, EabStore, KeyStore
from ca_server.core.profiles import ProfileBook
from ca_server.domain.accounts import AccountRegistered, AccountRegistration, EabKey
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.errors import CaError, ErrorKind

_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
_SECRET_BYTES = 32


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
        """Make a key; its secret is told this once. NOT_FOUND where the profile does not exist."""
        if request.profile is not None and self._profiles.get(request.profile) is None:
            raise CaError(ErrorKind.NOT_FOUND, f"there is no profile {request.profile!r}")
        now = self._clock()
        lifetime = request.lifetime_seconds
        key = EabKey(
            # No hyphen: as an argument, an id that began with one would be taken for an option.
            kid=token_urlsafe(16).replace("-", "_"),
            created_at=now,
            expires_at=None if lifetime is None else now + timedelta(seconds=lifetime),
            reusable=request.reusable,
            disabled_at=None,
            profile=request.profile,
            owner=request.owner,
            uses=0,
            last_used_at=None,
            tenant=self._events.tenant,
        )
        secret = await self._keys.random(_SECRET_BYTES)
        ciphertext = await self._keys.encrypt(self._secret_key, secret, f"eab:{key.kid}".encode())
        event = self._events.make(EventType.EAB_CREATED, actor=actor, object=f"eab:{key.kid}", profile=request.profile)
        await self._store.create_eab(key, ciphertext, [event])
        return CreatedEab(key, urlsafe_b64encode(secret).rstrip(b"=").decode())

    async def disable(self, kid: str, actor: str) -> bool:
        """Disable a key; false where there is none or it is disabled."""
        event = self._events.make(EventType.EAB_DISABLED, actor=actor, object=f"eab:{kid}")
        return await self._store.disable_eab(kid, self._clock(), [event])

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
        elif found[0].profile not in {None, registration.profile}:
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
