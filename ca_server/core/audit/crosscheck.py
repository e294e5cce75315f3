"""Holds the CA's tables against the log, and the log against them: certificates, revocations and reservations.

Both sides are read in the order of their serials and merged, so memory is bounded. What differs is read again before
it is reported, since the CA may be at work meanwhile.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ca_server.core.audit.events import leaf_members
from ca_server.core.audit.findings import FindingKind, Findings
from ca_server.core.audit.reading import AuditReader, LoggedEvent, SerialFact, SerialKey
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError

_PAGE: Final = 1_000
_SAME_SERIAL: Final = 100
_LIFTED: Final = RevocationReason.REMOVE_FROM_CRL.label

Facts = Callable[[SerialKey, int, SerialKey | None], Awaitable[tuple[SerialFact, ...]]]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What rows and events of one kind are called, and how they must agree."""

    kind: EventType
    missing_row: FindingKind
    row: str
    agrees: Callable[[SerialFact, Sequence[LoggedEvent]], bool]
    expects_row: Callable[[Sequence[LoggedEvent]], bool]


async def cross_check(reader: AuditReader, findings: Findings) -> tuple[int, int, int]:
    """Compare all three kinds; the numbers of certificates, revocations and intents."""
    stored = _Rule(
        EventType.ISSUANCE_STORED,
        FindingKind.MISSING_CERTIFICATE,
        "certificate",
        _digest_in("certificate_sha256"),
        bool,
    )
    revoked = _Rule(
        EventType.CERTIFICATE_REVOKED, FindingKind.MISSING_REVOCATION, "revocation", _same_reason, _still_revoked
    )
    reserved = _Rule(
        EventType.ISSUANCE_RESERVED, FindingKind.MISSING_INTENT, "reservation", _digest_in("tbs_sha256"), bool
    )
    return (
        await _merge(reader, reader.certificates, stored, findings),
        await _merge(reader, reader.revoked, revoked, findings),
        await _merge(reader, reader.intents, reserved, findings),
    )


async def _merge(reader: AuditReader, facts: Facts, rule: _Rule, findings: Findings) -> int:
    count = 0
    rows = _facts(facts)
    groups = _groups(reader, rule.kind)
    row = await anext(rows, None)
    group = await anext(groups, None)
    while row is not None or group is not None:
        sides = [row.key] if row is not None else []
        sides += [group[0]] if group is not None else []
        key = min(sides)
        here = row if row is not None and row.key == key else None
        events: Sequence[LoggedEvent] = group[1] if group is not None and group[0] == key else ()
        if _problem(rule, here, events) is not None:
            await _confirm(reader, facts, rule, key, findings)
        if here is not None:
            count += 1
            row = await anext(rows, None)
        if events:
            group = await anext(groups, None)
    return count


async def _confirm(reader: AuditReader, facts: Facts, rule: _Rule, key: SerialKey, findings: Findings) -> None:
    """Read both sides of a serial again, the events last (they come with the row), and report what still differs."""
    rows = await facts(key, 1, key)
    events = tuple(event for _, event in await reader.recorded(rule.kind, (*key, ""), _SAME_SERIAL, key))
    problem = _problem(rule, rows[0] if rows else None, events)
    if problem is not None and not rows:
        # A row that was committed between the two reads is there now.
        rows = await facts(key, 1, key)
        problem = _problem(rule, rows[0] if rows else None, events)
    if problem is not None:
        serial, issuer = key
        findings.add(problem[0], f"serial {serial} of issuer {issuer}", problem[1])


def _problem(rule: _Rule, row: SerialFact | None, events: Sequence[LoggedEvent]) -> tuple[FindingKind, str] | None:
    if row is not None and not events:
        return FindingKind.MISSING_EVENT, f"the log has no {rule.kind.value} event for the {rule.row}"
    if row is None:
        if not rule.expects_row(events):
            return None
        return rule.missing_row, f"the log has {rule.kind.value} event {events[-1].id}, and the {rule.row} is gone"
    if not rule.agrees(row, events):
        return FindingKind.EDITED, f"the {rule.row} is not the one of {rule.kind.value} event {events[-1].id}"
    return None


async def _facts(facts: Facts) -> AsyncIterator[SerialFact]:
    after: SerialKey = ("", "")
    while page := await facts(after, _PAGE, None):
        for fact in page:
            yield fact
        after = page[-1].key


async def _groups(reader: AuditReader, kind: EventType) -> AsyncIterator[tuple[SerialKey, Sequence[LoggedEvent]]]:
    """Events by serial, in the order of their leaves."""
    after = ("", "", "")
    key: SerialKey | None = None
    group: list[LoggedEvent] = []
    while page := await reader.recorded(kind, after, _PAGE):
        for of_key, event in page:
            if of_key != key and key is not None:
                yield key, sorted(group, key=_place)
                group = []
            key = of_key
            if len(group) < _SAME_SERIAL:
                group.append(event)
        after = (*page[-1][0], page[-1][1].id)
    if key is not None:
        yield key, sorted(group, key=_place)


def _place(event: LoggedEvent) -> tuple[bool, int, str]:
    return event.index is None, event.index or 0, event.id


def _digest_in(name: str) -> Callable[[SerialFact, Sequence[LoggedEvent]], bool]:
    def agrees(row: SerialFact, events: Sequence[LoggedEvent]) -> bool:
        return all(_extra(event, name) == row.digest.hex() for event in events)

    return agrees


def _same_reason(row: SerialFact, events: Sequence[LoggedEvent]) -> bool:
    return row.reason is not None and _reason(events) == row.reason.label


def _still_revoked(events: Sequence[LoggedEvent]) -> bool:
    return _reason(events) != _LIFTED


def _reason(events: Sequence[LoggedEvent]) -> object:
    return _members(max(events, key=_place)).get("reason")


def _extra(event: LoggedEvent, name: str) -> object:
    extra = _members(event).get("extra")
    return extra.get(name) if isinstance(extra, dict) else None


def _members(event: LoggedEvent) -> dict[str, object]:
    try:
        return leaf_members(event.leaf)
    except CaError:
        return {}  # reported where the leaves are replayed
