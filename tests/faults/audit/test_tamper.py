"""An attacker with all rights on the database: whatever he does to the log, verification says what and where.

Each case drops the triggers first. The log has 24 leaves under checkpoints of 8, 16 and 24; three certificates were
issued, one of them revoked. Two processes wrote in turn.
"""

import asyncio
from datetime import timedelta

import pytest
from victims import ORIGIN, MemoryKey, Victim, found, kinds

from ca_server.core.audit import (
    EventFactory,
    FindingKind,
    check_anchor,
    verify,
)
from ca_server.core.audit.reading import EventPage, SerialFact, SerialKey
from ca_server.core.notes import NoteKey, NoteSignature, TreeHead, checkpoint_text, encode_note
from ca_server.core.tlog import Frontier, leaf_hash
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import (
    RevocationReason,
)
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore

pytestmark = pytest.mark.alters_schema


async def test_an_honest_log_verifies(victim: Victim) -> None:
    report = await victim.verify()
    assert report.findings == ()
    assert report.ok
    assert (report.leaves, report.events, report.checkpoints, report.size) == (24, 24, 3, 24)
    assert (report.certificates, report.revocations, report.intents) == (3, 1, 3)
    assert report.anchored_size == 24


# --- Delete -------------------------------------------------------------------------------------------------------


async def test_an_event_is_deleted(victim: Victim) -> None:
    await victim.disarm()
    event_id, _ = await victim.leaf(13)
    await victim.attack("DELETE FROM audit_events WHERE id = :id", id=event_id)
    assert found(await victim.verify()) == {("deleted", "leaf 13")}


async def test_an_event_and_its_leaf_are_deleted(victim: Victim) -> None:
    await victim.disarm()
    event_id, _ = await victim.leaf(13)
    await victim.attack(
        "DELETE FROM audit_leaves WHERE leaf_index = 13", "DELETE FROM audit_events WHERE id = :id", id=event_id
    )
    assert found(await victim.verify()) == {("deleted", "leaf 13")}


async def test_an_event_is_taken_out_and_the_others_move_up(victim: Victim) -> None:
    await victim.disarm()
    event_id, _ = await victim.leaf(13)
    await victim.attack(
        "DELETE FROM audit_leaves WHERE leaf_index = 13",
        "DELETE FROM audit_events WHERE id = :id",
        "UPDATE audit_leaves SET leaf_index = -leaf_index WHERE leaf_index > 13",
        "UPDATE audit_leaves SET leaf_index = -leaf_index - 1 WHERE leaf_index < 0",
        id=event_id,
    )
    assert found(await victim.verify()) == {("deleted", "leaves 8..22")}


async def test_an_event_is_deleted_before_it_is_sealed(victim: Victim) -> None:
    made = [victim.events[0].make(EventType.ACCESS_REFUSED) for _ in range(3)]
    await victim.store.append(made)
    await victim.disarm()
    await victim.attack(
        "DELETE FROM audit_events WHERE id = :id", "DELETE FROM audit_pending WHERE event_id = :id", id=made[1].id
    )
    await victim.sequencer().run_once()
    report = await victim.verify()
    assert found(report) == {("deleted", "before leaf 25")}
    assert "before it was sealed" in report.findings[0].text


async def test_an_event_that_waits_is_deleted(victim: Victim) -> None:
    made = victim.events[0].make(EventType.ACCESS_REFUSED)
    await victim.store.append([made])
    await victim.disarm()
    await victim.attack("DELETE FROM audit_events WHERE id = :id", id=made.id)
    assert found(await victim.verify()) == {("deleted", f"event {made.id}")}


async def test_a_range_of_leaves_over_a_checkpoint_is_deleted(victim: Victim) -> None:
    await victim.disarm()
    await victim.attack("DELETE FROM audit_leaves WHERE leaf_index BETWEEN 6 AND 17")
    report = await victim.verify()
    assert {("deleted", "leaves 6..7"), ("deleted", "leaves 8..15"), ("deleted", "leaves 16..17")} <= found(report)
    assert kinds(report) == {FindingKind.DELETED, FindingKind.UNSEALED}


async def test_the_anchored_checkpoint_is_deleted(victim: Victim) -> None:
    await victim.fill(1)
    await victim.disarm()
    kept = FileAnchor(victim.anchor.path.with_name("older"))
    await kept.swap(None, (await victim.store.checkpoints(16, 1))[0].note)
    await victim.attack("DELETE FROM audit_checkpoints WHERE size = 24")
    assert found(await victim.verify(anchor=kept)) == {("deleted", "checkpoint 24")}


# --- Edit ---------------------------------------------------------------------------------------------------------


async def test_an_event_is_edited(victim: Victim) -> None:
    await victim.disarm()
    _, leaf = await victim.leaf(20)
    await victim.rewrite(20, leaf.replace(b'"success"', b'"failure"'), outcome="failure")
    assert found(await victim.verify()) == {("edited", "leaf 20")}


async def test_a_column_is_edited(victim: Victim) -> None:
    await victim.disarm()
    event_id, _ = await victim.leaf(20)
    await victim.attack("UPDATE audit_events SET object = 'other', time = 5 WHERE id = :id", id=event_id)
    report = await victim.verify()
    assert found(report) == {("edited", "leaf 20")}
    assert len(report.findings) == 2


async def test_an_event_becomes_no_event_at_all(victim: Victim) -> None:
    await victim.disarm()
    await victim.rewrite(20, b"\xff not json")
    assert found(await victim.verify()) == {("edited", "leaf 20")}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE audit_events SET leaf = replace(leaf, 'test', 'tset') WHERE id = :id", "leaf 20"),
        ("UPDATE audit_events SET leaf = 5 WHERE id = :id", "leaf 20"),
        ("UPDATE audit_leaves SET leaf_hash = 'text' WHERE event_id = :id", "leaf 20"),
        ("UPDATE audit_events SET time = 'never' WHERE id = :id", "leaf 20"),
        ("UPDATE audit_checkpoints SET note = 7 WHERE size = 24 AND :id <> ''", "checkpoint 24"),
        ("UPDATE audit_checkpoints SET created_at = 'then' WHERE size = 24 AND :id <> ''", ""),
        ("UPDATE certificates SET der = 'text' WHERE id = 1 AND :id <> ''", ""),
    ],
)
async def test_a_value_of_another_type(victim: Victim, statement: str, where: str) -> None:
    """SQLite takes any value in any column: what no server writes is a finding, not an error."""
    await victim.disarm()
    event_id, _ = await victim.leaf(20)
    await victim.attack(statement, id=event_id)
    report = await victim.verify()
    assert not report.ok
    assert any(finding.where.startswith(where) or where in finding.text for finding in report.findings), report


async def test_an_event_and_its_leaf_hash_are_edited(victim: Victim) -> None:
    await victim.disarm()
    _, leaf = await victim.leaf(20)
    forged = leaf.replace(b'"success"', b'"failure"')
    await victim.rewrite(20, forged, outcome="failure")
    await victim.attack("UPDATE audit_leaves SET leaf_hash = :hash WHERE leaf_index = 20", hash=leaf_hash(forged))
    assert found(await victim.verify()) == {("edited", "leaves 16..23")}


async def test_an_edit_and_all_later_roots_recomputed_without_the_key(victim: Victim) -> None:
    await victim.disarm()
    _, leaf = await victim.leaf(2)
    forged = leaf.replace(b'"test"', b'"tset"')
    await victim.rewrite(2, forged)
    await victim.attack("UPDATE audit_leaves SET leaf_hash = :hash WHERE leaf_index = 2", hash=leaf_hash(forged))
    tree = Frontier()
    for index, hashed in enumerate(await victim.store.leaf_hashes(0, 100), 1):
        tree.append(hashed)
        if index % 8 == 0:
            note = (await victim.store.checkpoints(index - 1, 1))[0].note
            text_, signature = note.split(b"\n\n")
            head = checkpoint_text(TreeHead(ORIGIN, index, tree.root()))
            assert head.encode() != text_ + b"\n"
            await victim.attack(
                "UPDATE audit_checkpoints SET root = :root, state = :state, note = :note WHERE size = :size",
                root=tree.root(),
                state=tree.encode(),
                note=head.encode() + b"\n" + signature,
                size=index,
            )
    report = await victim.verify()
    assert {("bad-signature", f"checkpoint {size}") for size in (8, 16, 24)} <= found(report)
    assert await check_anchor(victim.store, victim.anchor, victim.key.spki_der) is not None


async def test_a_pending_event_is_edited(victim: Victim) -> None:
    made = victim.events[0].make(EventType.ACCESS_REFUSED)
    await victim.store.append([made])
    await victim.disarm()
    await victim.attack("UPDATE audit_events SET type = 'order.created' WHERE id = :id", id=made.id)
    assert ("edited", f"event {made.id}") in found(await victim.verify())


# --- Reorder ------------------------------------------------------------------------------------------------------


async def swap(victim: Victim, low: int, high: int, *columns: str) -> None:
    rows = {}
    for index in (low, high):
        leaf = (await victim.store.leaves(index, 1))[0]
        rows[index] = {"event_id": leaf.event_id, "leaf_hash": leaf.leaf_hash}
    await victim.attack("UPDATE audit_leaves SET event_id = 'x' || event_id WHERE leaf_index = :low", low=low)
    for to, of in ((high, low), (low, high)):
        for column in columns:
            await victim.attack(
                f"UPDATE audit_leaves SET {column} = :value WHERE leaf_index = :to", value=rows[of][column], to=to
            )


async def test_two_events_are_exchanged(victim: Victim) -> None:
    await victim.disarm()
    await swap(victim, 17, 21, "event_id")
    assert found(await victim.verify()) == {("reordered", "leaf 17"), ("reordered", "leaf 21")}


async def test_two_leaves_are_exchanged(victim: Victim) -> None:
    await victim.disarm()
    await swap(victim, 17, 20, "event_id", "leaf_hash")
    report = await victim.verify()
    assert kinds(report) == {FindingKind.REORDERED}
    assert "leaves 17 and 20" in report.findings[0].text


async def test_two_checkpoints_are_exchanged(victim: Victim) -> None:
    rows = {size: (await victim.store.checkpoints(size - 1, 1))[0] for size in (8, 16)}
    await victim.disarm()
    for size, other in ((8, 16), (16, 8)):
        await victim.attack(
            "UPDATE audit_checkpoints SET root = :root, state = :state, note = :note WHERE size = :size",
            root=rows[other].root,
            state=rows[other].state,
            note=rows[other].note,
            size=size,
        )
    assert {("edited", "checkpoint 8"), ("edited", "checkpoint 16")} <= found(await victim.verify())


async def test_leaves_are_exchanged_over_a_checkpoint(victim: Victim) -> None:
    await victim.disarm()
    await swap(victim, 15, 21, "event_id", "leaf_hash")
    report = await victim.verify()
    assert found(report) == {("reordered", "leaves 8..23")}


# --- Truncate, roll back, fork ------------------------------------------------------------------------------------


async def truncate(victim: Victim, size: int) -> None:
    await victim.attack(
        "DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_leaves WHERE leaf_index >= :size)",
        "DELETE FROM audit_leaves WHERE leaf_index >= :size",
        "DELETE FROM audit_checkpoints WHERE size > :size",
        size=size,
    )


async def test_the_leaves_at_the_end_are_cut_off(victim: Victim) -> None:
    await victim.disarm()
    await victim.attack(
        "DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_leaves WHERE leaf_index >= 21)",
        "DELETE FROM audit_leaves WHERE leaf_index >= 21",
    )
    assert found(await victim.verify()) == {("truncated", "leaves 21..23")}


async def test_the_events_at_the_end_are_cut_off(victim: Victim) -> None:
    await victim.disarm()
    await victim.attack(
        "DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_leaves WHERE leaf_index >= 22)"
    )
    assert found(await victim.verify()) == {("deleted", "leaf 22"), ("deleted", "leaf 23")}


async def test_the_end_of_the_log_is_cut_off_with_its_checkpoints(victim: Victim) -> None:
    await victim.disarm()
    await truncate(victim, 16)
    assert found(await victim.verify()) == {("truncated", "leaves 16..23")}
    assert (await victim.verify(anchor=None)).ok  # only the anchor can tell
    mismatch = await check_anchor(victim.store, victim.anchor, victim.key.spki_der)
    assert "rolled back or truncated" in str(mismatch)


async def test_the_whole_log_is_emptied(victim: Victim) -> None:
    await victim.disarm()
    await truncate(victim, 0)
    report = await victim.verify()
    assert ("truncated", "leaves 0..23") in found(report)
    assert ("missing-event", "serial 0a of issuer ca") in found(report)


async def test_a_log_that_was_rolled_back_and_went_on(victim: Victim) -> None:
    """A fork signed by the log's own key, made while the anchor was away."""
    await victim.disarm()
    await truncate(victim, 16)
    elsewhere = FileAnchor(victim.anchor.path.with_name("elsewhere"))
    other = EventFactory(node="node", process="core", software="test", configuration="0", instance="2")
    await victim.store.append([other.make(EventType.SERVER_START) for _ in range(8)])
    await victim.sequencer(anchor=elsewhere).run_once()
    assert found(await victim.verify()) == {("anchor-mismatch", "checkpoint 24")}
    assert (await victim.verify(anchor=elsewhere)).ok
    assert "forked" in str(await check_anchor(victim.store, victim.anchor, victim.key.spki_der))


async def test_checkpoints_are_deleted_and_their_leaves_left(victim: Victim) -> None:
    await victim.disarm()
    await victim.attack("DELETE FROM audit_checkpoints WHERE size > 16")
    assert found(await victim.verify(anchor=None)) == {("inserted", "leaves 16..23")}


# --- Checkpoints and what was never sealed ------------------------------------------------------------------------


async def test_a_checkpoint_of_another_key(victim: Victim) -> None:
    stranger = MemoryKey()
    checkpoint = (await victim.store.checkpoints(8, 1))[0]
    signed = checkpoint_text(TreeHead(ORIGIN, checkpoint.size, checkpoint.root))
    key_id = NoteKey(ORIGIN, stranger.spki_der).key_id
    note = encode_note(signed, [NoteSignature(ORIGIN, key_id, await stranger.sign(signed.encode()))])
    await victim.disarm()
    await victim.attack("UPDATE audit_checkpoints SET note = :note WHERE size = 16", note=note)
    assert found(await victim.verify()) == {("bad-signature", "checkpoint 16")}
    assert (await verify(victim.store, [victim.key.spki_der, stranger.spki_der], anchor=victim.anchor)).ok


async def test_a_checkpoint_of_another_log_with_the_same_key(victim: Victim) -> None:
    checkpoint = (await victim.store.checkpoints(8, 1))[0]
    signed = checkpoint_text(TreeHead("other", checkpoint.size, checkpoint.root))
    signature = NoteSignature(
        ORIGIN, NoteKey(ORIGIN, victim.key.spki_der).key_id, await victim.key.sign(signed.encode())
    )
    await victim.disarm()
    note = encode_note(signed, [signature])
    await victim.attack("UPDATE audit_checkpoints SET note = :note WHERE size = 16", note=note)
    assert found(await victim.verify()) == {("bad-signature", "checkpoint 16")}


@pytest.mark.parametrize("change", ["root = :value", "state = :value"])
async def test_columns_of_a_checkpoint_are_edited(victim: Victim, change: str) -> None:
    await victim.disarm()
    await victim.attack(f"UPDATE audit_checkpoints SET {change} WHERE size = 16", value=bytes(32))
    assert found(await victim.verify()) == {("edited", "checkpoint 16")}


async def test_an_event_is_kept_from_the_sequencer(victim: Victim) -> None:
    made = [victim.events[0].make(EventType.ACCESS_REFUSED) for _ in range(2)]
    await victim.store.append(made)
    await victim.attack("DELETE FROM audit_pending WHERE event_id = :id", id=made[0].id)
    report = await victim.verify()
    assert found(report) == {("unsealed", f"event {event.id}") for event in made}
    assert ["does not wait" in finding.text for finding in report.findings] == [True, False]
    assert (await victim.verify(grace=timedelta(minutes=5))).ok


# --- The CA's tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM certificates WHERE serial = '0a'", "missing-certificate"),
        ("UPDATE certificates SET der = :bytes WHERE serial = '0a'", "edited"),
        ("UPDATE certificates SET revoked_at = 5, revocation_reason = 4 WHERE serial = '0a'", "missing-event"),
        ("UPDATE certificates SET revocation_reason = 4 WHERE serial = '0b'", "edited"),
        (
            "UPDATE certificates SET revoked_at = NULL, revocation_reason = NULL WHERE serial = '0b'",
            "missing-revocation",
        ),
        ("DELETE FROM intents WHERE serial = '0a'", "missing-intent"),
        ("UPDATE intents SET tbs_sha256 = :bytes WHERE serial = '0c'", "edited"),
        (
            """INSERT INTO intents SELECT 'x', enrollment_id, issuer_id, issuer_key_id, '0d', state, node, boot_epoch,
            reserved_at, settled_at, reason, profile, profile_hash, tenant, tbs_sha256 FROM intents
            WHERE serial = '0c'""",
            "missing-event",
        ),
        ("UPDATE certificates SET serial = '0d' WHERE serial = '0a'", "missing-event missing-certificate"),
    ],
)
async def test_rows_of_the_ca_are_held_against_the_log(victim: Victim, statement: str, expected: str) -> None:
    await victim.attack(statement, bytes=b"\x30\x00")
    serials = {"0a", "0b", "0c", "0d"}
    report = await victim.verify()
    assert {finding.kind.value for finding in report.findings} == set(expected.split())
    for finding in report.findings:
        assert any(f"serial {serial} of issuer ca" == finding.where for serial in serials if serial in statement)


async def test_a_certificate_without_any_event(victim: Victim) -> None:
    """Event and leaf of an issuance are gone: the log shows it, and so does the certificate."""
    await victim.disarm()
    logged = (await victim.store.of_serial("0a", EventType.ISSUANCE_STORED, "ca"))[0]
    event_id, index = logged.id, logged.index
    await victim.attack("DELETE FROM audit_events WHERE id = :id", id=event_id)
    assert found(await victim.verify()) == {
        ("deleted", f"leaf {index}"),
        ("missing-event", "serial 0a of issuer ca"),
    }


# --- Beside a CA at work ------------------------------------------------------------------------------------------


class Late(SqlAuditStore):
    """Shows a certificate only at the third look, as if it had been committed meanwhile; and a leaf likewise."""

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim.database)
        self._victim = victim
        self.looks = 0

    async def certificates(self, after: SerialKey, limit: int, only: SerialKey | None = None) -> tuple[SerialFact, ...]:
        self.looks += 1
        facts = await super().certificates(after, limit, only)
        return tuple(fact for fact in facts if fact.serial != "0c") if self.looks < 4 else facts

    async def events(self, after_id: str, limit: int) -> EventPage:
        page = await super().events(after_id, limit)
        await self._victim.sequencer().run_once()
        return page


async def test_what_is_committed_while_it_is_verified_is_no_finding(victim: Victim) -> None:
    await victim.store.append([victim.events[0].make(EventType.ACCESS_REFUSED)])
    late = Late(victim)
    report = await verify(late, [victim.key.spki_der], anchor=victim.anchor, grace=timedelta(0))
    assert report.findings == ()
    assert late.looks >= 4


async def test_verification_beside_a_ca_at_work_finds_nothing(victim: Victim) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(victim.sequencer(interval=0.001).run(stop))

    async def work() -> None:
        for number in range(0x10, 0x60):
            await victim.issue(f"{number:02x}")
            if number % 4 == 0:
                await victim.revoke(f"{number:02x}", RevocationReason.SUPERSEDED)

    working = asyncio.create_task(work())
    while not working.done():
        report = await victim.verify(grace=timedelta(seconds=30))
        assert report.findings == ()
    await working
    stop.set()
    await running
    report = await victim.verify()
    assert report.findings == ()
    assert report.certificates == 83
    assert report.size == report.events == 24 + 2 * 80 + 20
