"""Whether the CAA records of a name let this CA certify it: a pure decision, with the record and clause behind it."""

import re
from dataclasses import dataclass
from datetime import datetime

from protocols.acme.caa.records import CaaRecord, IssueValue, MalformedValueError, parse_issue_value

_ISSUE, _ISSUEWILD = "issue", "issuewild"
_UNDERSTOOD = frozenset({_ISSUE, _ISSUEWILD, "iodef", "issuemail", "issuevmc", "contactemail", "contactphone"})
"""IANA's Certification Authority Restriction Properties that are in use; all but the first two say nothing of names."""
_METHODS = re.compile(r"[A-Za-z0-9-]+(?:,[A-Za-z0-9-]+)*")


@dataclass(frozen=True, slots=True)
class CaaLookup:
    """The Relevant RRset of a name (RFC 8659 section 3): the records of the first name, climbing, that has any."""

    name: str
    """Without wildcard label."""
    checked_at: datetime
    found_at: str = ""
    """Where the records are; empty where there are none up to the top-level domain."""
    records: tuple[CaaRecord, ...] = ()
    authenticated: bool = False
    """Whether the resolver had authenticated, by DNSSEC, each answer on the way."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who would issue, for which account, and how it showed control of the name."""

    identities: tuple[str, ...]
    """Domain names by which CAA records call this CA, in lower case."""
    account_url: str
    """Empty: some account of which nothing is known."""
    method: str
    """The challenge type. Empty: some method of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is for people: what was found where, and the clause by which it counts."""

    allowed: bool
    reason: str


def evaluate(lookup: CaaLookup, *, wildcard: bool, applicant: Applicant) -> Verdict:
    """Decide on the name of a lookup, or on the wildcard directly below it."""
    if not lookup.records:
        reason = f"no CAA record at {lookup.name} or above it (RFC 8659 section 3)"
        return Verdict(allowed=True, reason=reason)
    for record in lookup.records:
        if record.is_critical and record.kind not in _UNDERSTOOD:
            why = "is critical, and not understood (RFC 8659 section 4.1)"
            return _verdict(lookup, record, why, allowed=False)
    wild = [record for record in lookup.records if record.kind == _ISSUEWILD]
    restricting = wild if wildcard and wild else [record for record in lookup.records if record.kind == _ISSUE]
    if not restricting:
        kind = "wildcard names" if wildcard else "the name"
        return Verdict(allowed=True, reason=f"no CAA record at {lookup.found_at} is about {kind} (RFC 8659 section 4)")
    faults = []
    for record in restricting:
        fault = _fault(record, applicant)
        if fault is None:
            clause = "4.3" if record.kind == _ISSUEWILD else "4.2"
            return _verdict(lookup, record, f"names this CA (RFC 8659 section {clause})", allowed=True)
        faults.append((record, fault))
    # What comes closest to allowing it tells most.
    record, fault = min(faults, key=lambda each: each[1].rank)
    return _verdict(lookup, record, fault.why, allowed=False)


@dataclass(frozen=True, slots=True)
class _Fault:
    rank: int
    why: str


def _verdict(lookup: CaaLookup, record: CaaRecord, why: str, *, allowed: bool) -> Verdict:
    return Verdict(allowed, f"{lookup.found_at} has CAA {record}, which {why}")


def _fault(record: CaaRecord, applicant: Applicant) -> _Fault | None:
    """Why a record does not let the applicant pass; None: it does."""
    try:
        value = parse_issue_value(record.value)
    except MalformedValueError as error:
        # "the same as one specifying an empty issuer-domain-name"
        return _Fault(3, f"forbids issuance, since {error} (RFC 8659 section 4.2)")
    if value.issuer not in applicant.identities:
        who = "another CA" if value.issuer else "no CA"
        return _Fault(2, f"names {who} (RFC 8659 section 4.2)")
    why = _account_fault(value, applicant.account_url) or _method_fault(value, applicant.method)
    return None if why is None else _Fault(1, why)


def _account_fault(value: IssueValue, account_url: str) -> str | None:
    wanted = value.of("accounturi")
    if len(wanted) > 1:
        return "has more than one accounturi (RFC 8657 section 3)"
    # Compared as text (RFC 3986 section 6.2.1): what is no URI of ours is no account of ours.
    if wanted and wanted[0] != account_url:
        return (
            "is for another account (RFC 8657 section 3)" if account_url else "is for one account (RFC 8657 section 3)"
        )
    return None


def _method_fault(value: IssueValue, method: str) -> str | None:
    wanted = value.of("validationmethods")
    if len(wanted) > 1:
        return "has more than one validationmethods (RFC 8657 section 4)"
    if not wanted:
        return None
    if not _METHODS.fullmatch(wanted[0]):
        return "has a validationmethods that is no list of methods (RFC 8657 section 4)"
    if method not in wanted[0].split(","):
        how = f"{method}, by which control was shown" if method else "every method"
        return f"does not list {how} (RFC 8657 section 4)"
    return None
