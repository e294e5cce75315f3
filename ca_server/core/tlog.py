"""The Merkle tree of RFC 6962 section 2.1 with SHA-256: growth from a frontier, and proofs made and verified.

Proofs are made from hashes of ranges of leaves: `inclusion_ranges` and `consistency_ranges` name the ranges,
`range_hashes` computes them in one pass over the leaves with little memory, and whoever keeps hashes of subtrees
(tiles) may look them up instead.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

from ca_server.domain.errors import CaError, ErrorKind

HASH_SIZE: Final = 32
MAX_SIZE: Final = 2**63 - 1
EMPTY_ROOT: Final = sha256().digest()
"""The root of the tree without a leaf (section 2.1)."""

_LEAF = b"\x00"
_NODE = b"\x01"
_SIZE_BYTES = 8


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf (section 2.1)."""
    return sha256(_LEAF + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node over its two subtrees (section 2.1)."""
    return sha256(_NODE + left + right).digest()


class Frontier:
    """A growing tree, kept as the roots of its perfect subtrees from left to right: at most 63 hashes."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Continue from `size` leaves. MALFORMED where the hashes don't belong to a tree of that size."""
        if not 0 <= size <= MAX_SIZE or len(hashes) != size.bit_count() or any(len(h) != HASH_SIZE for h in hashes):
            raise CaError(ErrorKind.MALFORMED, "a frontier does not belong to a tree of its size")
        self.size = size
        self._hashes = list(hashes)

    def append(self, hashed_leaf: bytes) -> None:
        """Add a leaf by its hash."""
        carry = self.size
        hashes = self._hashes
        while carry & 1:
            hashed_leaf = sha256(_NODE + hashes.pop() + hashed_leaf).digest()
            carry >>= 1
        hashes.append(hashed_leaf)
        self.size += 1

    def extend(self, hashed_leaves: Iterable[bytes]) -> None:
        """Add leaves by their hashes."""
        for hashed_leaf in hashed_leaves:
            self.append(hashed_leaf)

    def root(self) -> bytes:
        """The root of the tree."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in reversed(self._hashes[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> "Frontier":
        """A tree of the same leaves that grows on its own."""
        return Frontier(self.size, self._hashes)

    def encode(self) -> bytes:
        """Eight bytes of size, then the hashes; `decode` undoes it."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self._hashes)

    @classmethod
    def decode(cls, state: bytes) -> "Frontier":
        """Continue from `encode`. MALFORMED for anything else."""
        size = int.from_bytes(state[:_SIZE_BYTES], "big")
        hashes = [state[at : at + HASH_SIZE] for at in range(_SIZE_BYTES, len(state), HASH_SIZE)]
        if len(state) < _SIZE_BYTES:
            raise CaError(ErrorKind.MALFORMED, "a frontier is cut off")
        return cls(size, hashes)


def tree_root(hashed_leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes."""
    tree = Frontier()
    tree.extend(hashed_leaves)
    return tree.root()


Range = tuple[int, int]
"""Leaves from the first index up to, not including, the second."""


def inclusion_ranges(index: int, size: int) -> tuple[Range, ...]:
    """The ranges whose hashes are the audit path of a leaf, its sibling first (section 2.1.1).

    MALFORMED where the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise CaError(ErrorKind.MALFORMED, "the tree has no such leaf")
    first, end = 0, size
    ranges: list[Range] = []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return tuple(reversed(ranges))


def consistency_ranges(old_size: int, new_size: int) -> tuple[Range, ...]:
    """The ranges whose hashes prove that one tree is the beginning of another (section 2.1.2).

    MALFORMED unless 0 < old_size <= new_size: every tree extends the empty one, without a proof.
    """
    if not 0 < old_size <= new_size:
        raise CaError(ErrorKind.MALFORMED, "no consistency proof exists between these sizes")
    first, end = 0, new_size
    ranges: list[Range] = []
    while end != old_size:
        middle = first + _split(end - first)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first > 0:
        ranges.append((first, end))
    return tuple(reversed(ranges))


class RangeHasher:
    """Hashes of disjoint ranges, computed while all leaves pass by in order; keeps one frontier for each range."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._order = tuple(ranges)
        self._trees = {span: Frontier() for span in ranges}
        self._ahead = sorted(ranges, reverse=True)
        self._next = 0

    def extend(self, hashed_leaves: Iterable[bytes]) -> None:
        """Take the next leaves of the tree, from leaf 0 on."""
        for hashed_leaf in hashed_leaves:
            while self._ahead and self._ahead[-1][1] <= self._next:
                self._ahead.pop()
            if self._ahead and self._ahead[-1][0] <= self._next:
                self._trees[self._ahead[-1]].append(hashed_leaf)
            self._next += 1

    def hashes(self) -> tuple[bytes, ...]:
        """The hashes in the order in which the ranges were given. MALFORMED while leaves are missing."""
        if any(tree.size != end - first for (first, end), tree in self._trees.items()):
            raise CaError(ErrorKind.MALFORMED, "leaves of the tree are missing")
        return tuple(self._trees[span].root() for span in self._order)


def range_hashes(ranges: Sequence[Range], hashed_leaves: Iterable[bytes]) -> tuple[bytes, ...]:
    """Hashes of ranges from all leaves of the tree."""
    hasher = RangeHasher(ranges)
    hasher.extend(hashed_leaves)
    return hasher.hashes()


def verify_inclusion(index: int, size: int, hashed_leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """Whether an audit path leads from a leaf to a root (RFC 9162 section 2.1.3.2, for the same tree)."""
    if not 0 <= index < size <= MAX_SIZE or not _are_hashes((hashed_leaf, root, *path)):
        return False
    node, last = index, size - 1
    result = hashed_leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and result == root


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `new_root` begins with all leaves of that of `old_root` (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old_size <= new_size <= MAX_SIZE or not _are_hashes((old_root, new_root, *proof)):
        return False
    if old_size in (0, new_size):
        known = EMPTY_ROOT if old_size == 0 else new_root
        return not proof and old_root == known and (new_size > 0 or new_root == EMPTY_ROOT)
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(count: int) -> int:
    """The largest power of two below `count` (section 2.1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _are_hashes(values: Iterable[bytes]) -> bool:
    return all(len(value) == HASH_SIZE for value in values)
