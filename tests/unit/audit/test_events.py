"""Canonical leaves: one event has one encoding, and nothing that a client sends keeps its event off the record."""

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca_server.core.audit import MAX_LEAF, EventFactory, decode_event, encode_event, event_id_at, leaf_members
from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.errors import CaError, ErrorKind

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
optional = st.none() | texts.filter(bool)
some_events = st.builds(
    AuditEvent,
    id=texts,
    type=st.sampled_from(EventType),
    outcome=st.sampled_from(Outcome),
    time=st.datetimes(timezones=st.just(UTC)),
    node=texts,
    process=texts,
    sequence=st.integers(0, 2**63 - 1),
    software=texts,
    configuration=texts,
    tenant=texts,
    actor=optional,
    authenticated_by=optional,
    source=optional,
    request_id=optional,
    object=optional,
    issuer=optional,
    serial=optional,
    profile=optional,
    names=st.lists(texts, max_size=4).map(tuple),
    key=optional,
    reason=optional,
    rule=optional,
    approvers=st.lists(texts, max_size=3).map(tuple),
    extra=st.dictionaries(texts, texts, max_size=4),
)


@given(some_events)
def test_round_trip(event: AuditEvent) -> None:
    leaf = encode_event(event)
    assert decode_event(leaf) == event
    again = json.loads(leaf)
    assert json.dumps(again, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == leaf
    assert None not in again.values()
    assert b"\n" not in leaf


@given(
    st.binary(max_size=200) | st.text(max_size=80).map(str.encode) | some_events.map(encode_event).map(lambda x: x[:-1])
)
def test_arbitrary_bytes_raise_the_one_error(data: bytes) -> None:
    for read in (decode_event, leaf_members):
        with contextlib.suppress(CaError):  # and nothing else
            read(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"node":', b'"node" :'),
        (b'"sequence":1', b'"sequence":1.0'),
        (b'"sequence":1', b'"sequence":"1"'),
        (b'"type":"server.start"', b'"type":"server.nothing"'),
        (b'"node":"node"', b'"node":"node","nodf":"x"'),
        (b'"node":"node"', b'"names":[],"node":"node"'),
        (b'"node":"node"', b'"node":"nod\\u0065"'),
        (b'"node":"node",', b""),
        (b'Z"', b'"'),
    ],
)
def test_other_encodings_are_refused(events: EventFactory, old: bytes, new: bytes) -> None:
    leaf = encode_event(events.make(EventType.SERVER_START))
    assert old in leaf
    with pytest.raises(CaError):
        decode_event(leaf.replace(old, new))


def test_times_are_utc_with_microseconds(events: EventFactory) -> None:
    event = events.make(EventType.SERVER_START)
    at = datetime(2026, 11, 24, 5, 0, tzinfo=timezone(timedelta(hours=1)))
    assert leaf_members(encode_event(replace(event, time=at)))["time"] == "2026-11-24T04:00:00.000000Z"
    with pytest.raises(ValueError, match="time zone"):
        encode_event(replace(event, time=datetime(2026, 11, 24)))  # noqa: DTZ001 - naive on purpose


def test_ids_grow_even_when_the_clock_steps_back() -> None:
    now = datetime(2026, 11, 24, 4, tzinfo=UTC)
    times = iter([now, now, now - timedelta(hours=1), now + timedelta(milliseconds=1)])
    factory = EventFactory(node="n", process="p", software="s", configuration="c", clock=lambda: next(times))
    made = [factory.make(EventType.SERVER_START) for _ in range(4)]
    ids = [event.id for event in made]
    assert ids == sorted(set(ids))
    assert [event.sequence for event in made] == [1, 2, 3, 4]
    assert event_id_at(now) <= ids[0] < event_id_at(now + timedelta(milliseconds=1)) <= ids[3]


def test_two_starts_share_no_numbering() -> None:
    both = [EventFactory(node="n", process="p", software="s", configuration="c") for _ in range(2)]
    assert both[0].process != both[1].process
    assert both[0].process.startswith("n/p/")


@pytest.mark.parametrize("name", ["a" * 250, "\x01" * 250, "\U0001f600" * 60])
def test_long_lists_of_names_are_cut_and_told(events: EventFactory, name: str) -> None:
    names = tuple(f"{number}{name}" for number in range(1_000))
    event = events.make(EventType.ISSUANCE_REFUSED, names=names, extra={"a": "b"})
    assert 0 < len(event.names) < 1_000
    assert event.names == names[: len(event.names)]
    assert event.extra["names_count"] == "1000"
    assert len(event.extra["names_sha256"]) == 64
    assert event.extra["a"] == "b"
    assert len(encode_event(event)) <= MAX_LEAF
    assert decode_event(encode_event(event)) == event


def test_a_hundred_names_are_kept(events: EventFactory) -> None:
    names = tuple(f"host{number}.example.test" for number in range(100))
    assert events.make(EventType.ISSUANCE_STORED, names=names).names == names


@pytest.mark.parametrize("members", [{"reason": "x" * MAX_LEAF}, {"extra": {"x": "\x01" * 11_000}}])
def test_what_is_too_long_is_refused_when_it_is_made(events: EventFactory, members: dict[str, object]) -> None:
    with pytest.raises(CaError) as caught:
        events.make(EventType.SERVER_START, **members)
    assert caught.value.kind is ErrorKind.TOO_LARGE


def test_nul_is_escaped(events: EventFactory) -> None:
    """PostgreSQL's text can't hold it."""
    event = events.make(EventType.ACCESS_REFUSED, object="/a\0b", names=("\0",))
    assert (event.object, event.names) == ("/a\\x00b", ("\\x00",))


def test_text_that_is_not_unicode_is_escaped(events: EventFactory) -> None:
    event = events.make(
        EventType.ISSUANCE_REFUSED, object="x\ud800y", names=("dns:\udfff",), extra={"k\ud800": "\ud800"}
    )
    assert decode_event(encode_event(event)) == event
    assert event.object == "x\\ud800y"
    assert event.names == ("dns:\\udfff",)
