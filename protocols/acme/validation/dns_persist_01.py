"""The dns-persist-01 challenge (draft-ietf-acme-dns-persist-02): a TXT record that stands, and names CA and account."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.model import (
    Evidence,
    ValidationPolicy,
    ValidationProblem,
    ValidationTarget,
    note_records,
    problem,
    shown,
)
from protocols.acme.validation.persist_record import (
    ANY_DOMAIN,
    PersistRecord,
    RecordError,
    check_record,
    hashed_uri,
    parse_record,
)
from protocols.acme.validation.resolver import DnsFailure, Resolver

LABEL = "_validation-persist"
MAX_DOMAINS = 8
"""The name itself, and so many of those above it, are looked at."""
_LEAST_LABELS = 2
_SHOWN_RECORD = 200


@dataclass(frozen=True, slots=True)
class _Look:
    """What one lookup gave: evidence, or why there is none."""

    evidence: Evidence | None
    problem: ValidationProblem | None = None
    ends: bool = False
    """Whether it must not be looked further: what is there can't be told."""


class DnsPersist01Validator:
    """Looks for a record of this CA and the account at the name, and for one that covers more at the names above it."""

    type = "dns-persist-01"

    def __init__(self, policy: ValidationPolicy, resolver: Resolver) -> None:
        """Raises ValueError where the policy has no issuer domain names."""
        if not policy.issuer_domain_names:
            raise ValueError("dns-persist-01 needs issuer domain names")
        self._policy = policy
        self._resolver = resolver

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:  # noqa: ARG002 - wildcards too
        """For DNS names, wildcards too."""
        return identifier.type is IdentifierType.DNS

    async def validate(self, target: ValidationTarget) -> ValidationProblem | Evidence:
        """A lookup at the name and, as long as none shows control, at each name above it."""
        first: ValidationProblem | None = None
        try:
            async with asyncio.timeout(self._policy.timeout):
                for domain in _upwards(target.identifier.value):
                    look = await self._look(target, domain, must_cover_more=first is not None or target.covers_more)
                    if look.evidence is not None:
                        return look.evidence
                    first = first or look.problem
                    if look.ends:
                        break
        except TimeoutError:
            detail = f"{LABEL}.{target.identifier.value}: not done in {self._policy.timeout:g} s"
            return problem("dns", detail, retryable=True)
        assert first is not None
        return first

    async def _look(self, target: ValidationTarget, domain: str, *, must_cover_more: bool) -> _Look:
        name = f"{LABEL}.{domain}"
        try:
            texts = await self._resolver.txt(name)
        except DnsFailure as failure:
            target.sightings.note(f"TXT {name}: {failure.detail}")
            return _Look(None, problem("dns", failure.detail, retryable=failure.retryable), ends=not failure.missing)
        note_records(target.sightings, name, texts)
        accepted = _accepted(target, domain)
        found: RecordError | None = None
        for text in texts:
            try:
                record = parse_record(text, self._policy.issuer_domain_names)
                if record is None:
                    continue
                check_record(record, target.account_hash_prefix, accepted, datetime.now(UTC), more=must_cover_more)
            except RecordError as error:
                found = found or error
                continue
            return _Look(_evidence(name, text, record))
        if found is not None:
            return _Look(None, problem(found.type, f"{name}: {found}", retryable=True))
        issuers = " or ".join(self._policy.issuer_domain_names)
        return _Look(None, problem("unauthorized", f"{name} has no TXT record of {issuers}", retryable=True))


def _upwards(name: str) -> Iterator[str]:
    """The name and those above it, without the top-level domain."""
    labels = name.split(".")
    for number in range(min(MAX_DOMAINS, max(1, len(labels) - _LEAST_LABELS + 1))):
        yield ".".join(labels[number:])


def _accepted(target: ValidationTarget, domain: str) -> frozenset[str]:
    """The hashed URIs of the account at a domain, by each key that it has had (section 4.2)."""
    return frozenset(
        hashed_uri(target.account_hash_prefix, each, thumbprint, target.account_url)
        for thumbprint in target.thumbprints
        for each in (domain, ANY_DOMAIN)
    )


def _evidence(name: str, text: str, record: PersistRecord) -> Evidence:
    return Evidence({"record": name, "seen": shown(text, _SHOWN_RECORD)}, record.until)
