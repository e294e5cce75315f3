"""The sequencer: gives committed events their places in the tree, and signs a checkpoint over them.

One process at a time holds the lease; the store refuses a seal under an older fence. A cycle is

1. hold the lease, and load the tree behind the last checkpoint, which must verify and extend the anchor;
2. take the pending events, grow the tree, sign the checkpoint;
3. commit leaves and checkpoint together;
4. compare-and-swap the checkpoint into the anchor, then tell whoever publishes it.

Who does not hold the lease follows: its own anchor takes each checkpoint that extends what it has.

No next checkpoint is signed while the last one is not anchored: the anchor is never more than one behind. What a
signature was made for is kept while its fate is not known: a commit whose outcome was lost is tried again with the same
leaves and the same note, so that no two checkpoints that may have been seen disagree.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from ca_server.core.audit.anchor import Anchor, check_anchor, compare, require_extension
from ca_server.core.audit.events import leaf_members, leaf_time
from ca_server.core.notes import (
    NoteKey,
    NoteSignature,
    TreeHead,
    checkpoint_text,
    encode_note,
    open_checkpoint,
)
from ca_server.core.ports import AuditStore, CoordinationStore, Lease, SigningKey
from ca_server.core.tlog import Frontier, leaf_hash
from ca_server.domain.audit import Checkpoint
from ca_server.domain.errors import CaError, ErrorKind

LEASE_NAME: Final = "audit-sequencer"
_LONGEST_PAUSE: Final = 10.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A signed checkpoint that is not known to be committed."""

    leaves: tuple[tuple[str, bytes], ...]
    first_index: int
    checkpoint: Checkpoint
    tree: Frontier


class Sequencer:
    """Runs as one task of the core process, which owns all mutable fields.

    `interval` is the longest wait, in seconds, between two looks at what is pending; `batch` bounds the leaves under
    one checkpoint; `publish` is called with each checkpoint once it is anchored, and must not block.
    """

    def __init__(
        self,
        *,
        store: AuditStore,
        coordination: CoordinationStore,
        key: SigningKey,
        anchor: Anchor,
        origin: str,
        holder: str,
        interval: float = 0.5,
        batch: int = 5_000,
        lease_duration: timedelta = timedelta(seconds=5),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        publish: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        """MALFORMED where the key is neither P-256 nor Ed25519, or the origin is no key name (C2SP signed-note)."""
        self._store = store
        self._coordination = coordination
        self._key = key
        self._note_key = NoteKey(origin, key.spki_der)
        self._anchor = anchor
        self._origin = origin
        self._holder = holder
        self._interval = interval
        self._batch = batch
        self._lease_duration = lease_duration
        self._clock = clock
        self._publish = publish
        self._wake = asyncio.Event()
        self._running = False
        self._lease: Lease | None = None
        self._tree: Frontier | None = None
        self._last: Checkpoint | None = None
        self._anchored: bytes | None = None
        self._attempt: _Attempt | None = None
        self._oldest: datetime | None = None
        self.size = 0
        """Leaves under the last checkpoint that this process knows."""
        self.problem: str | None = None
        """Why the last cycle failed; None when it did not."""

    @property
    def verifier_key(self) -> str:
        """The log's key as verifiers and witnesses configure it (C2SP signed-note, "Verifier keys")."""
        return self._note_key.verifier_key

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest committed event that had no leaf when this process last looked; 0 when there was none."""
        if self._oldest is None:
            return 0.0
        return max(0.0, (self._clock() - self._oldest).total_seconds())

    def nudge(self) -> None:
        """Look at what is pending now."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Sequence until `stop` is set; then seal what is pending and give the lease back. Faults never end it."""
        self._running = True
        stopping = asyncio.create_task(stop.wait(), name="audit sequencer stop")
        failures = 0
        try:
            while not stop.is_set():
                failures = 0 if await self._guarded_cycle() else failures + 1
                pause = min(self._interval * 2 ** min(failures, 8), max(self._interval, _LONGEST_PAUSE))
                await self._wait(stopping, pause if failures else self._interval)
            await self._guarded_cycle()
        finally:
            self._running = False
            stopping.cancel()
            await self._release()

    async def run_once(self) -> int:
        """Seal all that is pending now; return the number of leaves. 0 too where another process has the lease.

        Raises CaError where token, database or anchor are away, or the log is not consistent.
        """
        try:
            return await self._cycle()
        finally:
            if not self._running:
                await self._release()

    async def _wait(self, stopping: asyncio.Task[bool], pause: float) -> None:
        waking = asyncio.create_task(self._wake.wait())
        await asyncio.wait((stopping, waking), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        waking.cancel()
        self._wake.clear()

    async def _guarded_cycle(self) -> bool:
        try:
            await self._cycle()
        except CaError as error:
            problem = error.detail
        except Exception as error:  # noqa: BLE001 - the task outlives its mistakes
            _log.exception("audit sequencer failed")
            problem = f"{type(error).__name__}"
        else:
            if self.problem is not None:
                _log.info("audit sequencer works again", size=self.size)
            self.problem = None
            return True
        if problem != self.problem:
            _log.error("audit sequencer can't go on", why=problem, size=self.size, lag=round(self.lag_seconds, 1))
        self.problem = problem
        return False

    async def _cycle(self) -> int:
        sealed = 0
        try:
            while await self._hold_lease():
                tree = await self._load() if self._tree is None else self._tree
                await self._anchor_last()
                if self._attempt is not None:
                    sealed += await self._seal(self._attempt)
                    continue
                # Read after the tree: what another process sealed meanwhile makes the seal fail, not the tree wrong.
                pending = await self._look(self._batch)
                if pending:
                    sealed += await self._seal(await self._sign(tree, pending))
                if len(pending) < self._batch:
                    self._oldest = None
                    return sealed
            await self._follow()
            await self._look(1)
        except BaseException:
            self._tree = None  # whatever was committed is read again
            raise
        return sealed

    async def _follow(self) -> None:
        """Keep this node's anchor near the tree while another node's sequencer grows it.

        A roll-back after that node was lost, with its anchor, is then seen by this one.
        """
        latest = await self._store.latest_checkpoint()
        if latest is None or latest[0].note == self._anchored:
            return
        note = await self._anchor.read()
        if note is not None:
            require_extension(await compare(self._store, note, latest[0], self._key.spki_der))
        if await self._anchor.swap(note, latest[0].note):
            self._anchored, self.size = latest[0].note, latest[0].size

    async def _look(self, limit: int) -> tuple[tuple[str, bytes], ...]:
        pending = await self._store.pending(limit)
        self._oldest = _oldest(pending)
        return pending

    async def _seal(self, attempt: _Attempt) -> int:
        lease = self._lease
        assert lease is not None
        self._attempt = attempt
        try:
            await self._store.seal(
                lease, attempt.leaves, attempt.first_index, attempt.checkpoint, attempt.tree.encode()
            )
        except CaError as error:
            if error.kind is ErrorKind.CONFLICT:
                self._attempt = self._lease = None  # nothing was committed, and the same can't be
            raise
        self._tree, self._last, self._attempt = attempt.tree, attempt.checkpoint, None
        self.size = attempt.tree.size
        await self._anchor_last()
        return len(attempt.leaves)

    async def _hold_lease(self) -> bool:
        now = self._clock()
        held = self._lease
        if held is not None and held.expires_at - now > self._lease_duration / 2:
            return True
        # What an earlier boot of this node held is this one's at once: it was fenced off.
        self._lease = await self._coordination.acquire_lease(
            LEASE_NAME, self._holder, now, self._lease_duration, node=self._holder.partition("/")[0]
        )
        if self._lease is None or held is None or self._lease.fence != held.fence:
            self._tree = None  # others may have sealed meanwhile
        return self._lease is not None

    async def _load(self) -> Frontier:
        """Take up the tree behind the last checkpoint. INTERNAL where checkpoint, state or anchor contradict it."""
        latest = await self._store.latest_checkpoint()
        self._last = None
        tree = Frontier()
        if latest is not None:
            self._last, state = latest
            tree = self._verified_tree(self._last, state)
        note = await self._anchor.read()
        if note is None or self._last is None or note != self._last.note:
            require_extension(await check_anchor(self._store, self._anchor, self._key.spki_der))
        self._anchored = note
        self._tree, self.size = tree, tree.size
        self._review_attempt()
        return tree

    def _verified_tree(self, checkpoint: Checkpoint, state: bytes) -> Frontier:
        try:
            head = open_checkpoint(checkpoint.note, [self._note_key])
            tree = Frontier.decode(state)
        except CaError as error:
            raise CaError(ErrorKind.INTERNAL, f"the last checkpoint does not verify: {error.detail}") from error
        if head != TreeHead(self._origin, tree.size, tree.root()) or head.size != checkpoint.size:
            raise CaError(ErrorKind.INTERNAL, "the saved tree does not reproduce the last checkpoint")
        return tree

    def _review_attempt(self) -> None:
        """After loading: drop an attempt that was committed after all, or that another process has overtaken.

        A note that was signed here and is not in the database never left this process.
        """
        attempt = self._attempt
        if attempt is not None and attempt.first_index != self.size:
            self._attempt = None

    async def _sign(self, tree: Frontier, pending: Sequence[tuple[str, bytes]]) -> _Attempt:
        grown = tree.copy()
        leaves = tuple((event_id, leaf_hash(leaf)) for event_id, leaf in pending)
        grown.extend(hashed for _, hashed in leaves)
        root = grown.root()
        text = checkpoint_text(TreeHead(self._origin, grown.size, root))
        signature = await self._key.sign(text.encode())
        if not self._note_key.verifies(text, signature):
            raise CaError(ErrorKind.UNAVAILABLE, "the token returned a signature that does not verify")
        note = encode_note(text, [NoteSignature(self._origin, self._note_key.key_id, signature)])
        return _Attempt(leaves, tree.size, Checkpoint(self._origin, grown.size, root, note, self._clock()), grown)

    async def _anchor_last(self) -> None:
        last = self._last
        if last is None or self._anchored == last.note:
            return
        if not await self._anchor.swap(self._anchored, last.note):
            # Another process of this log may have moved it: `_load` decides whether what stands is ours to follow.
            raise CaError(ErrorKind.UNAVAILABLE, "the anchor was changed by another process")
        self._anchored = last.note
        _log.debug("checkpoint", size=last.size, root=last.root.hex())
        if self._publish is not None:
            self._publish(last)

    async def _release(self) -> None:
        lease, self._lease, self._tree = self._lease, None, None
        if lease is not None:
            with contextlib.suppress(CaError):
                await self._coordination.release_lease(lease)


def _oldest(pending: Sequence[tuple[str, bytes]]) -> datetime | None:
    if not pending:
        return None
    try:
        return leaf_time(leaf_members(pending[0][1]).get("time"))
    except CaError:
        return datetime.fromtimestamp(0, UTC)
