"""Identifiers: those that sort by the time of their making, and those that tell nothing."""

import os
import time
from collections.abc import Iterator
from secrets import token_bytes, token_urlsafe

_RANDOM_OCTETS = 10
_DRAWN_AT_ONCE = 100


def _draws() -> Iterator[str]:
    """Random octets in hexadecimal; the system is asked for many at once, which costs it no more than for few."""
    while True:
        drawn = token_bytes(_RANDOM_OCTETS * _DRAWN_AT_ONCE).hex()
        for begin in range(0, len(drawn), 2 * _RANDOM_OCTETS):
            yield drawn[begin : begin + 2 * _RANDOM_OCTETS]


class _Source:
    """What this process draws from; a forked one draws anew."""

    def __init__(self) -> None:
        self.draws = _draws()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.draws = _draws()


_source = _Source()


def new_id() -> str:
    """Draw an identifier of 32 hexadecimal digits: 48 bits of milliseconds since 1970, and 80 that nobody can guess.

    Rows that are made at one time are neighbours in the index over such a key: a transaction that makes many writes
    few pages, where wholly random keys cost it a page each. To be called by one thread of a process.
    """
    return f"{time.time_ns() // 1_000_000:012x}{next(_source.draws)}"


def new_handle() -> str:
    """Draw an identifier of 22 letters, digits and underscores that nobody can guess, and no time can be read from.

    None has a hyphen: what begins with one is an option where operators type it.
    """
    return token_urlsafe(16).replace("-", "_")
