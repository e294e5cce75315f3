"""Accounts: enrolled requesters, and the external account bindings that let them in."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ca_server.domain.rates import Draw


class AccountStatus(StrEnum):
    """Life of an account (RFC 8555 section 7.1.6)."""

    VALID = "valid"
    DEACTIVATED = "deactivated"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Account:
    """An ACME account; `jwk` is the canonical public JWK, `key_thumbprint` its RFC 7638 digest in base64url."""

    id: str
    key_thumbprint: str
    jwk: bytes
    status: AccountStatus
    created_at: datetime
    contacts: tuple[str, ...] = ()
    terms_agreed_at: datetime | None = None
    eab_kid: str | None = None
    eab_binding: bytes | None = None
    """The externalAccountBinding as sent, echoed in the account object (RFC 8555 section 7.1.2)."""
    tenant: str = "default"
    spki_sha256: bytes | None = None
    """SHA-256 of the key's SubjectPublicKeyInfo, by which the blocklist has it."""
    key_blocked: bool = False
    """Whether the key is on the blocklist: known to others, so that a signature says nothing of who made it."""
    terms_of_service: str | None = None
    """URL of the terms agreed to at `terms_agreed_at`; None where there were none, or it was not kept yet."""


@dataclass(frozen=True, slots=True)
class ExternalBinding:
    """The verified parts of an externalAccountBinding JWS whose MAC only the core can check."""

    kid: str
    algorithm: str
    """HS256, HS384 or HS512."""
    signing_input: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class AccountRegistration:
    """A new account with its binding: the core checks the MAC, uses up the key and creates the account, all at once."""

    account: Account
    binding: ExternalBinding
    profile: str
    request_id: str = ""
    source: str | None = None
    draws: tuple[Draw, ...] = ()
    """Limits on new accounts, to be taken from where one is created."""


@dataclass(frozen=True, slots=True)
class AccountRegistered:
    """The account as stored; `created` is false where the key had one already."""

    account: Account
    created: bool
