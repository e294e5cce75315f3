"""Who may stay when there are too many: a peer that takes much loses what it does not use, before anybody else does.

Pure bookkeeping. Members are told by address (of IPv6 by /64, which one host has for itself), and wait (in a handshake,
for a request, between requests) or work. For one more, the member that has waited longest goes: of the newcomer's
address where that has its full share, else of the address with the most members that wait. So nobody who holds idle
connections, however many, keeps others out, and what is being answered is never cut.
"""

import functools
import ipaddress
from collections import Counter, defaultdict
from typing import Generic, TypeVar

Member = TypeVar("Member")

_PREFIX = 64


@functools.lru_cache(maxsize=65_536)
def origin(address: str | None) -> str:
    """What counts as one peer: an IPv4 address, or the /64 of an IPv6 address; empty where there is none."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if parsed.version == 4:  # noqa: PLR2004 - IPv4
        return str(parsed)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _PREFIX), strict=False).network_address)


class Crowd(Generic[Member]):
    """Members by address, in the order in which they began to wait. Each step takes constant time."""

    def __init__(self, limit: int, limit_per_address: int) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._address: dict[Member, str] = {}
        self._count: Counter[str] = Counter()
        self._waiting: defaultdict[str, dict[Member, None]] = defaultdict(dict)
        self._by_waiting: defaultdict[int, dict[str, None]] = defaultdict(dict)
        """Addresses by how many of theirs wait."""
        self._most = 0

    def __len__(self) -> int:
        return len(self._address)

    @property
    def is_full(self) -> bool:
        """Whether one more needs another to go."""
        return len(self._address) >= self._limit

    @property
    def can_grow(self) -> bool:
        """Whether there is room for one more, or somebody who waits and can go."""
        return not self.is_full or self._most > 0

    def has_share(self, address: str) -> bool:
        """Whether an address has as many members as it may."""
        return self._count[address] >= self._limit_per_address

    def address_of(self, member: Member) -> str:
        """Where a member came from."""
        return self._address[member]

    def longest_waiting(self, address: str | None = None) -> Member | None:
        """Who has waited longest, of an address or else of that with the most who wait; None where nobody waits."""
        if address is None:
            address = next(iter(self._by_waiting[self._most]), "") if self._most else ""
        return next(iter(self._waiting.get(address, ())), None)

    def enter(self, member: Member, address: str) -> None:
        """Take in a member, who waits."""
        self._address[member] = address
        self._count[address] += 1
        self.wait(member)

    def leave(self, member: Member) -> bool:
        """Let a member go; false where it was none (any more)."""
        if member not in self._address:
            return False
        self.work(member)
        address = self._address.pop(member)
        self._count[address] -= 1
        if not self._count[address]:
            del self._count[address]
        return True

    def wait(self, member: Member) -> None:
        """A member begins to wait."""
        address = self._address.get(member)
        if address is None or member in self._waiting[address]:
            return
        self._waiting[address][member] = None
        self._move(address, len(self._waiting[address]) - 1)

    def work(self, member: Member) -> None:
        """A member has something to do."""
        address = self._address.get(member)
        if address is None or member not in self._waiting.get(address, ()):
            return
        del self._waiting[address][member]
        self._move(address, len(self._waiting[address]) + 1)

    def _move(self, address: str, before: int) -> None:
        """Keep `_by_waiting` after a change by one."""
        self._by_waiting[before].pop(address, None)
        if not self._by_waiting[before]:
            del self._by_waiting[before]
        after = len(self._waiting[address])
        if after:
            self._by_waiting[after][address] = None
        else:
            del self._waiting[address]
        self._most = max(self._most, after)
        if self._most not in self._by_waiting:
            self._most = after
