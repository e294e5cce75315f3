"""Incidents: certificates that are to be renewed now, whatever is left of their lifetime (RFC 9773 section 4.2)."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Scope(StrEnum):
    """By what an incident names certificates."""

    SERIAL = "serial"
    ISSUER = "issuer"
    PROFILE = "profile"
    KEY = "key"
    """The issuing key, by its label in the token."""
    METHOD = "method"
    """The challenge by which control of a name was shown, such as `http-01`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Certificates that an incident is about."""

    scope: Scope
    value: str

    def __str__(self) -> str:
        return f"{self.scope.value}:{self.value}"


@dataclass(frozen=True, slots=True)
class Incident:
    """What certificates issued before `created_at` that any target names should be renewed for, until it ends."""

    id: str
    created_at: datetime
    reason: str
    explanation_url: str
    """A page that tells the owners of the certificates why; empty: none."""
    targets: tuple[Target, ...]
    ended_at: datetime | None = None
    tenant: str = "default"
