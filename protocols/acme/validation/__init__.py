"""Challenge validation (RFC 8555 section 8): one file per type, one registry."""

from protocols.acme.validation.model import (
    Dnssec,
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    Validator,
    key_authorization,
)
from protocols.acme.validation.registry import validators
from protocols.acme.validation.resolver import DnsFailure, Resolver

__all__ = [
    "DnsFailure",
    "Dnssec",
    "Resolver",
    "ValidationPolicy",
    "ValidationProblem",
    "ValidationTarget",
    "Validator",
    "key_authorization",
    "validators",
]
