"""The log's tables: append only, numbered without a gap, sealed by the newest lease alone."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ca_server.core.audit import EventFactory, Sequencer, decode_event, encode_event, leaf_members
from ca_server.core.ports import Lease
from ca_server.domain.audit import Checkpoint, EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit import SqlAuditStore, insert_events
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database

MINUTE = timedelta(minutes=1)


async def sequences(store: SqlAuditStore) -> list[int]:
    return [leaf_members(leaf)["sequence"] for _, leaf in await store.pending(100)]


async def take_lease(database: Database, holder: str = "a", now: datetime | None = None) -> Lease:
    coordination = SqlCoordinationStore(database)
    lease = await coordination.acquire_lease("audit-sequencer", holder, now or datetime.now(UTC), MINUTE)
    assert lease is not None
    return lease


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint("log", size, bytes(32), b"log\nnote", datetime(2026, 11, 24, tzinfo=UTC))


async def test_what_is_inserted_is_pending_in_order(store: SqlAuditStore, events: EventFactory) -> None:
    made = [events.make(EventType.ACCOUNT_CREATED, object=f"account:{n}") for n in range(5)]
    await store.append(made[:2])
    await store.append(made[2:])
    pending = await store.pending(10)
    assert [event_id for event_id, _ in pending] == [event.id for event in made]
    assert [decode_event(leaf) for _, leaf in pending] == made
    assert len(await store.pending(3)) == 3


async def test_no_gap_is_left_by_what_was_rolled_back(
    store: SqlAuditStore, database: Database, events: EventFactory
) -> None:
    await store.append([events.make(EventType.SERVER_START)])

    def fails(connection: Connection) -> None:
        insert_events(connection, [events.make(EventType.ACCOUNT_CREATED), events.make(EventType.ACCOUNT_CREATED)])
        raise CaError(ErrorKind.CONFLICT, "no")

    with pytest.raises(CaError):
        await database.write(fails)
    events.make(EventType.ACCOUNT_CREATED)  # made, and never committed
    await store.append([events.make(EventType.ORDER_CREATED), events.make(EventType.ORDER_CREATED)])
    await store.append([events.make(EventType.SERVER_STOP)])
    assert await sequences(store) == [1, 2, 3, 4]


async def test_each_process_is_numbered_alone(store: SqlAuditStore, events: EventFactory) -> None:
    other = EventFactory(node="node", process="front", software="test", configuration="0", instance="1")
    mixed = [maker.make(EventType.SERVER_START) for maker in (events, other, other, events)]
    await store.append(mixed)
    numbered = [leaf_members(leaf) for _, leaf in await store.pending(10)]
    assert sorted((each["process"], each["sequence"]) for each in numbered) == [
        ("node/core/1", 1),
        ("node/core/1", 2),
        ("node/front/1", 1),
        ("node/front/1", 2),
    ]


async def test_numbering_goes_on_over_another_connection(store: SqlAuditStore, url: str, events: EventFactory) -> None:
    await store.append([events.make(EventType.SERVER_START)])
    second = await Database.open(url)
    try:
        await SqlAuditStore(second).append([events.make(EventType.ORDER_CREATED)])
    finally:
        await second.close()
    await store.append([events.make(EventType.SERVER_STOP)])
    assert await sequences(store) == [1, 2, 3]


STATEMENTS = [
    "UPDATE audit_events SET outcome = 'denied'",
    "DELETE FROM audit_events",
    "UPDATE audit_leaves SET leaf_index = leaf_index + 100",
    "DELETE FROM audit_leaves",
    "UPDATE audit_checkpoints SET note = root",
    "DELETE FROM audit_checkpoints",
]
UPSERT = """INSERT INTO audit_checkpoints SELECT * FROM audit_checkpoints WHERE true
ON CONFLICT (size) DO UPDATE SET note = excluded.root"""
ON_SQLITE = [
    "INSERT OR REPLACE INTO audit_events SELECT * FROM audit_events",
    "REPLACE INTO audit_leaves SELECT * FROM audit_leaves",
    "REPLACE INTO audit_checkpoints SELECT * FROM audit_checkpoints",
    UPSERT,
]
ON_POSTGRESQL = [
    "TRUNCATE audit_events CASCADE",
    "TRUNCATE audit_leaves",
    "TRUNCATE audit_checkpoints",
    UPSERT,
]


async def test_rows_are_never_changed_or_deleted(
    store: SqlAuditStore, database: Database, events: EventFactory, sequence: Callable[..., Sequencer]
) -> None:
    await store.append([events.make(EventType.SERVER_START), events.make(EventType.SERVER_STOP)])
    assert await sequence().run_once() == 2
    before = [leaf async for leaf in store.stream()], await store.checkpoints(0, 10)
    extra = ON_SQLITE if database.dialect == "sqlite" else ON_POSTGRESQL
    for statement in STATEMENTS + extra:
        with pytest.raises(DBAPIError, match="append-only"):
            await database.write(lambda connection, sql=statement: connection.execute(text(sql)))
    assert ([leaf async for leaf in store.stream()], await store.checkpoints(0, 10)) == before


async def test_sealing(store: SqlAuditStore, database: Database, events: EventFactory) -> None:
    made = [events.make(EventType.ORDER_CREATED) for _ in range(3)]
    await store.append(made)
    lease = await take_lease(database)
    ids = [event.id for event in made]
    await store.seal(lease, [(ids[0], b"0" * 32), (ids[1], b"1" * 32)], 0, checkpoint(2), b"state 2")
    assert [event_id for event_id, _ in await store.pending(9)] == ids[2:]
    await store.seal(lease, [(ids[2], b"2" * 32)], 2, checkpoint(3), b"state 3")
    assert await store.pending(9) == ()
    assert await store.latest_checkpoint() == (checkpoint(3), b"state 3")
    assert await store.checkpoint_at(2) == (checkpoint(2), b"state 2")
    assert await store.checkpoint_at(1) is None
    assert await store.leaf_hashes(1, 9) == (b"1" * 32, b"2" * 32)
    assert await store.leaf_hashes(0, 1) == (b"0" * 32,)


async def test_seals_that_are_refused(store: SqlAuditStore, database: Database, events: EventFactory) -> None:
    event = events.make(EventType.ORDER_CREATED)
    await store.append([event])
    now = datetime.now(UTC)
    old = await take_lease(database, "a", now)
    newest = await take_lease(database, "b", now + 2 * MINUTE)
    leaf = [(event.id, b"0" * 32)]
    refused = [
        (old, leaf, 0, checkpoint(1)),  # another has the lease
        (Lease("other", "b", now, 1), leaf, 0, checkpoint(1)),
        (newest, leaf, 1, checkpoint(2)),  # the tree ends at 0
        (newest, leaf, 0, checkpoint(2)),  # not over these leaves
        (newest, [], 0, checkpoint(0)),
        (newest, [("no such event", b"0" * 32)], 0, checkpoint(1)),
        (newest, leaf * 2, 0, checkpoint(2)),
    ]
    for lease, leaves, first, head in refused:
        with pytest.raises(CaError) as caught:
            await store.seal(lease, leaves, first, head, b"")
        assert caught.value.kind is ErrorKind.CONFLICT
    assert await store.latest_checkpoint() is None
    assert len(await store.pending(9)) == 1
    await store.seal(newest, leaf, 0, checkpoint(1), b"")


async def test_searches(store: SqlAuditStore, events: EventFactory, sequence: Callable[..., Sequencer]) -> None:
    made = [
        events.make(EventType.ISSUANCE_STORED, serial=f"0{n % 3}", issuer="root", object=f"o{n % 2}") for n in range(6)
    ]
    made.append(events.make(EventType.SERVER_STOP))
    await store.append(made)
    await sequence().run_once()
    late = events.make(EventType.SERVER_START)
    await store.append([late])

    async def found(limit: int = 100, **conditions: object) -> list[str]:
        return [event.id for event in await store.tail(limit, **conditions)]

    ids = [event.id for event in made]
    assert await found() == [*ids, late.id]
    assert await found(2) == [ids[6], late.id]
    assert await found(serial="01") == [ids[1], ids[4]]
    assert await found(object="o1", serial="01") == [ids[1]]
    assert await found(type=EventType.SERVER_STOP) == [ids[6]]
    assert await found(2, after=ids[3]) == [ids[4], ids[5]]
    assert [event.index for event in await store.tail(2)] == [6, None]
    assert [event.id for event in await store.of_serial("00", EventType.ISSUANCE_STORED, "root")] == [ids[0], ids[3]]
    assert await store.of_serial("00", EventType.ISSUANCE_STORED, "other") == ()


async def test_export_has_the_bytes_of_the_leaves(
    store: SqlAuditStore, events: EventFactory, sequence: Callable[..., Sequencer]
) -> None:
    made = [events.make(EventType.ORDER_CREATED, object=f"acme-order:{n}") for n in range(1_100)]
    await store.append(made)
    await sequence().run_once()
    leaves = [encode_event(event) for event in made]
    assert [leaf async for leaf in store.export(0)] == leaves
    assert [leaf async for leaf in store.export(3, 5)] == leaves[3:6]
    assert [leaf async for leaf in store.export(1_099, 5_000)] == leaves[1_099:]
    assert [leaf async for leaf in store.export(1_100)] == []
    assert [leaf.index async for leaf in store.stream(600)] == list(range(600, 1_100))


async def test_serials_are_read_in_pages(store: SqlAuditStore, events: EventFactory) -> None:
    keys = [("0a", "x"), ("0a", "y"), ("0b", "x"), ("0b", "x"), ("0c", "a")]
    await store.append([events.make(EventType.ISSUANCE_STORED, serial=s, issuer=i) for s, i in reversed(keys)])
    await store.append([events.make(EventType.CERTIFICATE_REVOKED, serial="0a", issuer="x")])
    read: list[tuple[str, str]] = []
    after = ("", "", "")
    while page := await store.recorded(EventType.ISSUANCE_STORED, after, 2):
        read += [key for key, _ in page]
        after = (*page[-1][0], page[-1][1].id)
    assert read == keys
    only = await store.recorded(EventType.ISSUANCE_STORED, ("", "", ""), 9, ("0b", "x"))
    assert [key for key, _ in only] == [("0b", "x")] * 2
