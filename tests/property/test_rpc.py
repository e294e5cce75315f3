"""The core's port in bytes: every value round-trips; hostile bytes, in any pieces, give FrameError or CaError."""

import types
import typing
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ca_server.domain.errors import CaError, ErrorKind, SubError
from ca_server.rpc.messages import (
    CORE_OPERATIONS,
    HEADER_SIZE,
    MAX_FRAME,
    ErrorBody,
    FrameError,
    FrameReader,
    Operation,
    decode_argument,
    decode_reply,
    decode_request,
    decode_result,
    encode_error,
    encode_request,
    encode_result,
)

OPERATIONS = st.sampled_from(list(CORE_OPERATIONS.operations.values()))
SCALARS: dict[object, st.SearchStrategy] = {
    bytes: st.binary(max_size=40),
    str: st.text(max_size=20),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    datetime: st.datetimes(timezones=st.just(UTC)),
    types.NoneType: st.none(),
}


def values(kind: typing.Any) -> st.SearchStrategy:
    """Any value of a type of the port's."""
    if kind in SCALARS:
        return SCALARS[kind]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if arguments:
        return st.one_of([values(argument) for argument in arguments])
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    assert is_dataclass(kind), kind
    return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})


ERRORS = st.builds(
    CaError,
    st.sampled_from(ErrorKind),
    st.text(max_size=40),
    rule=st.none() | st.text(max_size=20),
    suberrors=values(tuple[SubError, ...]),
    retry_after=st.integers(0, 10_000),
)


def payload(frame: bytes) -> bytes:
    """The one frame in these octets."""
    reader = FrameReader()
    reader.feed(frame)
    (found,) = reader.frames()
    assert len(found) == len(frame) - HEADER_SIZE
    return found


@given(st.data(), OPERATIONS, st.integers(0, 2**63 - 1), st.text(max_size=100))
@settings(deadline=None)
def test_arguments_round_trip(data, operation, number, rid):
    argument = data.draw(values(operation.argument))
    envelope = decode_request(payload(encode_request(CORE_OPERATIONS, operation, number, argument, rid)))
    assert (envelope.v, envelope.id, envelope.op, envelope.rid) == (
        CORE_OPERATIONS.version,
        number,
        operation.name,
        rid[:64],
    )
    assert decode_argument(operation, envelope.body) == argument


@given(st.data(), OPERATIONS, st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_results_round_trip(data, operation, number):
    result = data.draw(values(operation.result))
    reply = decode_reply(payload(encode_result(number, result)))
    assert (reply.id, reply.ok) == (number, True)
    assert decode_result(operation, reply) == result


@given(ERRORS, OPERATIONS)
@settings(deadline=None)
def test_errors_round_trip(error, operation):
    reply = decode_reply(payload(encode_error(7, error)))
    try:
        decode_result(operation, reply)
    except CaError as raised:
        assert ErrorBody.of(raised) == ErrorBody.of(error)  # noqa: PT017 - an error that was expected
    else:
        raise AssertionError("no error")


def feed_to_everything(data: bytes, operation: Operation) -> None:
    """What a peer may send, taken for each thing that it may be."""
    for decode in (decode_request, decode_reply):
        try:
            envelope = decode(data)
        except FrameError:
            continue
        for body in (envelope.body, msgspec.Raw(data)):
            try:
                decode_argument(operation, body)
            except CaError as error:
                assert error.kind is ErrorKind.MALFORMED  # noqa: PT017
        if decode is decode_reply:
            with suppress(CaError):
                decode_result(operation, envelope)
    try:
        decode_argument(operation, msgspec.Raw(data))
    except CaError as error:
        assert error.kind is ErrorKind.MALFORMED  # noqa: PT017


MSGPACK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["v", "id", "op", "ok", "rid", "body", "kind", "detail", "x"]), inner, max_size=6
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300), OPERATIONS)
@example(b"\x91" * 100_000, CORE_OPERATIONS.operations["issue"])
@example(b"\x81\xa1v" * 100_000, CORE_OPERATIONS.operations["issue"])
@settings(deadline=None)
def test_arbitrary_bytes(data, operation):
    feed_to_everything(data, operation)


@given(MSGPACK, OPERATIONS)
@settings(deadline=None)
def test_arbitrary_messages(tree, operation):
    feed_to_everything(msgspec.msgpack.encode(tree), operation)


@given(st.data(), OPERATIONS)
@settings(deadline=None)
def test_mutated_frames(data, operation):
    argument = data.draw(values(operation.argument))
    frame = bytearray(payload(encode_request(CORE_OPERATIONS, operation, 1, argument)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    feed_to_everything(bytes(frame), operation)


def read_in(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """The frames that a reader makes of a stream, and whether it refused the rest."""
    reader, found = FrameReader(), []
    for piece in pieces:
        reader.feed(piece)
        try:
            found.extend(reader.frames())
        except FrameError:
            return found, True
    return found, False


def cut(data: bytes, at: list[int]) -> list[bytes]:
    bounds = [0, *sorted(position % (len(data) + 1) for position in at), len(data)]
    return [data[begin:end] for begin, end in pairwise(bounds)]


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(0, 500), max_size=8))
def test_frames_in_any_pieces(frames, at):
    """Whole, byte by byte, and cut anywhere."""
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    for pieces in ([stream], [bytes([octet]) for octet in stream], cut(stream, at)):
        assert read_in(pieces) == (frames, False)


@given(st.integers(MAX_FRAME + 1, 2**32 - 1), st.binary(max_size=20))
def test_a_frame_that_is_too_long_is_refused_by_its_length(length, more):
    assert read_in([length.to_bytes(4, "big")]) == ([], True)
    assert read_in([(3).to_bytes(4, "big"), b"abc" + length.to_bytes(4, "big") + more]) == ([b"abc"], True)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_stream_in_any_pieces(stream, at):
    """However it comes, the same frames are made of it, and the same is refused."""
    whole = read_in([stream])
    for pieces in ([bytes([octet]) for octet in stream], cut(stream, at)):
        found, refused = read_in(pieces)
        assert (found, refused) == whole
