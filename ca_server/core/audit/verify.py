"""Verification of the whole log, offline: leaves, tree, signatures, anchor, and the CA's own tables against it.

Everything is recomputed from the rows and the log's public keys; memory is bounded whatever the log's size. It may run
beside a working CA: what is committed meanwhile is left for the next time.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from ca_server.core.audit.anchor import Anchor
from ca_server.core.audit.crosscheck import cross_check
from ca_server.core.audit.events import event_id_at, leaf_members
from ca_server.core.audit.findings import FindingKind, Findings, VerificationReport
from ca_server.core.audit.reading import AuditReader, StoredCheckpoint, StoredLeaf
from ca_server.core.audit.replay import Replay, column_problems
from ca_server.core.audit.witnessed import Witnessed, open_witnessed
from ca_server.core.tlog import EMPTY_ROOT, Frontier
from ca_server.domain.errors import CaError

_PAGE: Final = 1_000

Progress = Callable[[int, int], None]
"""Called with leaves done and leaves in all."""


async def verify(
    reader: AuditReader,
    keys: Sequence[bytes],
    *,
    anchor: Anchor | None = None,
    checkpoints: Sequence[tuple[str, bytes]] = (),
    origin: str | None = None,
    grace: timedelta = timedelta(seconds=10),
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    progress: Progress | None = None,
) -> VerificationReport:
    """Verify the log under its public keys (DER SubjectPublicKeyInfo: one, or those it had one after the other).

    The log must extend the anchor and every one of `checkpoints`: signed notes kept elsewhere, each with a word for
    where. `origin` is that of the anchor, or of the first checkpoint, unless given; an event may be without a leaf for
    `grace`. Raises CaError UNAVAILABLE where database or anchor are away, never for what it finds.
    """
    findings = Findings()
    note = await anchor.read() if anchor is not None else None
    anchored = None if note is None else open_witnessed("the anchor", note, keys, findings)
    kept = [open_witnessed(where, each, keys, findings) for where, each in checkpoints]
    witnessed = [each for each in (anchored, *kept) if each is not None]
    now = clock()
    replay = Replay(keys, origin or (anchored.head.origin if anchored else None), findings)
    events = certificates = revocations = intents = 0
    try:
        await _replay(reader, replay, witnessed, progress)
        for each in witnessed:
            each.judge(replay.head, findings)
        events = await _check_unsealed(reader, now - grace, findings)
        certificates, revocations, intents = await cross_check(reader, findings)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        # Whoever owns the database can put a value of any type into a row of SQLite's.
        where = f"after leaf {replay.leaves}"
        findings.add(FindingKind.EDITED, where, f"a row holds a value that this server never writes: {error}")
    return VerificationReport(
        leaves=replay.leaves,
        checkpoints=replay.checkpoints,
        events=events,
        certificates=certificates,
        revocations=revocations,
        intents=intents,
        size=replay.head.size if replay.head else 0,
        root=replay.head.root if replay.head else EMPTY_ROOT,
        anchored_size=anchored.head.size if anchored else None,
        findings=findings.listed(),
        omitted=findings.omitted,
    )


async def _replay(
    reader: AuditReader, replay: Replay, witnessed: Sequence[Witnessed], progress: Progress | None
) -> None:
    """Feed leaves and checkpoints in order."""
    latest = await reader.latest_checkpoint()
    end = 0 if latest is None else latest[0].size
    leaves = _leaves(reader)
    leaf = await anext(leaves, None)
    beyond: StoredCheckpoint | None = None
    stored = Frontier()  # what the hashes add up to, whatever checkpoints say
    async for checkpoint in _checkpoints(reader, end):
        while leaf is not None and leaf.index < checkpoint.size:
            replay.add_leaf(leaf)
            stored.append(leaf.leaf_hash)
            for each in witnessed:
                each.at_leaves(stored.size, stored.root)
            leaf = await anext(leaves, None)
        if leaf is None and replay.tree.size < checkpoint.size:
            beyond = checkpoint
        else:
            replay.add_checkpoint(checkpoint)
            if progress is not None:
                progress(replay.tree.size, end)
        for each in witnessed:
            each.at_checkpoint(checkpoint.size, checkpoint.root)
    # A leaf is committed with its checkpoint: one above the newest checkpoint was put there otherwise.
    latest = await reader.latest_checkpoint() if leaf is not None else latest
    newest = 0 if latest is None else latest[0].size
    while leaf is not None and leaf.index >= newest:
        replay.add_leaf(leaf)
        leaf = await anext(leaves, None)
    replay.finish(beyond)


async def _check_unsealed(reader: AuditReader, deadline: datetime, findings: Findings) -> int:
    """Look at every event for one without a leaf; the number of events."""
    after, count = "", 0
    latest = event_id_at(deadline)
    while (page := await reader.events(after, _PAGE)).last_id is not None:
        count += page.count
        after = page.last_id
        for event in page.unsealed:
            try:
                problems = list(column_problems(event, leaf_members(event.leaf)))
            except CaError as error:
                problems = [error.detail]
            for problem in problems:
                findings.add(FindingKind.EDITED, f"event {event.id}", problem)
            if event.id >= latest or await reader.leaf_of(event.id) is not None:
                continue
            waits = await reader.is_pending(event.id)
            text = "it waits for the sequencer" if waits else "it has no leaf and does not wait for one"
            findings.add(FindingKind.UNSEALED, f"event {event.id}", text)
    for event_id in await reader.pending_lost(_PAGE):
        findings.add(FindingKind.DELETED, f"event {event_id}", "the event was deleted while it waited for its leaf")
    return count


async def _leaves(reader: AuditReader) -> AsyncIterator[StoredLeaf]:
    first = 0
    while page := await reader.leaves(first, _PAGE):
        for leaf in page:
            yield leaf
        first = page[-1].index + 1


async def _checkpoints(reader: AuditReader, end: int) -> AsyncIterator[StoredCheckpoint]:
    after = 0
    while page := await reader.checkpoints(after, _PAGE):
        for checkpoint in page:
            if checkpoint.size > end:
                return
            yield checkpoint
        after = page[-1].size
