"""Checkpoints in syslog: one line each, in order, never in the way of anything."""

import asyncio
import contextlib
import re
import socket
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ca_server.core.audit import EventFactory
from ca_server.domain.audit import Checkpoint, EventType
from ca_server.domain.syslog import SyslogAddress
from ca_server.store import syslog as syslog_module
from ca_server.store.audit import SqlAuditStore
from ca_server.store.syslog import WAITING, SyslogAnchor, syslog_line

# RFC 5424 section 6: PRI VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP NILVALUE SP MSG
RFC_5424 = re.compile(
    rb"<109>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [\x21-\x7e]{1,255} ca-server \d{1,128} checkpoint - "
    rb"audit log (\S+) size=(\d+) root=([0-9a-f]{64}) note=(\S+)"
)


def checkpoint(size: int, origin: str = "ca-server/default") -> Checkpoint:
    return Checkpoint(origin, size, bytes(32), b"note %d\n" % size, datetime(2026, 11, 1, 12, tzinfo=UTC))


@pytest.fixture
def outcomes() -> list[str]:
    return []


@contextlib.asynccontextmanager
async def running(address: SyslogAddress, outcomes: list[str]) -> AsyncIterator[SyslogAnchor]:
    anchor = SyslogAnchor(address, observe=outcomes.append, first_pause=0.01)
    anchor.start()
    yield anchor
    await anchor.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture(params=["unix", "udp", "tcp"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SyslogAddress, Callable[[], bytes]]]:
    """A syslog of each kind: its address, and what receives one message."""
    if request.param == "unix":
        where, received = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), str(tmp_path / "log")
        where.bind(received)
        address = SyslogAddress.parse(f"unix:{received}")
    else:
        kind = socket.SOCK_DGRAM if request.param == "udp" else socket.SOCK_STREAM
        where = socket.socket(socket.AF_INET, kind)
        where.bind(("127.0.0.1", 0))
        address = SyslogAddress.parse(f"{request.param}://127.0.0.1:{where.getsockname()[1]}")
        if request.param == "tcp":
            where.listen()
    where.settimeout(20)

    def receive() -> bytes:
        if address.kind != "tcp":
            return where.recv(65_536)
        connection, _ = where.accept()
        with connection:
            connection.settimeout(20)
            framed = b"".join(iter(lambda: connection.recv(4096), b""))
        length, _, line = framed.partition(b" ")
        assert int(length) == len(line)
        return line

    yield address, receive
    where.close()


async def test_each_checkpoint_is_a_line(
    listener: tuple[SyslogAddress, Callable[[], bytes]], outcomes: list[str]
) -> None:
    address, receive = listener
    async with running(address, outcomes) as anchor:
        for size in (1, 2):
            anchor.publish(checkpoint(size))
            found = RFC_5424.fullmatch(await asyncio.to_thread(receive))
            assert found is not None
            assert found[1] == b"ca-server/default"
            assert int(found[2]) == size
            assert b64decode(found[4]) == b"note %d\n" % size
    assert outcomes == ["sent", "sent"]


async def test_what_a_sequencer_anchors_is_sent(
    tmp_path: Path, outcomes: list[str], store: SqlAuditStore, events: EventFactory, sequence: Callable
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as where:
        where.bind(str(tmp_path / "log"))
        async with running(SyslogAddress("unix", str(tmp_path / "log")), outcomes) as anchor:
            sequencer = sequence(publish=anchor.publish)
            await store.append([events.make(EventType.SERVER_START)])
            await sequencer.run_once()
        found = RFC_5424.fullmatch(where.recv(65_536))
    assert found is not None
    latest = await store.latest_checkpoint()
    assert latest is not None
    assert b64decode(found[4]) == latest[0].note
    assert bytes.fromhex(found[3].decode()) == latest[0].root


async def test_syslog_that_is_away_is_tried_again(tmp_path: Path, outcomes: list[str]) -> None:
    path = tmp_path / "log"
    async with running(SyslogAddress("unix", str(path)), outcomes) as anchor:
        anchor.publish(checkpoint(1))
        anchor.publish(checkpoint(2))
        await until(lambda: outcomes.count("failed") >= 2)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as where:
            where.bind(str(path))
            await until(lambda: outcomes.count("sent") == 2)
            assert [RFC_5424.fullmatch(where.recv(65_536))[2] for _ in range(2)] == [b"1", b"2"]  # type: ignore[index]


async def test_a_syslog_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch, outcomes: list[str]) -> None:
    """What waits is bounded, the newest are kept, and the event loop goes on."""
    sent: list[bytes] = []
    go_on = threading.Event()

    def hang(_address: SyslogAddress, line: bytes) -> None:
        go_on.wait(20)
        sent.append(line)

    monkeypatch.setattr(syslog_module, "_send", hang)
    async with running(SyslogAddress("udp", "192.0.2.1", 514), outcomes) as anchor:
        for size in range(1, WAITING + 11):
            anchor.publish(checkpoint(size))
            await asyncio.sleep(0)
        assert outcomes.count("dropped") == 10
        go_on.set()
        await until(lambda: not anchor._waiting)
    assert sent[-1] == syslog_line(checkpoint(WAITING + 10), anchor._host, int(sent[-1].split(b" ")[4]))
    assert WAITING <= len(sent) <= WAITING + 1


async def test_a_stop_does_not_wait_for_a_syslog_that_is_away(
    tmp_path: Path, outcomes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog_module, "CLOSE_SECONDS", 3600.0)
    async with running(SyslogAddress("unix", str(tmp_path / "none")), outcomes) as anchor:
        anchor.publish(checkpoint(1))
        await until(lambda: "failed" in outcomes)


def test_a_hostile_host_name_or_origin_stays_in_its_field() -> None:
    line = syslog_line(checkpoint(1, "a\n<0>1 b"), "ho st\n", 7)
    assert line.startswith(b"<109>1 2026-11-01T12:00:00.000Z - ca-server 7 checkpoint - audit log a\\n<0>1 b size=1 ")
    assert b"\n" not in line


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/dev/log", SyslogAddress("unix", "/dev/log")),
        ("udp://log.example", SyslogAddress("udp", "log.example", 514)),
        ("tcp://log.example", SyslogAddress("tcp", "log.example", 601)),
        ("tcp://[2001:db8::1]:6514", SyslogAddress("tcp", "2001:db8::1", 6514)),
    ],
)
def test_addresses(text: str, address: SyslogAddress) -> None:
    assert SyslogAddress.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "/dev/log",
        "unix:log",
        "udp://",
        "tcp://host:0",
        "tcp://host:99999",
        "http://host",
        "udp://u@host",
        "udp://host/x",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="write unix:/dev/log"):
        SyslogAddress.parse(text)
