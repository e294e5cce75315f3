"""The dns-01 challenge (RFC 8555 section 8.4)."""

from hashlib import sha256

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.encoding import b64url_encode
from protocols.acme.validation.model import (
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    note_records,
    problem,
    shown,
)
from protocols.acme.validation.resolver import DnsFailure, Resolver

_SHOWN_RECORDS = 3
_SHOWN_CHARACTERS = 64


class Dns01Validator:
    """Looks for the digest of the key authorization among the TXT records of `_acme-challenge`."""

    type = "dns-01"

    def __init__(self, policy: ValidationPolicy, resolver: Resolver) -> None:  # noqa: ARG002 - as every validator
        self._resolver = resolver

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:  # noqa: ARG002 - wildcards too
        """For DNS names, wildcards too."""
        return identifier.type is IdentifierType.DNS

    async def validate(self, target: ValidationTarget) -> ValidationProblem | None:
        """One lookup."""
        return await check_txt(self._resolver, f"_acme-challenge.{target.identifier.value}", target)


async def check_txt(resolver: Resolver, name: str, target: ValidationTarget) -> ValidationProblem | None:
    """None if a TXT record of the name is the digest: any one may be the right one, since orders can overlap."""
    expected = b64url_encode(sha256(target.key_authorization.encode("ascii")).digest())
    try:
        records = await resolver.txt(name)
    except DnsFailure as failure:
        target.sightings.note(f"TXT {name}: {failure.detail}")
        return problem("dns", failure.detail, retryable=failure.retryable)
    note_records(target.sightings, name, records)
    if expected in records:
        return None
    if not records:
        return problem("dns", f"{name} has no TXT record", retryable=True)
    seen = ", ".join(repr(shown(record, _SHOWN_CHARACTERS)) for record in records[:_SHOWN_RECORDS])
    more = f" and {len(records) - _SHOWN_RECORDS} more" if len(records) > _SHOWN_RECORDS else ""
    return problem("incorrectResponse", f"{name} has TXT {seen}{more}, expected {expected!r}", retryable=True)
