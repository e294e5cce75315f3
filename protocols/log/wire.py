"""Paths of tiles and entry bundles (C2SP tlog-tiles): text to values and back, no I/O."""

import re
from dataclasses import dataclass

ENTRIES = -1
"""The level that stands for a bundle of entries."""
FULL = 256
_MAX_LEVEL = 63
_PATH = re.compile(
    r"(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(x[0-9]{3}/){0,6}[0-9]{3})(\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class MalformedPathError(ValueError):
    """The path is not that of any tile."""


@dataclass(frozen=True, slots=True)
class TilePath:
    """`<L>/<N>[.p/<W>]`: a tile of 256 hashes, or its first `width` where it is partial."""

    level: int
    index: int
    width: int = FULL

    def __str__(self) -> str:
        groups = [f"{self.index % 1000:03}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == FULL else f".p/{self.width}"
        return f"{level}/{'/'.join(groups)}{partial}"


def parse_tile_path(path: str) -> TilePath:
    """Parse what follows `/tile/`. MalformedPathError, also for a second spelling of the same tile."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise MalformedPathError(path)
    level = ENTRIES if found["level"] == "entries" else int(found["level"])
    index = int(found["index"].replace("x", "").replace("/", ""))
    parsed = TilePath(level, index, int(found["width"] or FULL))
    if level > _MAX_LEVEL or (found["width"] and parsed.width >= FULL) or str(parsed) != path:
        raise MalformedPathError(path)
    return parsed
