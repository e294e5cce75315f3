"""The anchor of a node that does not sequence: it follows the log that another node grows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.audit import EventFactory, Sequencer
from ca_server.core.notes import NoteKey, NoteSignature, TreeHead, checkpoint_text, encode_note
from ca_server.core.ports import SigningKey
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database

Make = Callable[..., Sequencer]
ORIGIN = "log.example.test/audit"


async def add(store: SqlAuditStore, events: EventFactory, count: int = 1) -> None:
    await store.append([events.make(EventType.ORDER_CREATED, object=f"o{number}") for number in range(count)])


@pytest.fixture
def own(anchor: FileAnchor) -> FileAnchor:
    """The anchor of the second node."""
    return FileAnchor(anchor.path.with_name("own"))


@pytest.fixture
def second(sequence: Make, own: FileAnchor) -> Sequencer:
    return sequence(holder="b/1", anchor=own)


@pytest.fixture
async def first(sequence: Make) -> AsyncIterator[Sequencer]:
    """A sequencer at work, which holds the lease."""
    sequencer, stop = sequence(holder="a/1"), asyncio.Event()
    running = asyncio.create_task(sequencer.run(stop))
    yield sequencer
    stop.set()
    await running


async def sealed(sequencer: Sequencer, size: int) -> None:
    async with asyncio.timeout(20):
        while sequencer.size < size:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


async def test_each_checkpoint_of_another_node_is_taken_up(
    store: SqlAuditStore,
    events: EventFactory,
    first: Sequencer,
    second: Sequencer,
    anchor: FileAnchor,
    own: FileAnchor,
    key: SigningKey,
) -> None:
    for size in (1, 2, 3):
        await add(store, events)
        await sealed(first, size)
        signed = len(key.signed)
        assert await second.run_once() == 0
        assert await own.read() == await anchor.read() is not None
        assert second.size == size
        assert len(key.signed) == signed, "who follows signs nothing"


@pytest.mark.parametrize(("size", "said"), [(9, "rolled back"), (2, "forked")])
async def test_a_log_that_is_not_the_one_that_was_followed(
    store: SqlAuditStore,
    events: EventFactory,
    sequence: Make,
    second: Sequencer,
    own: FileAnchor,
    database: Database,
    key: SigningKey,
    size: int,
    said: str,
) -> None:
    """Even where the node that sequenced is lost with its anchor, and another has taken its place."""
    note_key = NoteKey(ORIGIN, key.spki_der)
    seen = checkpoint_text(TreeHead(ORIGIN, size, b"r" * 32))
    note = encode_note(seen, [NoteSignature(ORIGIN, note_key.key_id, await key.sign(seen.encode()))])
    await own.swap(None, note)
    await add(store, events, 3)
    await sequence(holder="a/1").run_once()
    now = datetime.now(UTC)
    await SqlCoordinationStore(database).acquire_lease("audit-sequencer", "c/1", now, timedelta(hours=1))
    with pytest.raises(CaError) as caught:
        await second.run_once()
    assert caught.value.kind is ErrorKind.INTERNAL
    assert said in caught.value.detail
    assert await own.read() == note
