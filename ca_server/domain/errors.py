"""The one error type of the server, with a meaning that no protocol owns.

Every layer raises `CaError`; each front-end maps its `kind` once, at its edge, to an ACME problem, an EST
status, a SCEP failInfo or an OCSP error status.
"""

from dataclasses import dataclass
from enum import StrEnum

from ca_server.domain.names import Identifier


class ErrorKind(StrEnum):
    """What went wrong, in terms that every protocol can express."""

    MALFORMED = "malformed"
    BAD_CSR = "bad-csr"
    BAD_PUBLIC_KEY = "bad-public-key"
    REJECTED_IDENTIFIER = "rejected-identifier"
    UNSUPPORTED_IDENTIFIER = "unsupported-identifier"
    POLICY_DENIED = "policy-denied"
    PENDING_APPROVAL = "pending-approval"
    UNAUTHENTICATED = "unauthenticated"
    UNAUTHORIZED = "unauthorized"
    BAD_BINDING = "bad-binding"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    ALREADY_REVOKED = "already-revoked"
    BAD_REVOCATION_REASON = "bad-revocation-reason"
    RATE_LIMITED = "rate-limited"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


RETRYABLE_KINDS = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL})


@dataclass(frozen=True, slots=True)
class SubError:
    """One part of a compound error, about one identifier."""

    kind: ErrorKind
    detail: str
    identifier: Identifier | None = None
    rule: str | None = None


class CaError(Exception):
    """A refusal or a failure that a client is told of.

    `detail` is fit for a remote reader: it never holds a secret, a path or a stack. `rule` names the policy rule
    that refused. `retry_after` is in seconds, set where trying again can help.
    """

    def __init__(
        self,
        kind: ErrorKind,
        detail: str,
        *,
        rule: str | None = None,
        suberrors: tuple[SubError, ...] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.rule = rule
        self.suberrors = suberrors
        if retry_after is None and kind in RETRYABLE_KINDS:
            retry_after = 5
        self.retry_after = retry_after


class ConfigurationError(Exception):
    """A mistake of the operator that stops the start: one line naming file, key, value and remedy."""

    def __init__(self, where: str, key: str, value: object, remedy: str) -> None:
        self.where = where
        self.key = key
        self.value = value
        self.remedy = remedy
        shown = "" if value is None else f" = {value!r}"
        super().__init__(_in_one_line(f"{where}: {key}{shown}: {remedy}"))


def _in_one_line(text: str) -> str:
    """Text that a file or an argument had a part in, fit for a terminal and a log: nothing in it but what prints."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
