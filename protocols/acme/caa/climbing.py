"""The Relevant RRset of names (RFC 8659 section 3): each name up the tree is asked once in a check."""

import asyncio
from datetime import UTC, datetime
from typing import Protocol

from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.validation.resolver import CaaAnswer, DnsFailure

ATTEMPTS = 2
"""Lookups that fail for now are made once more: a nameserver may be restarting."""
_PAUSE = 0.5
QUERIES_PER_NAME = 10
QUERIES_PER_CHECK = 64
"""And as many more for each name as above: names of few labels share the domains above them."""
_AT_ONCE = 8


class CaaSource(Protocol):
    """Where CAA records come from."""

    async def caa(self, name: str) -> CaaAnswer:
        """CAA records of one name, aliases followed; none where there is no such name. Raises DnsFailure."""


class Climb:
    """The lookups of one check. `_asked` has the task of each name, `_left` is how many queries are left."""

    def __init__(self, source: CaaSource, names: int) -> None:
        """`names` are to be looked up."""
        self._source = source
        self._left = QUERIES_PER_CHECK + QUERIES_PER_NAME * names
        self._asked: dict[str, asyncio.Task[CaaAnswer]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def relevant(self, name: str) -> CaaLookup:
        """Climb from a name, without wildcard label, to its top-level domain. Raises DnsFailure."""
        began = datetime.now(UTC)
        authenticated = True
        at = name
        while at:
            answer = await self._ask(at)
            authenticated &= answer.authenticated
            if answer.records:
                return CaaLookup(name, began, at, answer.records, authenticated)
            at = at.partition(".")[2]
        return CaaLookup(name, began, authenticated=authenticated)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _ask(self, name: str) -> CaaAnswer:
        if name not in self._asked:
            self._asked[name] = asyncio.create_task(self._query(name), name=f"caa {name}")
        return await asyncio.shield(self._asked[name])

    async def _query(self, name: str) -> CaaAnswer:
        async with self._slots:
            for attempt in range(1, ATTEMPTS + 1):
                if self._left <= 0:
                    raise DnsFailure(f"too many lookups before that of {name}", retryable=False)
                self._left -= 1
                try:
                    return await self._source.caa(name)
                except DnsFailure as failure:
                    if not failure.retryable or attempt == ATTEMPTS:
                        raise
                await asyncio.sleep(_PAUSE)
        raise AssertionError("unreachable")
