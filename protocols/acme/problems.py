"""Problem documents (RFC 7807, RFC 8555 section 6.7): every refusal and failure as an ACME client reads it.

Errors of the lower layers are mapped here and nowhere else, by tables.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, SentIdentifier
from protocols.acme.certid import CertIdError
from protocols.acme.jwk import JwsError, JwsErrorKind
from protocols.acme.nonces import BadNonceError
from protocols.acme.objects import ContactError, ContactErrorKind, PayloadError

CONTENT_TYPE = "application/problem+json"
URN = "urn:ietf:params:acme:error:"
DEFAULT_RETRY_AFTER = 5
"""Seconds, where nobody said otherwise: a 429 or 5xx without Retry-After makes clients give up or hammer."""
MAX_RETRY_AFTER = 599
"""Seconds: acme.sh gives up when told to wait 600 or more."""

_RATE_LIMITED = 429
_FIRST_SERVER_ERROR = 500


class ErrorType(StrEnum):
    """The ACME Error Types registry of IANA (RFC 8555 section 9.7.4, and what others registered)."""

    ACCOUNT_DOES_NOT_EXIST = "accountDoesNotExist"
    ALREADY_REPLACED = "alreadyReplaced"
    ALREADY_REVOKED = "alreadyRevoked"
    AUTO_RENEWAL_CANCELED = "autoRenewalCanceled"
    AUTO_RENEWAL_CANCELLATION_INVALID = "autoRenewalCancellationInvalid"
    AUTO_RENEWAL_EXPIRED = "autoRenewalExpired"
    AUTO_RENEWAL_REVOCATION_NOT_SUPPORTED = "autoRenewalRevocationNotSupported"
    BAD_ATTESTATION_STATEMENT = "badAttestationStatement"
    BAD_CSR = "badCSR"
    BAD_NONCE = "badNonce"
    BAD_PUBLIC_KEY = "badPublicKey"
    BAD_REVOCATION_REASON = "badRevocationReason"
    BAD_SIGNATURE_ALGORITHM = "badSignatureAlgorithm"
    CAA = "caa"
    COMPOUND = "compound"
    CONNECTION = "connection"
    DNS = "dns"
    EXTERNAL_ACCOUNT_REQUIRED = "externalAccountRequired"
    INCORRECT_RESPONSE = "incorrectResponse"
    INVALID_CONTACT = "invalidContact"
    INVALID_PROFILE = "invalidProfile"
    MALFORMED = "malformed"
    ONION_CAA_REQUIRED = "onionCAARequired"
    ORDER_NOT_READY = "orderNotReady"
    RATE_LIMITED = "rateLimited"
    REJECTED_IDENTIFIER = "rejectedIdentifier"
    SERVER_INTERNAL = "serverInternal"
    TLS = "tls"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_DELEGATION = "unknownDelegation"
    UNSUPPORTED_CONTACT = "unsupportedContact"
    UNSUPPORTED_IDENTIFIER = "unsupportedIdentifier"
    USER_ACTION_REQUIRED = "userActionRequired"


_STATUS = {
    ErrorType.ALREADY_REPLACED: 409,
    ErrorType.CAA: 403,
    ErrorType.EXTERNAL_ACCOUNT_REQUIRED: 403,
    ErrorType.ORDER_NOT_READY: 403,
    ErrorType.RATE_LIMITED: _RATE_LIMITED,
    ErrorType.SERVER_INTERNAL: _FIRST_SERVER_ERROR,
    ErrorType.UNAUTHORIZED: 403,
    ErrorType.USER_ACTION_REQUIRED: 403,
}
"""HTTP status that goes with a type where the case needs no other; 400 for the rest."""

_OF_KIND: dict[ErrorKind, tuple[ErrorType, int]] = {
    ErrorKind.MALFORMED: (ErrorType.MALFORMED, 400),
    ErrorKind.BAD_CSR: (ErrorType.BAD_CSR, 400),
    ErrorKind.BAD_PUBLIC_KEY: (ErrorType.BAD_PUBLIC_KEY, 400),
    ErrorKind.REJECTED_IDENTIFIER: (ErrorType.REJECTED_IDENTIFIER, 400),
    ErrorKind.UNSUPPORTED_IDENTIFIER: (ErrorType.UNSUPPORTED_IDENTIFIER, 400),
    ErrorKind.POLICY_DENIED: (ErrorType.UNAUTHORIZED, 403),
    ErrorKind.PENDING_APPROVAL: (ErrorType.UNAUTHORIZED, 403),
    ErrorKind.UNAUTHENTICATED: (ErrorType.UNAUTHORIZED, 401),
    ErrorKind.UNAUTHORIZED: (ErrorType.UNAUTHORIZED, 403),
    ErrorKind.BAD_BINDING: (ErrorType.UNAUTHORIZED, 403),
    ErrorKind.NOT_FOUND: (ErrorType.MALFORMED, 404),
    ErrorKind.CONFLICT: (ErrorType.MALFORMED, 409),
    ErrorKind.TOO_LARGE: (ErrorType.MALFORMED, 413),
    ErrorKind.ALREADY_REVOKED: (ErrorType.ALREADY_REVOKED, 400),
    ErrorKind.BAD_REVOCATION_REASON: (ErrorType.BAD_REVOCATION_REASON, 400),
    ErrorKind.RATE_LIMITED: (ErrorType.RATE_LIMITED, _RATE_LIMITED),
    ErrorKind.UNAVAILABLE: (ErrorType.SERVER_INTERNAL, 503),
    ErrorKind.INTERNAL: (ErrorType.SERVER_INTERNAL, _FIRST_SERVER_ERROR),
}
_OF_JWS: dict[JwsErrorKind, tuple[ErrorType, int]] = {
    JwsErrorKind.MALFORMED: (ErrorType.MALFORMED, 400),
    JwsErrorKind.BAD_SIGNATURE_ALGORITHM: (ErrorType.BAD_SIGNATURE_ALGORITHM, 400),
    JwsErrorKind.BAD_PUBLIC_KEY: (ErrorType.BAD_PUBLIC_KEY, 400),
    JwsErrorKind.UNAUTHORIZED: (ErrorType.UNAUTHORIZED, 401),
}
_OF_CONTACT = {
    ContactErrorKind.UNSUPPORTED: ErrorType.UNSUPPORTED_CONTACT,
    ContactErrorKind.INVALID: ErrorType.INVALID_CONTACT,
}


@dataclass(frozen=True, slots=True)
class Subproblem:
    """One part of a compound problem (RFC 8555 section 6.7.1)."""

    type: ErrorType
    detail: str
    identifier: Identifier | SentIdentifier | None = None
    rule: str | None = None

    def json(self) -> dict[str, Any]:
        """The subproblem as a JSON object."""
        return {"type": URN + self.type, "detail": self.detail, **_extensions(self.identifier, self.rule)}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document. `status` 0: the one that goes with the type; `retry_after` is in seconds."""

    type: ErrorType
    detail: str
    status: int = 0
    subproblems: tuple[Subproblem, ...] = ()
    algorithms: tuple[str, ...] = ()
    """What `alg` may be, in a badSignatureAlgorithm (RFC 8555 section 6.2)."""
    identifier: Identifier | None = None
    retry_after: int | None = None
    instance: str | None = None
    """A URL that a person is to visit, in a userActionRequired."""
    terms_of_service: str | None = None
    """URL of the terms to agree to, for the header (RFC 8555 section 7.3.3)."""
    location: str | None = None
    """URL of the account that is in the way, for the header (RFC 8555 section 7.3.5)."""
    rule: str | None = None
    """The rule of the policy that refused: an extension member for the operators of clients."""

    def __post_init__(self) -> None:
        if not self.status:
            object.__setattr__(self, "status", _STATUS.get(self.type, 400))
        retry_after = self.retry_after
        if retry_after is None and (self.status == _RATE_LIMITED or self.status >= _FIRST_SERVER_ERROR):
            retry_after = DEFAULT_RETRY_AFTER
        if retry_after is not None:
            object.__setattr__(self, "retry_after", min(max(retry_after, 1), MAX_RETRY_AFTER))

    def json(self) -> dict[str, Any]:
        """The document as a JSON object; also what an order's or a challenge's `error` holds."""
        document: dict[str, Any] = {"type": URN + self.type, "detail": self.detail, "status": self.status}
        document |= _extensions(self.identifier, self.rule)
        if self.subproblems:
            document["subproblems"] = [subproblem.json() for subproblem in self.subproblems]
        if self.algorithms:
            document["algorithms"] = list(self.algorithms)
        if self.instance is not None:
            document["instance"] = self.instance
        return document

    @property
    def headers(self) -> dict[str, str]:
        """Header fields that go with the document."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.location is not None:
            headers["Location"] = self.location
        if self.terms_of_service is not None:
            headers["Link"] = f'<{self.terms_of_service}>;rel="terms-of-service"'
        return headers


class ProblemError(Exception):
    """A problem document on its way to the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


KnownError = CaError | JwsError | PayloadError | CertIdError | ContactError | BadNonceError | ProblemError


def problem_of(error: KnownError) -> Problem:
    """Make the problem document of an error that was foreseen."""
    match error:
        case ProblemError():
            return error.problem
        case CaError():
            return _of_ca_error(error)
        case JwsError():
            kind, status = _OF_JWS[error.kind]
            return Problem(kind, error.detail, status, algorithms=error.algorithms)
        case PayloadError() | CertIdError():
            return Problem(ErrorType.MALFORMED, error.detail)
        case ContactError():
            return Problem(_OF_CONTACT[error.kind], error.detail)
        case BadNonceError():
            return Problem(ErrorType.BAD_NONCE, error.detail)


def internal_problem(detail: str = "the server failed; its log tells why") -> Problem:
    """The document for an error that nobody foresaw, which tells the client nothing of it."""
    return Problem(ErrorType.SERVER_INTERNAL, detail)


def _of_ca_error(error: CaError) -> Problem:
    kind, status = _OF_KIND[error.kind]
    problem = Problem(kind, error.detail, status, retry_after=error.retry_after, rule=error.rule)
    if not error.suberrors:
        return problem
    subproblems = tuple(
        Subproblem(_OF_KIND[sub.kind][0], sub.detail, sub.identifier, sub.rule) for sub in error.suberrors
    )
    return replace(problem, subproblems=subproblems)


def _extensions(identifier: Identifier | SentIdentifier | None, rule: str | None) -> dict[str, Any]:
    members: dict[str, Any] = {}
    if identifier is not None:
        members["identifier"] = {"type": str(identifier.type), "value": identifier.value}
    if rule is not None:
        members["rule"] = rule
    return members
