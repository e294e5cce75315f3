"""The sequencer: what it signs, under which faults, and what it refuses to sign."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from ca_server.core.audit import EventFactory, Sequencer, check_anchor, prove_serial, verify
from ca_server.core.notes import (
    InclusionProof,
    NoteKey,
    NoteSignature,
    TreeHead,
    checkpoint_text,
    encode_note,
    open_own_checkpoint,
)
from ca_server.core.ports import Lease, SigningKey
from ca_server.core.tlog import Frontier, leaf_hash, tree_root
from ca_server.domain.audit import Checkpoint, EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database

Make = Callable[..., Sequencer]


async def add(store: SqlAuditStore, events: EventFactory, count: int = 1) -> None:
    await store.append([events.make(EventType.ORDER_CREATED, object=f"o{number}") for number in range(count)])


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


class FaultyStore:
    """The store, with a fault at the next seal: it fails, or it fails although it was committed."""

    def __init__(self, store: SqlAuditStore) -> None:
        self._store = store
        self.fault: str | None = None
        self.notes: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def seal(
        self, lease: Lease, leaves: Sequence[tuple[str, bytes]], first: int, checkpoint: Checkpoint, state: bytes
    ) -> None:
        self.notes.append(checkpoint.note)
        fault, self.fault = self.fault, None
        if fault == "refused":
            raise CaError(ErrorKind.CONFLICT, "an event of the leaves is gone")
        if fault != "failed":
            await self._store.seal(lease, leaves, first, checkpoint, state)
        if fault is not None:
            raise CaError(ErrorKind.UNAVAILABLE, "the database is away")


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.P256, KeyAlgorithm.ED25519])
async def test_checkpoint_over_what_was_committed(
    store: SqlAuditStore,
    events: EventFactory,
    sequence: Make,
    anchor: FileAnchor,
    new_key: Callable,
    algorithm: KeyAlgorithm,
) -> None:
    signer = new_key(algorithm)
    published: list[Checkpoint] = []
    sequencer = sequence(key=signer, publish=published.append)
    assert await sequencer.run_once() == 0
    assert await store.latest_checkpoint() is None
    await add(store, events, 5)
    expected = [leaf_hash(leaf) for _, leaf in await store.pending(9)]
    assert await sequencer.run_once() == 5
    checkpoint, state = await store.latest_checkpoint()
    head = open_own_checkpoint(checkpoint.note, [signer.spki_der])
    assert (head.size, head.root) == (5, tree_root(expected))
    assert Frontier.decode(state).root() == head.root
    assert await anchor.read() == checkpoint.note
    assert published == [checkpoint]
    assert sequencer.size == 5
    assert sequencer.lag_seconds == 0
    assert NoteKey.parse(sequencer.verifier_key).name == head.origin
    assert await sequencer.run_once() == 0
    assert len(signer.signed) == 1


async def test_the_tree_grows_over_batches_and_restarts(
    store: SqlAuditStore, events: EventFactory, sequence: Make
) -> None:
    for count in (1, 7, 2, 11):
        await add(store, events, count)
        await sequence(batch=3).run_once()
    hashes = await store.leaf_hashes(0, 100)
    assert len(hashes) == 21
    for stored in await store.checkpoints(0, 100):
        assert stored.root == tree_root(hashes[: stored.size])


async def test_the_task_seals_nudged_and_stops_with_nothing_pending(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database
) -> None:
    sequencer = sequence(interval=60)
    stop = asyncio.Event()
    task = asyncio.create_task(sequencer.run(stop))
    await add(store, events)
    sequencer.nudge()
    await eventually(lambda: sequencer.size == 1)
    await add(store, events, 2)
    stop.set()
    await task
    assert sequencer.size == 3
    assert await store.pending(1) == ()
    taken = await SqlCoordinationStore(database).acquire_lease(
        "audit-sequencer", "another", datetime.now(UTC), timedelta(seconds=1)
    )
    assert taken is not None


async def test_faults_never_end_the_task(
    store: SqlAuditStore, events: EventFactory, sequence: Make, key: SigningKey
) -> None:
    sequencer = sequence()
    stop = asyncio.Event()
    task = asyncio.create_task(sequencer.run(stop))
    for fault in (CaError(ErrorKind.UNAVAILABLE, "the token is away"), RuntimeError("a mistake")):
        key.away = fault
        await add(store, events)
        await eventually(lambda: sequencer.problem is not None)
        assert sequencer.lag_seconds > 0
        key.away = None
        await eventually(lambda: sequencer.problem is None)
    stop.set()
    await task
    assert sequencer.size == 2


async def test_a_bad_signature_of_the_token_is_not_used(
    store: SqlAuditStore,
    events: EventFactory,
    sequence: Make,
    key: SigningKey,
    new_key: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(store, events)
    with monkeypatch.context() as patched:
        patched.setattr(key, "sign", new_key(KeyAlgorithm.P256).sign)
        with pytest.raises(CaError):
            await sequence().run_once()
    assert await store.latest_checkpoint() is None
    assert await sequence().run_once() == 1


@pytest.mark.parametrize("fault", ["failed", "failed but persisted"])
async def test_a_seal_of_unknown_outcome(
    store: SqlAuditStore, events: EventFactory, sequence: Make, key: SigningKey, fault: str
) -> None:
    faulty = FaultyStore(store)
    faulty.fault = fault
    sequencer = sequence(store=faulty)
    await add(store, events, 2)
    with pytest.raises(CaError):
        await sequencer.run_once()
    await add(store, events)
    sealed = await sequencer.run_once()
    assert sequencer.size == 3
    assert sealed == (3 if fault == "failed" else 1)
    # Of every size one checkpoint at most was ever signed.
    sizes = [int(data.split(b"\n")[1]) for data in key.signed]
    assert sizes == [2, 3]
    assert {checkpoint.note for checkpoint in await store.checkpoints(0, 9)} == set(faulty.notes)
    assert (await verify(store, [key.spki_der])).ok


@pytest.mark.parametrize("fault", ["failed", "failed but persisted"])
async def test_the_task_goes_on_after_a_seal_of_unknown_outcome(
    store: SqlAuditStore, events: EventFactory, sequence: Make, key: SigningKey, anchor: FileAnchor, fault: str
) -> None:
    faulty = FaultyStore(store)
    sequencer = sequence(store=faulty)
    stop = asyncio.Event()
    task = asyncio.create_task(sequencer.run(stop))
    await add(store, events)
    await eventually(lambda: sequencer.size == 1)
    faulty.fault = fault
    await add(store, events)
    await eventually(lambda: sequencer.size == 2)
    stop.set()
    await task
    assert len(faulty.notes) == (3 if fault == "failed" else 2)
    assert (await verify(store, [key.spki_der], anchor=anchor)).ok


async def test_a_batch_that_can_t_be_sealed_is_given_up(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database
) -> None:
    faulty = FaultyStore(store)
    faulty.fault = "refused"
    sequencer = sequence(store=faulty)
    await add(store, events, 2)
    with pytest.raises(CaError):
        await sequencer.run_once()
    gone, kept = [event_id for event_id, _ in await store.pending(2)]
    await database.write(
        lambda connection: connection.execute(text("DELETE FROM audit_pending WHERE event_id = :id"), {"id": gone})
    )
    assert await sequencer.run_once() == 1
    assert [leaf.event_id for leaf in await store.leaves(0, 9)] == [kept]


async def test_only_the_holder_of_the_lease_signs(
    store: SqlAuditStore, events: EventFactory, sequence: Make, key: SigningKey
) -> None:
    now = datetime.now(UTC)
    first = sequence(holder="a", clock=lambda: now)
    stop = asyncio.Event()
    running = asyncio.create_task(first.run(stop))
    await add(store, events)
    await eventually(lambda: first.size == 1)
    second = sequence(holder="b", clock=lambda: now + timedelta(seconds=5))
    await add(store, events)
    await eventually(lambda: first.size == 2)
    assert await second.run_once() == 0
    stop.set()
    await running
    await add(store, events)
    assert await second.run_once() == 1


async def test_a_holder_that_was_overtaken_signs_on_from_the_newest_tree(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database, anchor: FileAnchor, key: SigningKey
) -> None:
    slow = sequence(holder="a", lease_duration=timedelta(hours=1))
    await slow._coordination.acquire_lease("audit-sequencer", "a", datetime.now(UTC), timedelta(hours=1))
    slow._running = True  # keeps its lease
    await add(store, events)
    assert await slow.run_once() == 1
    late = datetime.now(UTC) + timedelta(hours=2)
    other = sequence(holder="b", clock=lambda: late)
    await add(store, events)
    assert await other.run_once() == 1
    await add(store, events)
    with pytest.raises(CaError) as overtaken:
        await slow.run_once()
    assert overtaken.value.kind is ErrorKind.CONFLICT
    slow._clock = lambda: late
    assert await slow.run_once() == 1
    assert (await verify(store, [key.spki_der], anchor=anchor)).ok


@pytest.mark.parametrize("statement", ["SET state = :bad", "SET note = :bad", "SET state = x'00'"])
@pytest.mark.alters_schema
async def test_nothing_is_signed_after_a_checkpoint_that_was_altered(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database, key: SigningKey, statement: str
) -> None:
    await add(store, events, 3)
    await sequence().run_once()
    await drop_triggers(database)
    if database.dialect == "postgresql":
        statement = statement.replace("x'00'", "'\\x00'")
    bad = Frontier(3, [b"a" * 32, b"b" * 32]).encode()
    await database.write(
        lambda connection: connection.execute(
            text(f"UPDATE audit_checkpoints {statement}"), {"bad": bad} if ":bad" in statement else {}
        )
    )
    await add(store, events)
    signed = len(key.signed)
    with pytest.raises(CaError) as caught:
        await sequence().run_once()
    assert caught.value.kind is ErrorKind.INTERNAL
    assert len(key.signed) == signed


@pytest.mark.alters_schema
async def test_nothing_is_signed_beside_the_anchor(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database, anchor: FileAnchor, key: SigningKey
) -> None:
    """A database that was rolled back, and then one that grew in another way, don't extend the anchor."""
    await add(store, events, 2)
    await sequence().run_once()
    await add(store, events, 2)
    await sequence().run_once()
    assert await check_anchor(store, anchor, key.spki_der) is None
    await drop_triggers(database)
    for statement in ("DELETE FROM audit_checkpoints WHERE size > 2", "DELETE FROM audit_leaves WHERE leaf_index > 1"):
        await database.write(lambda connection, sql=statement: connection.execute(text(sql)))
    rolled_back = await check_anchor(store, anchor, key.spki_der)
    assert "rolled back" in str(rolled_back)
    assert (rolled_back.anchored.size, rolled_back.size) == (4, 2)
    await add(store, events)
    signed = len(key.signed)
    with pytest.raises(CaError) as caught:
        await sequence().run_once()
    assert caught.value.kind is ErrorKind.INTERNAL
    assert len(key.signed) == signed
    elsewhere = FileAnchor(anchor.path.with_name("elsewhere"))
    await add(store, events, 9)
    for batch in (2, 100):
        await sequence(anchor=elsewhere, batch=batch).run_once()
    assert "forked" in str(await check_anchor(store, anchor, key.spki_der))


async def test_anchor_that_is_behind_is_extended(
    store: SqlAuditStore, events: EventFactory, sequence: Make, anchor: FileAnchor, key: SigningKey
) -> None:
    await add(store, events, 3)
    await sequence().run_once()
    ahead = FileAnchor(anchor.path.with_name("ahead"))
    await add(store, events, 30)
    await sequence(anchor=ahead, batch=4).run_once()
    assert await anchor.read() != await ahead.read()
    assert await check_anchor(store, anchor, key.spki_der) is None
    await sequence().run_once()
    assert await anchor.read() == await ahead.read()


async def test_anchor_of_another_key_or_log(
    store: SqlAuditStore, events: EventFactory, sequence: Make, anchor: FileAnchor, key: SigningKey, new_key: Callable
) -> None:
    await add(store, events)
    await sequence().run_once()
    assert "key" in str(await check_anchor(store, anchor, new_key(KeyAlgorithm.P256).spki_der))
    anchor.path.write_bytes(b"damaged")
    assert await check_anchor(store, anchor, key.spki_der) is not None
    anchor.path.unlink()
    assert await check_anchor(store, anchor, key.spki_der) is None
    assert "missing" in str(await check_anchor(store, anchor, key.spki_der, required=True))


async def test_anchor_of_a_log_of_another_name(
    store: SqlAuditStore, events: EventFactory, sequence: Make, anchor: FileAnchor, key: SigningKey
) -> None:
    await add(store, events)
    await sequence(anchor=FileAnchor(anchor.path.with_name("elsewhere"))).run_once()
    root = (await store.latest_checkpoint())[0].root
    signed = checkpoint_text(TreeHead("other", 1, root))
    signature = NoteSignature("other", NoteKey("other", key.spki_der).key_id, await key.sign(signed.encode()))
    await anchor.swap(None, encode_note(signed, [signature]))
    assert "belongs to the log other" in str(await check_anchor(store, anchor, key.spki_der))


@pytest.mark.alters_schema
async def test_leaves_behind_the_anchor_lead_to_the_last_checkpoint(
    store: SqlAuditStore, events: EventFactory, sequence: Make, database: Database, anchor: FileAnchor, key: SigningKey
) -> None:
    await add(store, events, 3)
    await sequence().run_once()
    await add(store, events, 5)
    ahead = FileAnchor(anchor.path.with_name("ahead"))
    await sequence(anchor=ahead).run_once()
    assert await check_anchor(store, anchor, key.spki_der) is None
    await drop_triggers(database)
    await database.write(
        lambda connection: connection.execute(
            text("UPDATE audit_leaves SET leaf_hash = :hash WHERE leaf_index = 6"), {"hash": bytes(32)}
        )
    )
    assert "forked or altered" in str(await check_anchor(store, anchor, key.spki_der))


async def test_no_second_checkpoint_while_the_first_is_not_anchored(
    store: SqlAuditStore, events: EventFactory, sequence: Make, anchor: FileAnchor, key: SigningKey
) -> None:
    away = FileAnchor(anchor.path / "away" / "anchor")
    sequencer = sequence(anchor=away)
    for _ in range(3):
        await add(store, events)
        with pytest.raises(CaError):
            await sequencer.run_once()
    assert len(key.signed) <= 1
    away.path.parent.mkdir(parents=True)
    await sequencer.run_once()
    assert await away.read() == (await store.latest_checkpoint())[0].note
    assert sequencer.size == 3


async def test_proof_of_a_serial(store: SqlAuditStore, events: EventFactory, sequence: Make, key: SigningKey) -> None:
    await add(store, events, 5)
    await store.append(
        [events.make(EventType.ISSUANCE_STORED, serial="0a", issuer=issuer) for issuer in ("one", "two")]
    )
    with pytest.raises(CaError) as early:
        await prove_serial(store, "0a", [key.spki_der])
    assert early.value.kind is ErrorKind.NOT_FOUND
    await sequence().run_once()
    await add(store, events, 5)
    await sequence().run_once()
    proof = InclusionProof.parse((await prove_serial(store, "0a", [key.spki_der], issuer="two")).encode())
    assert proof.index == 6
    assert proof.verify([key.spki_der]).size == 12
    assert b'"issuer":"two"' in proof.extra
    for serial, issuer, kind in (("0b", None, ErrorKind.NOT_FOUND), ("0a", None, ErrorKind.CONFLICT)):
        with pytest.raises(CaError) as caught:
            await prove_serial(store, serial, [key.spki_der], issuer=issuer)
        assert caught.value.kind is kind


async def drop_triggers(database: Database) -> None:
    """What an attacker with the database's owner rights does first."""

    def drop(connection) -> None:
        if connection.dialect.name == "sqlite":
            names = connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%no%'")
            )
            for (name,) in names.all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("DROP FUNCTION audit_refuse() CASCADE"))

    await database.write(drop)
