"""Audit events as canonical leaf bytes, and the factory that makes them.

A leaf is JSON with sorted keys, no white space, UTF-8, and no member for what is absent: one event has one encoding,
which is what is stored, hashed, exported and signed for.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from operator import attrgetter
from typing import Any, Final

import msgspec

from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.ids import new_id

MAX_LEAF: Final = 65_535
"""Bytes of the longest leaf: tiles of entries give each a length of 16 bits (C2SP tlog-tiles)."""

_NAMES_BUDGET: Final = 32_768
"""Bytes of JSON that `names` may take; the rest is told by count and digest."""
_WORST_ESCAPE: Final = 6
"""Bytes that one character can become in JSON: a control character, `\\u0000`."""
_FRAME: Final = 2_048
"""Generous room for the member names, numbers and times of an event."""
_MS_DIGITS: Final = 12
_TEXTS: Final = frozenset(
    {
        "actor",
        "authenticated_by",
        "configuration",
        "id",
        "issuer",
        "key",
        "node",
        "object",
        "process",
        "profile",
        "reason",
        "request_id",
        "rule",
        "serial",
        "software",
        "source",
        "tenant",
    }
)
_LISTS: Final = frozenset({"approvers", "names"})
_REQUIRED: Final = frozenset(
    {"configuration", "id", "node", "outcome", "process", "sequence", "software", "tenant", "time", "type", "version"}
)
_MEMBERS: Final = tuple(sorted(field.name for field in fields(AuditEvent)))
_values_of = attrgetter(*_MEMBERS)
_texts_of = attrgetter(*_TEXTS)
_encoder = msgspec.json.Encoder(order="sorted")


def encode_event(event: AuditEvent, sequence: int | None = None) -> bytes:
    """The canonical leaf bytes of an event; `sequence` overrides the event's own.

    Raises CaError TOO_LARGE above MAX_LEAF bytes, MALFORMED for text that is not Unicode.
    """
    values = zip(_MEMBERS, _values_of(event), strict=True)
    members: dict[str, Any] = {name: value for name, value in values if value or name in _REQUIRED}
    members["time"] = time_text(event.time)
    if sequence is not None:
        members["sequence"] = sequence
    try:
        leaf = _encoder.encode(members)
    except UnicodeEncodeError:
        raise CaError(ErrorKind.MALFORMED, "an audit event holds text that is not Unicode") from None
    if len(leaf) > MAX_LEAF:
        raise CaError(ErrorKind.TOO_LARGE, f"an audit event of {len(leaf)} bytes is longer than {MAX_LEAF}")
    return leaf


def leaf_members(leaf: bytes) -> dict[str, Any]:
    """The members of a leaf, of whatever schema version. MALFORMED where it is not canonical JSON of an object."""
    try:
        members = msgspec.json.decode(leaf, type=dict[str, Any])
        again = _encoder.encode(members)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CaError(ErrorKind.MALFORMED, "a leaf is not the JSON of an event") from error
    if again != leaf:
        raise CaError(ErrorKind.MALFORMED, "a leaf is not in canonical form")
    return members


def decode_event(leaf: bytes) -> AuditEvent:
    """The event of canonical leaf bytes; `encode_event` gives the same bytes. MALFORMED otherwise."""
    if len(leaf) > MAX_LEAF:
        raise CaError(ErrorKind.MALFORMED, "a leaf is too long")
    members = leaf_members(leaf)
    unknown = members.keys() - set(_MEMBERS)
    if unknown or not members.keys() >= _REQUIRED:
        raise CaError(ErrorKind.MALFORMED, "a leaf does not have the members of an event")
    event = AuditEvent(**{name: _value(name, value) for name, value in members.items()})
    if encode_event(event) != leaf:
        raise CaError(ErrorKind.MALFORMED, "a leaf is not in canonical form")
    return event


def leaf_time(value: object) -> datetime:
    """The time of a leaf. MALFORMED where it is none."""
    try:
        return datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise CaError(ErrorKind.MALFORMED, "a leaf has no valid time") from error


def event_id_at(time: datetime) -> str:
    """The lowest event id of a moment: ids of earlier events sort before it."""
    milliseconds = int(time.timestamp() * 1000)
    return f"{milliseconds:0{_MS_DIGITS}x}".ljust(32, "0")


class EventFactory:
    """Makes the events of one process.

    `process` names the role; the events carry `node/process/instance`, where the instance is drawn at random for each
    start, so that no two runs share a numbering. All state is owned by the one event loop that calls `make`.
    """

    def __init__(
        self,
        *,
        node: str,
        process: str,
        software: str,
        configuration: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tenant: str = "default",
        instance: str | None = None,
    ) -> None:
        self.node = node
        self.process = f"{node}/{process}/{instance or secrets.token_hex(4)}"
        self._software = software
        self._configuration = configuration
        self._clock = clock
        self.tenant = tenant
        self._actor = f"internal:{process.partition('-')[0]}"
        self._sequence = 0
        self._last_id = 0

    def make(self, type: EventType, outcome: Outcome = Outcome.SUCCESS, **members: Any) -> AuditEvent:  # noqa: A002 - the event's own word
        """Make an event; `members` are those of AuditEvent.

        The sequence numbers events in the order of their making; the store numbers them anew, without a gap, in the
        order of their commit. A long list of names is cut, with `names_count` and `names_sha256` in `extra`; text
        that is not Unicode is escaped. The actor is this process itself unless another is named. Raises CaError
        TOO_LARGE for an event that still exceeds MAX_LEAF.
        """
        now = self._clock()
        self._sequence += 1
        members.setdefault("tenant", self.tenant)
        if members.get("actor") is None:
            members["actor"] = self._actor
        event = AuditEvent(
            id=self._next_id(now),
            type=type,
            outcome=outcome,
            time=now,
            node=self.node,
            process=self.process,
            sequence=self._sequence,
            software=self._software,
            configuration=self._configuration,
            **{name: _clean(value) for name, value in members.items()},
        )
        return _fitted(event)

    def _next_id(self, now: datetime) -> str:
        # 48 bits of milliseconds, 16 that count within one, 64 random: ids of a process grow even when the clock steps
        # back.
        self._last_id = max(int(now.timestamp() * 1000) << 16, self._last_id + 1)
        return f"{self._last_id:016x}{new_id()[16:]}"


def _fitted(event: AuditEvent) -> AuditEvent:
    """Cut the names of an event where they are long; refuse what stays too long."""
    names = sum(map(len, event.names))
    texts = sum(map(len, filter(None, _texts_of(event)))) + sum(map(len, event.approvers))
    texts += sum(len(key) + len(value) for key, value in event.extra.items())
    items = 3 * (len(event.names) + len(event.approvers)) + 6 * len(event.extra)
    if (names + texts) * _WORST_ESCAPE + items + _FRAME <= MAX_LEAF:
        return event
    encoded = _encoder.encode(event.names)
    if len(encoded) > _NAMES_BUDGET:
        kept: list[str] = []
        room = _NAMES_BUDGET
        for name in event.names:
            room -= len(_encoder.encode(name)) + 1
            if room < 0:
                break
            kept.append(name)
        told = {"names_count": str(len(event.names)), "names_sha256": sha256(encoded).hexdigest()}
        event = replace(event, names=tuple(kept), extra=event.extra | told)
    encode_event(event, sequence=2**63 - 1)
    return event


def _clean(value: Any) -> Any:
    """Escape what is not Unicode (lone surrogates), and NUL, which PostgreSQL's text can't hold.

    So no hostile text keeps its event off the record.
    """
    if isinstance(value, str):
        if "\0" in value:
            value = value.replace("\0", "\\x00")
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, tuple):
        return tuple(_clean(item) for item in value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def time_text(time: datetime) -> str:
    """A time as leaves have it: UTC, always with six digits of microseconds. ValueError for a naive time."""
    if time.tzinfo is None:
        raise ValueError("an audit event's time has a time zone")
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _value(name: str, value: Any) -> Any:
    try:
        if name == "type":
            return EventType(value)
        if name == "outcome":
            return Outcome(value)
        if name == "time":
            return leaf_time(value)
        if name in _TEXTS:
            return msgspec.convert(value, str, strict=True)
        if name in _LISTS:
            return msgspec.convert(value, tuple[str, ...], strict=True)
        if name == "extra":
            return msgspec.convert(value, dict[str, str], strict=True)
        return msgspec.convert(value, int, strict=True)
    except (ValueError, msgspec.ValidationError) as error:
        raise CaError(ErrorKind.MALFORMED, f"member {name} of a leaf has no valid value") from error
