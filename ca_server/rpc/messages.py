"""The port's wire format: which operations there are, frames and envelopes. No I/O here.

A frame is a length (4 bytes, big-endian) and a msgpack envelope: a request `{v, id, op, rid, body}` or a reply
`{id, ok, body}`, whose body is the argument, the result or the error. Bodies are decoded strictly into the
operation's types. Integers have 64 bits in msgpack: serial numbers are text.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ca_server.core.ports import Health, Hello, OcspAnswer, OcspQuery, Ping, Welcome
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.certificates import IssuedCertificate, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import EnrollmentRequest
from ca_server.domain.errors import CaError, ErrorKind, SubError

MAX_FRAME = 1024 * 1024
"""Octets of an envelope."""
_LENGTH = struct.Struct(">I")
HEADER_SIZE = _LENGTH.size
DEFAULT_TIMEOUT = 30.0
"""Seconds that a call may take, reconnecting included."""

_encoder = msgspec.msgpack.Encoder()


class FrameError(ValueError):
    """The peer sent something that is no frame of this port; the connection can't be used any more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Operation:
    """One operation: the handler's method of this name takes one argument and returns one result.

    `argument` and `result` are types that msgspec encodes: frozen dataclasses, or None for no result. Only
    idempotent operations are sent again after a lost connection. `timeout` is in seconds.
    """

    __slots__ = ("argument", "argument_decoder", "idempotent", "name", "result", "result_decoder", "timeout")

    def __init__(
        self, name: str, argument: object, result: object, *, idempotent: bool, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.name = name
        self.argument = argument
        self.result = result
        self.idempotent = idempotent
        self.timeout = timeout
        self.argument_decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(argument)
        self.result_decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(result)


class OperationTable:
    """The operations of one port. `name` labels its metrics and logs; a peer of another `version` is refused."""

    def __init__(self, name: str, version: int, operations: tuple[Operation, ...]) -> None:
        self.name = name
        self.version = version
        self.operations = {operation.name: operation for operation in operations}
        if len(self.operations) != len(operations):
            raise ValueError(f"port {name}: an operation is there twice")


PORT_VERSION = 1

CORE_OPERATIONS = OperationTable(
    "core",
    PORT_VERSION,
    (
        Operation("hello", Hello, Welcome, idempotent=True, timeout=10.0),
        Operation("ping", Ping, Health, idempotent=True, timeout=5.0),
        Operation("issue", EnrollmentRequest, IssuedCertificate, idempotent=True),
        Operation("revoke", RevocationRequest, RevokedCertificate, idempotent=True),
        Operation("respond_ocsp", OcspQuery, OcspAnswer, idempotent=True, timeout=10.0),
        Operation("register_account", AccountRegistration, AccountRegistered, idempotent=True),
    ),
)
"""What front processes may ask of the core (`ca_server.core.ports.CorePort`)."""


class RequestEnvelope(msgspec.Struct):
    """A request; `rid` is the request id of the front-end's log, bound in the core's log too."""

    v: int
    id: Annotated[int, msgspec.Meta(ge=0)]
    op: Annotated[str, msgspec.Meta(max_length=64)]
    body: msgspec.Raw
    rid: Annotated[str, msgspec.Meta(max_length=64)] = ""


class ReplyEnvelope(msgspec.Struct):
    """A reply to the request of the same `id`; the body is an `ErrorBody` where `ok` is false."""

    id: int
    ok: bool
    body: msgspec.Raw


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """A CaError on its way."""

    kind: ErrorKind
    detail: str
    rule: str | None = None
    suberrors: tuple[SubError, ...] = ()
    retry_after: int | None = None

    @classmethod
    def of(cls, error: CaError) -> "ErrorBody":
        """Take an error apart."""
        return cls(error.kind, error.detail, error.rule, error.suberrors, error.retry_after)

    def error(self) -> CaError:
        """Put the error together again."""
        return CaError(self.kind, self.detail, rule=self.rule, suberrors=self.suberrors, retry_after=self.retry_after)


_request_decoder = msgspec.msgpack.Decoder(RequestEnvelope)
_reply_decoder = msgspec.msgpack.Decoder(ReplyEnvelope)
_error_decoder = msgspec.msgpack.Decoder(ErrorBody)


def _frame(envelope: msgspec.Struct) -> bytes:
    payload = _encoder.encode(envelope)
    if len(payload) > MAX_FRAME:
        raise FrameError("oversized", f"a frame of {len(payload)} octets")
    return _LENGTH.pack(len(payload)) + payload


def encode_request(table: OperationTable, operation: Operation, number: int, argument: object, rid: str = "") -> bytes:
    """Make the frame of a request. TOO_LARGE where it has more than MAX_FRAME octets."""
    body = msgspec.Raw(_encoder.encode(argument))
    try:
        return _frame(RequestEnvelope(table.version, number, operation.name, body, rid[:64]))
    except FrameError as error:
        raise CaError(ErrorKind.TOO_LARGE, "the request is larger than the core takes") from error


def encode_result(number: int, result: object) -> bytes:
    """Make the frame of a reply. FrameError where it has more than MAX_FRAME octets."""
    return _frame(ReplyEnvelope(number, ok=True, body=msgspec.Raw(_encoder.encode(result))))


def encode_error(number: int, error: CaError) -> bytes:
    """Make the frame of an error reply; suberrors are left out where they would not fit."""
    body = ErrorBody.of(error)
    try:
        return _frame(ReplyEnvelope(number, ok=False, body=msgspec.Raw(_encoder.encode(body))))
    except FrameError:
        body = ErrorBody(error.kind, error.detail[:1000], error.rule, (), error.retry_after)
        return _frame(ReplyEnvelope(number, ok=False, body=msgspec.Raw(_encoder.encode(body))))


def decode_request(payload: bytes) -> RequestEnvelope:
    """Decode an envelope. Raises FrameError."""
    try:
        return _request_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FrameError("malformed", "not a request envelope") from error


def decode_reply(payload: bytes) -> ReplyEnvelope:
    """Decode an envelope. Raises FrameError."""
    try:
        return _reply_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FrameError("malformed", "not a reply envelope") from error


def decode_argument(operation: Operation, body: msgspec.Raw) -> object:
    """Decode a request's body. MALFORMED where it is not of the operation's argument type."""
    try:
        return operation.argument_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise CaError(ErrorKind.MALFORMED, f"the argument of {operation.name} is malformed") from error


def decode_result(operation: Operation, reply: ReplyEnvelope) -> object:
    """The result of a reply; raises the CaError that it carries, INTERNAL where it is not of the right type."""
    try:
        if reply.ok:
            return operation.result_decoder.decode(reply.body)
        body = _error_decoder.decode(reply.body)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise CaError(ErrorKind.INTERNAL, f"the answer to {operation.name} is malformed") from error
    raise body.error()


class FrameReader:
    """Cuts a stream of octets, fed in pieces of any size, into frames. Holds at most one frame and one piece more."""

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame's payload, None where more must be read. FrameError for one beyond the limit."""
        begin = self._start + HEADER_SIZE
        if len(self._buffer) < begin:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length > MAX_FRAME:
            raise FrameError("oversized", f"a frame of {length} octets")
        end = begin + length
        if len(self._buffer) < end:
            return None
        self._start = end
        # msgspec.Raw keeps the payload alive and refers into it: it must not be the buffer that is reused.
        return bytes(memoryview(self._buffer)[begin:end])

    def frames(self) -> Iterator[bytes]:
        """All whole frames that were read."""
        while (payload := self.next_frame()) is not None:
            yield payload
