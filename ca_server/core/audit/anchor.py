"""The anchor: the last checkpoint, kept outside the database, where a database that was rolled back can't reach it."""

from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from ca_server.core.notes import TreeHead, open_own_checkpoint
from ca_server.core.ports import AuditStore
from ca_server.core.tlog import Frontier
from ca_server.domain.audit import Checkpoint
from ca_server.domain.errors import CaError, ErrorKind

_PAGE: Final = 10_000
_log = structlog.get_logger(__name__)


class Anchor(Protocol):
    """One place that keeps one signed checkpoint."""

    async def read(self) -> bytes | None:
        """The note that was written last; None where none ever was. UNAVAILABLE where the place is away."""

    async def swap(self, expected: bytes | None, note: bytes) -> bool:
        """Durably replace `expected` (None: nothing) by `note`; false, unchanged, where something else stands.

        True too where `note` stands already. UNAVAILABLE where the place is away.
        """


@dataclass(frozen=True, slots=True)
class AnchorMismatch:
    """Why the database does not extend the anchor; the text is for the operator."""

    reason: str
    anchored: TreeHead | None = None
    size: int = 0
    """Leaves that the database has."""

    def __str__(self) -> str:
        return self.reason


async def check_anchor(
    store: AuditStore, anchor: Anchor, key: bytes, *, required: bool = False
) -> AnchorMismatch | None:
    """Check that the database extends the anchored checkpoint; None where it does.

    `key` is the log's public key, a DER SubjectPublicKeyInfo. The work is in proportion to what came after the
    anchor. With `required` a missing anchor is a mismatch unless the log is empty; otherwise it is logged only, since
    a node that joins has none. Raises CaError UNAVAILABLE.
    """
    note = await anchor.read()
    latest = await store.latest_checkpoint()
    size = 0 if latest is None else latest[0].size
    if note is None:
        if latest is None:
            return None
        _log.warning("the audit log has no anchor: a roll-back before this start can't be seen", size=size)
        return AnchorMismatch("the anchor is missing, and the log is not empty", size=size) if required else None
    return await compare(store, note, None if latest is None else latest[0], key)


async def compare(store: AuditStore, note: bytes, checkpoint: Checkpoint | None, key: bytes) -> AnchorMismatch | None:
    """Check that a checkpoint of the database extends the anchored `note`; None where it does. UNAVAILABLE."""
    size = 0 if checkpoint is None else checkpoint.size
    try:
        anchored = open_own_checkpoint(note, [key])
    except CaError as error:
        return AnchorMismatch(f"the anchor is not a checkpoint of this log's key: {error.detail}", size=size)
    if checkpoint is None or checkpoint.size < anchored.size:
        return AnchorMismatch(
            f"the anchor has seen {anchored.size} leaves, the database has {size}: it was rolled back or truncated",
            anchored,
            size,
        )
    if checkpoint.note == note:
        return None
    try:
        head = open_own_checkpoint(checkpoint.note, [key])
    except CaError as error:
        return AnchorMismatch(f"the last checkpoint does not verify: {error.detail}", anchored, checkpoint.size)
    if head.origin != anchored.origin:
        return AnchorMismatch(
            f"the anchor belongs to the log {anchored.origin}, not {head.origin}", anchored, head.size
        )
    forked = AnchorMismatch(
        f"the database does not have the anchor's root at {anchored.size} leaves: it was forked or altered",
        anchored,
        head.size,
    )
    if head.size == anchored.size:
        return None if head.root == anchored.root else forked
    # The state saved with the anchored checkpoint is the anchored tree if it has its root; what came after must
    # lead from there to the last checkpoint.
    at_anchor = await store.checkpoint_at(anchored.size)
    if at_anchor is None:
        return forked
    try:
        tree = Frontier.decode(at_anchor[1])
    except CaError:
        return forked
    if (tree.size, tree.root()) != (anchored.size, anchored.root):
        return forked
    return None if await extend(store, tree, head.size) and tree.root() == head.root else forked


async def extend(store: AuditStore, tree: Frontier, size: int) -> bool:
    """Grow a tree with the stored leaf hashes up to `size`; false where an index is missing."""
    while tree.size < size:
        hashes = await store.leaf_hashes(tree.size, min(_PAGE, size - tree.size))
        if not hashes:
            return False
        tree.extend(hashes)
    return True


def require_extension(mismatch: AnchorMismatch | None) -> None:
    """Raise INTERNAL where the database does not extend the anchor."""
    if mismatch is not None:
        raise CaError(ErrorKind.INTERNAL, f"the audit log and its anchor disagree: {mismatch}")
