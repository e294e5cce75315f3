"""The core's port over a real Unix socket: values, errors, limits, hostile peers, loss and drain."""

import asyncio
import contextlib
import os
import socket
import stat
import struct

import msgspec
import pytest
import structlog

from ca_server.core.ports import Hello, OcspQuery, Ping
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind, SubError
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.rpc import messages
from ca_server.rpc.client import PortClient, RpcCorePort
from ca_server.rpc.messages import CORE_OPERATIONS, MAX_FRAME, FrameError, FrameReader
from ca_server.rpc.server import serve_unix


def frame(envelope: object) -> bytes:
    payload = msgspec.msgpack.encode(envelope)
    return struct.pack(">I", len(payload)) + payload


def ping_frame(**changes: object) -> bytes:
    return frame({"v": 1, "id": 7, "op": "ping", "body": {}} | changes)


async def exchange(path, data: bytes, expected: int = 100) -> list[dict]:
    """Send octets as they are; return the replies until there are `expected` or the peer closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    frames = FrameReader()
    replies: list[dict] = []
    try:
        async with asyncio.timeout(10):
            while len(replies) < expected and (chunk := await reader.read(65536)):
                frames.feed(chunk)
                replies += [msgspec.msgpack.decode(payload) for payload in frames.frames()]
    except ConnectionResetError:
        return replies
    finally:
        writer.close()
    return replies


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)


class TestValues:
    async def test_every_operation_carries_its_values(self, serve, port, core, request_for, bodies):
        registration, revocation = bodies
        await serve()
        assert (await port.hello(Hello("front-1", 1))).nonce_key == bytes(range(32))
        assert (await port.ping(Ping())).audit_lag_seconds == 0.5
        request = request_for("order-1")
        issued = await port.issue(request)
        assert core.issued == [request]
        assert issued.certificate_der == request.csr_der
        assert issued.chain == (b"ca",)
        assert issued.not_before.tzinfo is not None
        assert issued.not_before.microsecond == 123456
        assert (await port.revoke(revocation)).reason is RevocationReason.KEY_COMPROMISE
        assert (await port.respond_ocsp(OcspQuery(b"ab"))).response_der == b"abab"
        assert (await port.register_account(registration)).account == registration.account

    async def test_an_error_arrives_whole(self, serve, port, core, request_for):
        await serve()
        name = Identifier(IdentifierType.DNS, "evil.example")
        part = SubError(ErrorKind.REJECTED_IDENTIFIER, "not ours", name, "names.dns_suffixes")
        core.error = CaError(ErrorKind.POLICY_DENIED, "no", rule="names", suberrors=(part,), retry_after=9)
        with pytest.raises(CaError) as caught:
            await port.issue(request_for("x"))
        error = caught.value
        assert (error.kind, error.detail, error.rule, error.suberrors, error.retry_after) == (
            ErrorKind.POLICY_DENIED,
            "no",
            "names",
            (part,),
            9,
        )

    async def test_an_error_too_large_for_a_frame_arrives_without_its_parts(self, serve, port, core, request_for):
        await serve()
        core.error = CaError(ErrorKind.POLICY_DENIED, "no", suberrors=(SubError(ErrorKind.MALFORMED, "x" * MAX_FRAME),))
        with pytest.raises(CaError, match="no") as caught:
            await port.issue(request_for("x"))
        assert caught.value.suberrors == ()

    async def test_a_bug_in_the_handler_is_internal_and_tells_nothing(self, serve, port, core, request_for):
        await serve()
        core.error = RuntimeError("pin=1234")
        with pytest.raises(CaError) as caught:
            await port.issue(request_for("x"))
        assert caught.value.kind is ErrorKind.INTERNAL
        assert "1234" not in caught.value.detail
        core.error = None
        await port.issue(request_for("y"))

    async def test_peer_and_request_id_reach_the_handler(self, serve, port, core, request_for):
        await serve()
        await port.hello(Hello("front-1", 1))
        assert core.peer is not None
        assert (core.peer.uid, core.peer.gid, core.peer.pid) == (os.getuid(), os.getgid(), os.getpid())
        with structlog.contextvars.bound_contextvars(request_id="req-1"):
            await port.issue(request_for("x"))
        assert core.request_id == "req-1"
        await port.issue(request_for("y"))
        assert core.request_id is None

    async def test_a_result_too_large_is_an_internal_error(self, serve, port):
        await serve()
        with pytest.raises(CaError) as caught:
            await port.respond_ocsp(OcspQuery(b"x" * (MAX_FRAME * 2 // 3)))
        assert caught.value.kind is ErrorKind.INTERNAL

    async def test_a_request_too_large_is_refused_by_the_client(self, serve, socket_path, request_for):
        await serve()
        client = PortClient(socket_path, CORE_OPERATIONS, max_pending=1)
        port = RpcCorePort(client)
        for _ in range(3):
            with pytest.raises(CaError) as caught:
                await port.issue(request_for("x", b"x" * MAX_FRAME))
            assert caught.value.kind is ErrorKind.TOO_LARGE, "none of those before waits still"
        await port.ping(Ping())


class TestHostilePeers:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            pytest.param(ping_frame(op="drop_all"), "malformed", id="unknown operation"),
            pytest.param(ping_frame(op="__class__"), "malformed", id="attribute of the handler"),
            pytest.param(ping_frame(v=2), "malformed", id="other version"),
            pytest.param(ping_frame(op="issue", body={"profile": 3}), "malformed", id="wrong argument"),
            pytest.param(ping_frame(op="respond_ocsp", body={"request_der": "text"}), "malformed", id="wrong type"),
        ],
    )
    async def test_answered_with_an_error_and_the_connection_lives(self, serve, socket_path, data, kind):
        await serve()
        replies = await exchange(socket_path, data + ping_frame(id=8), 2)
        assert [(reply["id"], reply["ok"]) for reply in sorted(replies, key=lambda r: r["id"])] == [
            (7, False),
            (8, True),
        ]
        assert next(reply for reply in replies if reply["id"] == 7)["body"]["kind"] == kind

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(struct.pack(">I", MAX_FRAME + 1), id="oversized"),
            pytest.param(b"\xff\xff\xff\xff", id="4 GiB"),
            pytest.param(frame([1, 2, 3]), id="not an envelope"),
            pytest.param(struct.pack(">I", 3) + b"\xc1\xc1\xc1", id="not msgpack"),
            pytest.param(struct.pack(">I", 0), id="empty frame"),
            pytest.param(frame({"v": 1, "id": -1, "op": "ping", "body": {}}), id="negative id"),
            pytest.param(frame({"v": 1, "id": 1, "op": "x" * 65, "body": {}}), id="long name"),
            pytest.param(
                struct.pack(">I", 200_005) + b"\x81\xa1z" + b"\x91" * 200_001 + b"\xc0", id="nested without end"
            ),
            pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        ],
    )
    async def test_cut_off_after_earlier_replies(self, serve, socket_path, port, data):
        server = await serve()
        unknown = ping_frame(id=3, op="nothing")
        replies = await exchange(socket_path, unknown + data + ping_frame(id=9))
        assert [reply["id"] for reply in replies] == [3]
        await until(lambda: not server.connections)
        assert (await port.ping(Ping())).token_ok

    async def test_frames_may_come_octet_by_octet(self, serve, socket_path):
        await serve()
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
        for octet in ping_frame():
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0)
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        assert msgspec.msgpack.decode(await reader.readexactly(length))["ok"] is True
        writer.close()

    async def test_a_uid_that_is_not_allowed_is_not_heard(self, serve, socket_path, core, request_for):
        await serve(allowed_uids=frozenset({os.getuid() + 1}))
        assert await exchange(socket_path, ping_frame()) == []
        client = RpcCorePort.at(socket_path)
        with pytest.raises(CaError) as caught:
            await client.issue(request_for("x"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert core.issued == []
        await client.close()

    async def test_nobody_allowed_is_nobody_heard(self, serve, socket_path):
        await serve(allowed_uids=frozenset())
        assert await exchange(socket_path, ping_frame()) == []

    async def test_connections_are_bounded(self, serve, socket_path, port):
        await serve(max_connections=1)
        await port.ping(Ping())
        assert await exchange(socket_path, ping_frame()) == []
        await port.ping(Ping())

    async def test_requests_in_flight_are_bounded_and_none_is_lost(self, serve, port, core, request_for):
        await serve(max_in_flight_per_connection=4)
        core.gate.clear()
        calls = [asyncio.create_task(port.issue(request_for(str(i)))) for i in range(40)]
        await until(lambda: core.running == 4)
        await asyncio.sleep(0.05)
        assert len(core.issued) == 4
        core.gate.set()
        await asyncio.gather(*calls)
        assert len(core.issued) == 40
        assert core.most_running == 4

    async def test_a_peer_that_reads_nothing_is_not_served_on(self, serve, socket_path, core):
        """Replies that are not taken stop the reading of requests: memory stays bounded."""
        await serve()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            peer.connect(str(socket_path))
            query = ping_frame(op="respond_ocsp", body={"request_der": b"x" * 100_000})
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 300:
                    async with asyncio.timeout(0.5):
                        await asyncio.get_running_loop().sock_sendall(peer, query)
                    sent += 1
            assert sent < 300


class TestLoss:
    async def test_a_lost_connection_is_made_again_and_the_call_repeated(self, serve, port, core, request_for):
        first = await serve()
        core.gate.clear()
        call = asyncio.create_task(port.issue(request_for("x")))
        await until(lambda: core.running == 1)
        for connection in list(first.connections):
            connection.transport.abort()
        await until(lambda: len(core.issued) == 2)
        core.gate.set()
        assert (await call).serial == "0a" * 20

    async def test_a_call_is_repeated_once_only(self, serve, port, core, request_for):
        server = await serve()
        core.gate.clear()
        call = asyncio.create_task(port.issue(request_for("x")))
        for count in (1, 2):
            await until(lambda count=count: len(core.issued) == count)
            for connection in list(server.connections):
                connection.transport.abort()
        with pytest.raises(CaError) as caught:
            await call
        assert (caught.value.kind, caught.value.retry_after) == (ErrorKind.UNAVAILABLE, 2)
        assert len(core.issued) == 2

    async def test_what_is_not_idempotent_is_never_repeated(self, socket_path, core, request_for):
        operation = messages.Operation("issue", type(request_for("x")), object, idempotent=False)
        table = messages.OperationTable("other", 1, (operation,))
        server = await serve_unix(socket_path, table, core, allowed_uids=frozenset({os.getuid()}))
        client = PortClient(socket_path, table)
        core.gate.clear()
        call = asyncio.create_task(client.call("issue", request_for("x")))
        await until(lambda: core.running == 1)
        for connection in list(server.connections):
            connection.transport.abort()
        with pytest.raises(CaError):
            await call
        assert len(core.issued) == 1
        core.gate.set()
        await client.close()
        await server.close(1)

    async def test_a_core_that_comes_later_is_found(self, serve, port):
        call = asyncio.create_task(port.ping(Ping()))
        await asyncio.sleep(0.05)
        await serve()
        assert (await call).token_ok

    async def test_no_core_is_unavailable_after_the_call_s_time(self, socket_path):
        client = PortClient(socket_path, CORE_OPERATIONS)
        with pytest.raises(CaError) as caught:
            await client.call("ping", Ping(), timeout=0.1)
        assert (caught.value.kind, caught.value.retry_after) == (ErrorKind.UNAVAILABLE, 2)
        await client.close()

    async def test_no_answer_is_unavailable_after_the_call_s_time(self, serve, socket_path, core, request_for):
        await serve()
        core.gate.clear()
        client = PortClient(socket_path, CORE_OPERATIONS)
        with pytest.raises(CaError) as caught:
            await client.call("issue", request_for("x"), timeout=0.1)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        core.gate.set()
        assert await client.call("ping", Ping()) is not None
        await client.close()

    async def test_too_many_waiting_calls_are_shed(self, serve, socket_path, core, request_for):
        await serve()
        core.gate.clear()
        client = PortClient(socket_path, CORE_OPERATIONS, max_pending=1)
        call = asyncio.create_task(client.call("issue", request_for("x")))
        await until(lambda: core.running == 1)
        with pytest.raises(CaError) as caught:
            await client.call("ping", Ping())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        core.gate.set()
        await call
        await client.close()

    async def test_a_peer_that_speaks_another_protocol_is_left(self, socket_path):
        async def answer(_reader, writer):
            writer.write(b"\xff" * 64)

        server = await asyncio.start_unix_server(answer, str(socket_path))
        client = PortClient(socket_path, CORE_OPERATIONS)
        with pytest.raises(CaError) as caught:
            await client.call("ping", Ping(), timeout=3)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await client.close()
        server.close()

    async def test_closing_fails_what_waits(self, serve, socket_path, core, request_for):
        await serve()
        core.gate.clear()
        client = PortClient(socket_path, CORE_OPERATIONS)
        call = asyncio.create_task(client.call("issue", request_for("x")))
        await until(lambda: core.running == 1)
        await client.close()
        with pytest.raises(CaError):
            await call
        with pytest.raises(CaError):
            await client.call("ping", Ping())


class TestDrain:
    async def test_what_was_begun_is_answered(self, serve, socket_path, core, request_for):
        server = await serve()
        core.gate.clear()
        client = PortClient(socket_path, CORE_OPERATIONS)
        call = asyncio.create_task(client.call("issue", request_for("x")))
        await until(lambda: core.running == 1)
        closing = asyncio.create_task(server.close(5))
        await until(lambda: not socket_path.exists())
        core.gate.set()
        assert (await call).serial == "0a" * 20
        await closing
        assert not server.connections or all(c.transport.is_closing() for c in server.connections)
        await client.close()

    async def test_what_takes_too_long_is_told_so(self, serve, socket_path, core, request_for):
        server = await serve()
        core.gate.clear()
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
        writer.write(ping_frame(op="issue", body=request_for("x")))
        await until(lambda: core.running == 1)
        await server.close(0.05)
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        reply = msgspec.msgpack.decode(await reader.readexactly(length))
        assert (reply["ok"], reply["body"]["kind"]) == (False, "unavailable")
        writer.close()

    async def test_a_handler_has_a_time_limit(self, serve, port, core, request_for):
        await serve(handler_seconds=0.05)
        core.gate.clear()
        with pytest.raises(CaError) as caught:
            await port.issue(request_for("x"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert core.running == 0


class TestSocketFile:
    async def test_its_mode_is_the_one_asked_for(self, serve, socket_path):
        await serve(mode=0o620)
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o620

    async def test_a_dead_process_s_socket_is_replaced(self, serve, port, socket_path):
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(socket_path))
        dead.close()
        await serve()
        assert (await port.ping(Ping())).token_ok

    async def test_a_living_process_s_socket_is_not_taken(self, serve, port):
        await serve()
        with pytest.raises(ConfigurationError, match="another process is serving"):
            await serve()
        assert (await port.ping(Ping())).token_ok

    async def test_another_file_is_not_removed(self, serve, socket_path):
        socket_path.write_text("precious")
        with pytest.raises(ConfigurationError, match="no socket"):
            await serve()
        assert socket_path.read_text() == "precious"

    async def test_a_path_too_long_is_named(self, tmp_path, core):
        with pytest.raises(ConfigurationError, match="107 octets"):
            await serve_unix(tmp_path / ("x" * 108), CORE_OPERATIONS, core, allowed_uids=frozenset({0}))

    async def test_a_handler_that_lacks_an_operation_is_refused_at_start(self, socket_path):
        with pytest.raises(TypeError, match="hello"):
            await serve_unix(socket_path, CORE_OPERATIONS, object(), allowed_uids=frozenset({0}))


class TestFrames:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_any_cut_gives_the_same_frames(self, size):
        payloads = [b"", b"a", b"b" * 300, b"c" * 5]
        stream = b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)
        reader = FrameReader()
        found = []
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
            found += reader.frames()
        assert found == payloads

    def test_the_limit_is_exact(self):
        reader = FrameReader()
        reader.feed(struct.pack(">I", MAX_FRAME))
        assert reader.next_frame() is None
        reader = FrameReader()
        reader.feed(struct.pack(">I", MAX_FRAME + 1))
        with pytest.raises(FrameError):
            reader.next_frame()

    def test_an_operation_is_in_a_table_once(self):
        operation = messages.Operation("ping", Ping, Ping, idempotent=True)
        with pytest.raises(ValueError, match="twice"):
            messages.OperationTable("x", 1, (operation, operation))
