"""TXT records of dns-persist-01 (draft-ietf-acme-dns-persist-02 section 4.1): what a domain says, read and judged.

A record is an issue-value (RFC 8659 section 4.2) of any length that the domain chose, so nothing of it is believed but
what equals a value that was computed here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from protocols.acme.caa.records import IssueValue, MalformedValueError, parse_issue_value
from protocols.acme.encoding import b64url_encode

ALGORITHM = "sha-256"
"""The one hash algorithm that is accepted, by its name in the registry of RFC 6920 section 9.4."""
ANY_DOMAIN = "*"
"""Hashed in place of the domain, by who wants one record for many domains."""
_DIGEST = re.compile(r"[A-Za-z0-9_-]{43}")
_TIMESTAMP = re.compile(r"(-?)0*([0-9]+)")
_LAST_TIMESTAMP = 253_402_300_799
"""The end of the year 9999."""


class RecordError(ValueError):
    """The record is this CA's and does not authorize; `type` is that of the ACME error."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.type = kind


@dataclass(frozen=True, slots=True)
class PersistRecord:
    """What a record of this CA says."""

    account_uri: str
    covers_more: bool
    """Wildcards and the names below, too (`policy=wildcard`)."""
    until: datetime | None
    """After this it is worth nothing, and neither is what was seen of it; None: no end."""


def parse_record(text: str, issuers: Iterable[str]) -> PersistRecord | None:
    """Read a record; None where it is no issue-value of one of these issuer domain names, which are in lower case.

    Parameters that are not known are ignored. RecordError `malformed` where one that is known comes twice, `accounturi`
    is missing, or `persistUntil` is no number.
    """
    try:
        value = parse_issue_value(text.encode("latin-1"))
    except MalformedValueError as error:
        # Whose it is can be told even so: by what stands before the first parameter.
        if text.partition(";")[0].strip(" \t").lower() in issuers:
            raise RecordError("malformed", str(error)) from error
        return None
    if value.issuer not in issuers:
        return None
    account_uri = _only(value, "accounturi")
    if account_uri is None:
        raise RecordError("malformed", "there is no accounturi")
    until = _only(value, "persistuntil")
    return PersistRecord(
        account_uri=account_uri,
        covers_more=(_only(value, "policy") or "").lower() == "wildcard",
        until=None if until is None else _moment(until),
    )


def check_record(
    record: PersistRecord, prefix: str, accepted: Iterable[str], now: datetime, *, more: bool = False
) -> None:
    """Return if the record names one of the accepted hashed URIs, which begin with `prefix`, and is in force.

    `more`: if it covers more than its own name, too. RecordError `malformed` where its `accounturi` is no hashed URI of
    this CA, else `unauthorized`.
    """
    algorithm, _, digest = record.account_uri.removeprefix(prefix).partition("/")
    is_hashed = record.account_uri.startswith(prefix) and algorithm == ALGORITHM
    if not is_hashed or not _DIGEST.fullmatch(digest):
        raise RecordError("malformed", f"accounturi is not {prefix}{ALGORITHM}/ with a digest behind it")
    if record.account_uri not in accepted:
        raise RecordError("unauthorized", "accounturi is of another account, another key, or another domain")
    if record.until is not None and now > record.until:
        raise RecordError("unauthorized", f"persistUntil was {record.until:%Y-%m-%dT%H:%M:%SZ}")
    if more and not record.covers_more:
        raise RecordError("unauthorized", "it has no policy=wildcard, and so is for that name alone")


def hashed_uri(prefix: str, domain: str, thumbprint: str, account_url: str) -> str:
    """The URI by which a record names an account; `domain` is in lower-case A-labels, or ANY_DOMAIN."""
    octets = domain.encode("ascii")
    digest = sha256(bytes([len(octets)]) + octets + thumbprint.encode("ascii") + account_url.encode("ascii")).digest()
    return f"{prefix}{ALGORITHM}/{b64url_encode(digest)}"


def _only(value: IssueValue, tag: str) -> str | None:
    found = value.of(tag)
    if len(found) > 1:
        raise RecordError("malformed", f"{tag} stands there {len(found)} times")
    return found[0] if found else None


def _moment(text: str) -> datetime | None:
    """A UNIX timestamp as a time; None: later than can be told."""
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        raise RecordError("malformed", "persistUntil is no number of seconds")
    minus, digits = found.groups()
    if minus:
        return datetime.fromtimestamp(0, UTC)
    if len(digits) > len(str(_LAST_TIMESTAMP)) or int(digits) > _LAST_TIMESTAMP:
        return None
    return datetime.fromtimestamp(int(digits), UTC)
