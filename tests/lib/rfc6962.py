"""RFC 6962 section 2.1 as it stands there: recursive, over whole lists, and knowing nothing of ca-server."""

from collections.abc import Sequence
from hashlib import sha256

Data = Sequence[bytes]


def mth(data: Data) -> bytes:
    """The Merkle Tree Hash (section 2.1)."""
    if not data:
        return sha256(b"").digest()
    if len(data) == 1:
        return sha256(b"\x00" + data[0]).digest()
    k = split(len(data))
    return sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def path(m: int, data: Data) -> list[bytes]:
    """The Merkle audit path (section 2.1.1)."""
    if len(data) == 1:
        return []
    k = split(len(data))
    if m < k:
        return [*path(m, data[:k]), mth(data[k:])]
    return [*path(m - k, data[k:]), mth(data[:k])]


def proof(m: int, data: Data) -> list[bytes]:
    """The Merkle consistency proof (section 2.1.2)."""
    return subproof(m, data, complete=True)


def subproof(m: int, data: Data, *, complete: bool) -> list[bytes]:
    if m == len(data):
        return [] if complete else [mth(data)]
    k = split(len(data))
    if m <= k:
        return [*subproof(m, data[:k], complete=complete), mth(data[k:])]
    return [*subproof(m - k, data[k:], complete=False), mth(data[:k])]


def split(n: int) -> int:
    """The largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k
