"""Challenge validation (RFC 8555 section 8): one file per type, one registry."""

from protocols.acme.validation.device_attest_01 import BAD_ATTESTATION
from protocols.acme.validation.model import (
    Dnssec,
    Evidence,
    Sightings,
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    Validator,
    key_authorization,
)
from protocols.acme.validation.registry import USUAL_CHALLENGES, validators
from protocols.acme.validation.resolver import DnsFailure, Resolver

__all__ = [
    "BAD_ATTESTATION",
    "USUAL_CHALLENGES",
    "DnsFailure",
    "Dnssec",
    "Evidence",
    "Resolver",
    "Sightings",
    "ValidationPolicy",
    "ValidationProblem",
    "ValidationTarget",
    "Validator",
    "key_authorization",
    "validators",
]
