"""Verification of the whole log, offline: leaves, tree, signatures, anchor, and the CA's own tables against it.

Everything is recomputed from the rows and the log's public keys; memory is bounded whatever the log's size. It may run
beside a working CA: what is committed meanwhile is left for the next time.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from ca_server.core.audit.anchor import Anchor
from ca_server.core.audit.crosscheck import cross_check
from ca_server.core.audit.events import event_id_at, leaf_members
from ca_server.core.audit.findings import FindingKind, Findings, VerificationReport
from ca_server.core.audit.reading import AuditReader, StoredCheckpoint, StoredLeaf
from ca_server.core.audit.replay import Replay, column_problems
from ca_server.core.notes import TreeHead, open_own_checkpoint
from ca_server.core.tlog import EMPTY_ROOT, Frontier
from ca_server.domain.errors import CaError

_PAGE: Final = 1_000

Progress = Callable[[int, int], None]
"""Called with leaves done and leaves in all."""


@dataclass(slots=True)
class _AtAnchor:
    """Roots at the anchor's size: of the leaves as stored, and as the checkpoint there says."""

    stored: bytes | None = None
    signed: bytes | None = None


async def verify(
    reader: AuditReader,
    keys: Sequence[bytes],
    *,
    anchor: Anchor | None = None,
    origin: str | None = None,
    grace: timedelta = timedelta(seconds=10),
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    progress: Progress | None = None,
) -> VerificationReport:
    """Verify the log under its public keys (DER SubjectPublicKeyInfo: one, or those it had one after the other).

    `origin` is that of the first checkpoint unless given; an event may be without a leaf for `grace`. Raises CaError
    UNAVAILABLE where database or anchor are away, never for what it finds.
    """
    findings = Findings()
    anchored = await _anchored(anchor, keys, findings)
    now = clock()
    replay, at_anchor = await _replay(reader, keys, origin, anchored, findings, progress)
    _check_anchor(anchored, at_anchor, replay, findings)
    events = await _check_unsealed(reader, now - grace, findings)
    certificates, revocations, intents = await cross_check(reader, findings)
    return VerificationReport(
        leaves=replay.leaves,
        checkpoints=replay.checkpoints,
        events=events,
        certificates=certificates,
        revocations=revocations,
        intents=intents,
        size=replay.head.size if replay.head else 0,
        root=replay.head.root if replay.head else EMPTY_ROOT,
        anchored_size=anchored.size if anchored else None,
        findings=findings.listed(),
        omitted=findings.omitted,
    )


async def _anchored(anchor: Anchor | None, keys: Sequence[bytes], findings: Findings) -> TreeHead | None:
    note = await anchor.read() if anchor is not None else None
    if note is None:
        return None
    try:
        return open_own_checkpoint(note, keys)
    except CaError as error:
        findings.add(FindingKind.ANCHOR_MISMATCH, "anchor", f"not a checkpoint of this log's key: {error.detail}")
        return None


async def _replay(
    reader: AuditReader,
    keys: Sequence[bytes],
    origin: str | None,
    anchored: TreeHead | None,
    findings: Findings,
    progress: Progress | None,
) -> tuple[Replay, _AtAnchor]:
    """Feed leaves and checkpoints in order."""
    replay = Replay(keys, origin or (anchored.origin if anchored else None), findings)
    at_anchor = _AtAnchor()
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
            if anchored is not None and stored.size == anchored.size:
                at_anchor.stored = stored.root()
            leaf = await anext(leaves, None)
        if leaf is None and replay.tree.size < checkpoint.size:
            beyond = checkpoint
        else:
            replay.add_checkpoint(checkpoint)
            if progress is not None:
                progress(replay.tree.size, end)
        if anchored is not None and checkpoint.size == anchored.size:
            at_anchor.signed = checkpoint.root
    # A leaf is committed with its checkpoint: one above the newest checkpoint was put there otherwise.
    latest = await reader.latest_checkpoint() if leaf is not None else latest
    newest = 0 if latest is None else latest[0].size
    while leaf is not None and leaf.index >= newest:
        replay.add_leaf(leaf)
        leaf = await anext(leaves, None)
    replay.finish(beyond)
    return replay, at_anchor


def _check_anchor(anchored: TreeHead | None, at_anchor: _AtAnchor, replay: Replay, findings: Findings) -> None:
    if anchored is None:
        return
    size = replay.head.size if replay.head else 0
    if size < anchored.size:
        findings.add(
            FindingKind.TRUNCATED,
            f"leaves {size}..{anchored.size - 1}",
            f"the anchor has seen {anchored.size} leaves, the checkpoints end at {size}: truncated or rolled back",
        )
    elif at_anchor.signed == anchored.root:
        return  # how the leaves agree with that checkpoint was told in the replay
    elif at_anchor.signed is None and at_anchor.stored == anchored.root:
        text = "the checkpoint that the anchor has seen was deleted"
        findings.add(FindingKind.DELETED, f"checkpoint {anchored.size}", text)
    else:
        text = f"the first {anchored.size} leaves are not those that the anchor has seen: forked or rewritten"
        findings.add(FindingKind.ANCHOR_MISMATCH, f"checkpoint {anchored.size}", text)


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
