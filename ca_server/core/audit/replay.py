"""Replays the log from its first leaf: every leaf against its event, every checkpoint against its leaves.

What a leaf's hash should be is settled by the signed checkpoint above it, so a finding tells what was touched:

- the stored hashes lead to the signed root, but an event does not have its leaf's hash: the event was edited, or, if
  another leaf of the span has that hash, exchanged with it;
- the stored hashes don't lead to the root: leaves between two checkpoints were touched. A number missing in the
  sequence of a process means a deletion, a number that comes too early or two leaves whose exchange repairs the root
  mean that they were reordered, anything else an edit.

After a span that does not lead to its root, the replay goes on from the tree that was saved with the checkpoint, if it
has the signed root: one alteration is found in one place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from typing import Final

from ca_server.core.audit.events import leaf_members, leaf_time
from ca_server.core.audit.findings import FindingKind, Findings
from ca_server.core.audit.reading import COLUMNS, StoredCheckpoint, StoredEvent, StoredLeaf
from ca_server.core.notes import NoteKey, TreeHead, parse_checkpoint_text, parse_note, verify_note
from ca_server.core.tlog import HASH_SIZE, Frontier, leaf_hash
from ca_server.domain.errors import CaError

_EXCHANGE_LIMIT: Final = 64
"""Leaves of the longest span in which every exchange of two leaves is tried."""
_SPAN_MEMORY: Final = 20_000
"""Hashes of a span that are kept to look for exchanged events."""
_EVIDENCE: Final = 100
"""Missing or misplaced events that are kept of one place."""
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

_Numbered = tuple[str, int]
"""A process and the number of one of its events."""


@dataclass(slots=True)
class _Span:
    """The leaves since the last checkpoint."""

    first: int
    hashes: list[bytes] = field(default_factory=list)
    strangers: list[tuple[int, str, bytes]] = field(default_factory=list)
    """Leaves whose event has another hash: index, event id, the event's hash."""
    missing: list[_Numbered] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    """Leaves whose event has a lower number than one before."""
    holed: bool = False


@dataclass(slots=True)
class _BadRun:
    """Spans in a row that don't lead to their roots: one alteration may have moved all that is behind it."""

    first: int
    end: int = 0
    missing: list[_Numbered] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    exchanged: tuple[int, int] | None = None
    explained: bool = False
    short: int = 0
    """Leaves that the end of the log is short of."""

    def add(self, span: _Span, end: int) -> None:
        """Take up another span."""
        self.end = end
        self.missing += span.missing[:_EVIDENCE]
        self.early += span.early[:_EVIDENCE]
        self.explained |= span.holed or bool(span.strangers)


class Replay:
    """Takes leaves and checkpoints in order; `tree` is what the stored hashes add up to so far."""

    def __init__(self, spki_ders: Sequence[bytes], origin: str | None, findings: Findings) -> None:
        self._spkis = spki_ders
        self._origin = origin
        self._keys: list[NoteKey] = []
        self._findings = findings
        self._sequences: dict[str, int] = {}
        self._missing: dict[_Numbered, str] = {}
        """Events that a process numbered and that were not met yet, with where they should have been."""
        self._unreadable = 0
        """Leaves whose event could not be asked for its number, since it is gone or altered."""
        self._before = Frontier()
        self._span = _Span(0)
        self._bad: list[_BadRun] = []
        self._in_bad_run = False
        self._covered = 0
        self.tree = Frontier()
        self.leaves = 0
        self.checkpoints = 0
        self.head: TreeHead | None = None
        """The last checkpoint whose signature verified."""

    def add_leaf(self, leaf: StoredLeaf) -> None:
        """Take the next leaf."""
        self._skip_to(leaf.index)
        self.leaves += 1
        span = self._span
        if len(span.hashes) < _SPAN_MEMORY:
            span.hashes.append(leaf.leaf_hash)
        self.tree.append(leaf.leaf_hash.ljust(HASH_SIZE, b"\0")[:HASH_SIZE])
        event = leaf.event
        if event is None:
            self._unreadable += 1
            self._found(FindingKind.DELETED, f"leaf {leaf.index}", f"the event {leaf.event_id} of the leaf is gone")
            return
        members = self._members(leaf.index, event)
        actual = leaf_hash(event.leaf)
        if actual != leaf.leaf_hash:
            span.strangers.append((leaf.index, leaf.event_id, actual))
        if actual != leaf.leaf_hash or members is None:
            self._unreadable += 1
        else:
            self._check_number(leaf.index, members)

    def _found(self, kind: FindingKind, where: str, text: str) -> None:
        self._findings.add(kind, where, text)

    def _skip_to(self, index: int) -> None:
        """Pass over leaves whose rows are gone; until the next checkpoint the tree is of no use."""
        gap = index - self.tree.size
        if gap <= 0:
            return
        self._found(FindingKind.DELETED, _leaves(self.tree.size, index), "the rows of the leaves are gone")
        self._span.holed = True
        self._unreadable += gap
        self.tree = Frontier(index, [bytes(HASH_SIZE)] * index.bit_count())

    def _members(self, index: int, event: StoredEvent) -> dict[str, object] | None:
        try:
            members = leaf_members(event.leaf)
        except CaError as error:
            self._found(FindingKind.EDITED, f"leaf {index}", f"the event {event.id}: {error.detail}")
            return None
        for problem in column_problems(event, members):
            self._found(FindingKind.EDITED, f"leaf {index}", problem)
        return members

    def _check_number(self, index: int, members: dict[str, object]) -> None:
        """Hold an event against the numbering of its process, which has no gaps (`EventFactory.make`)."""
        process, sequence = members.get("process"), members.get("sequence")
        if not isinstance(process, str) or not isinstance(sequence, int):
            return
        last = self._sequences.get(process, 0)
        if sequence <= last:
            place = self._missing.pop((process, sequence), "another place")
            self._span.early.append(f"event {sequence} of process {process} is at leaf {index}, and belongs {place}")
            return
        self._sequences[process] = sequence
        absent = sequence - last - 1
        if absent <= self._unreadable:
            self._unreadable -= absent
            return
        for number in range(last + 1, min(sequence, last + 1 + _EVIDENCE)):
            self._missing[process, number] = f"before leaf {index}"
            self._span.missing.append((process, number))

    def add_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Take the checkpoint over the leaves taken so far."""
        self._skip_to(checkpoint.size)
        self.checkpoints += 1
        self._covered = checkpoint.size
        head = self._opened(checkpoint)
        if head is None:
            return  # the next checkpoint that is signed tells of these leaves
        self.head = head
        span, self._span = self._span, _Span(checkpoint.size)
        state = _saved_tree(checkpoint.state, head)
        if state is None:
            where = f"checkpoint {checkpoint.size}"
            self._found(FindingKind.EDITED, where, "the tree that was saved with the checkpoint is not its own")
        if head.root == self.tree.root() and not span.holed:
            self._in_bad_run = False
            self._name_strangers(span)
            for early in span.early:
                self._found(
                    FindingKind.REORDERED, _leaves(span.first, checkpoint.size), f"before it was sealed: {early}"
                )
        else:
            self._extend_bad_run(span, head)
            self.tree = state or self.tree
        self._before = self.tree.copy()

    def _opened(self, checkpoint: StoredCheckpoint) -> TreeHead | None:
        where = f"checkpoint {checkpoint.size}"
        try:
            note = parse_note(checkpoint.note)
            head = parse_checkpoint_text(note.text)
            if not self._keys:
                self._origin = self._origin or head.origin
                self._keys = [NoteKey(self._origin, spki) for spki in self._spkis]
            verify_note(note, self._keys)
        except CaError as error:
            self._found(FindingKind.BAD_SIGNATURE, where, error.detail)
            return None
        if head.origin != self._origin:
            self._found(FindingKind.BAD_SIGNATURE, where, f"the checkpoint is of another log, {head.origin}")
            return None
        if (head.size, head.root) != (checkpoint.size, checkpoint.root):
            self._found(FindingKind.EDITED, where, "the columns of the checkpoint differ from its signed note")
        return head if head.size == checkpoint.size else None

    def _name_strangers(self, span: _Span) -> None:
        if not span.strangers:
            return
        places = {hashed: span.first + offset for offset, hashed in enumerate(span.hashes)}
        for index, event_id, actual in span.strangers:
            other = places.get(actual)
            if other is None or span.holed:
                text = f"the event {event_id} does not have the hash of its leaf"
                self._found(FindingKind.EDITED, f"leaf {index}", text)
            else:
                self._found(FindingKind.REORDERED, f"leaf {index}", f"the event {event_id} belongs to leaf {other}")

    def _extend_bad_run(self, span: _Span, head: TreeHead) -> None:
        if not self._in_bad_run:
            self._in_bad_run = True
            self._bad.append(_BadRun(span.first, exchanged=self._exchanged(span, head)))
        self._bad[-1].add(span, head.size)
        self._name_strangers(span)

    def _exchanged(self, span: _Span, head: TreeHead) -> tuple[int, int] | None:
        """The two leaves whose exchange repairs the root, in a short span."""
        count = len(span.hashes)
        if span.holed or count > _EXCHANGE_LIMIT or span.first + count != head.size:
            return None
        for low, high in combinations(range(count), 2):
            hashes = list(span.hashes)
            hashes[low], hashes[high] = hashes[high], hashes[low]
            tree = self._before.copy()
            tree.extend(hashes)
            if tree.root() == head.root:
                return span.first + low, span.first + high
        return None

    def finish(self, beyond: StoredCheckpoint | None) -> None:
        """Report what only the whole tells; `beyond` is the last checkpoint where leaves are missing below it."""
        span = self._span
        if beyond is not None:
            self.head = self._opened(beyond) or self.head
            short = beyond.size - self.tree.size
            moved = self._in_bad_run and not self._bad[-1].explained
            if moved or span.missing:
                if not moved:
                    self._bad.append(_BadRun(span.first))
                self._bad[-1].add(span, self.tree.size)
                self._bad[-1].short = short
            else:
                self._found(
                    FindingKind.TRUNCATED,
                    _leaves(self.tree.size, beyond.size),
                    f"the last checkpoint is over {beyond.size} leaves, and {self.tree.size} are there",
                )
        elif self.tree.size > self._covered:
            self._found(
                FindingKind.INSERTED,
                _leaves(self._covered, self.tree.size),
                "no checkpoint covers the leaves: they were inserted, or the last checkpoints were deleted",
            )
        self._name_strangers(span)
        for run in self._bad:
            self._report(run)
        for (process, number), place in self._missing.items():
            self._found(
                FindingKind.DELETED, place, f"event {number} of process {process} was deleted before it was sealed"
            )

    def _report(self, run: _BadRun) -> None:
        where = _leaves(run.first, run.end)
        gone = [number for number in run.missing if number in self._missing]
        for numbered in gone:
            del self._missing[numbered]
        if run.exchanged is not None:
            low, high = run.exchanged
            self._found(FindingKind.REORDERED, _leaves(low, high + 1), f"leaves {low} and {high} were exchanged")
        elif run.explained:
            return
        elif run.early or len(gone) < len(run.missing):
            first = run.early[0] if run.early else f"events of process {run.missing[0][0]} stand elsewhere"
            self._found(FindingKind.REORDERED, where, f"the order was changed: {first}")
        elif gone:
            process, number = gone[0]
            text = f"leaves were taken out, among them event {number} of process {process}"
            self._found(FindingKind.DELETED, where, text)
        elif run.short:
            self._found(FindingKind.DELETED, where, f"{run.short} leaves were taken out")
        else:
            text = "the leaves don't lead to the signed root: leaf and event were edited"
            self._found(FindingKind.EDITED, where, text)


def column_problems(event: StoredEvent, members: dict[str, object]) -> Iterator[str]:
    """How an event row differs from the leaf that it holds."""
    if members.get("id") != event.id:
        yield f"the row of event {event.id} holds another event"
        return
    for name, stored in zip(COLUMNS, event.columns, strict=True):
        told = members.get(name)
        if name == "time":
            told = _microseconds(told)
        if told != stored:
            yield f"column {name} of event {event.id} differs from the event"


def _leaves(first: int, end: int) -> str:
    return f"leaf {first}" if end == first + 1 else f"leaves {first}..{end - 1}"


def _saved_tree(state: bytes, head: TreeHead | None) -> Frontier | None:
    try:
        tree = Frontier.decode(state)
    except CaError:
        return None
    return tree if head is not None and (tree.size, tree.root()) == (head.size, head.root) else None


def _microseconds(told: object) -> int | None:
    try:
        since = leaf_time(told) - _EPOCH
    except CaError:
        return None
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
