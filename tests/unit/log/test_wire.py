"""Paths of tiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.log.wire import ENTRIES, MalformedPathError, TilePath, parse_tile_path


@pytest.mark.parametrize(
    ("path", "tile"),
    [
        ("0/000", TilePath(0, 0)),
        ("0/x001/x234/067", TilePath(0, 1234067)),  # the specification's example
        ("63/999.p/255", TilePath(63, 999, 255)),
        ("entries/x001/000.p/1", TilePath(ENTRIES, 1000, 1)),
    ],
)
def test_paths(path: str, tile: TilePath) -> None:
    assert parse_tile_path(path) == tile
    assert str(tile) == path


@given(st.integers(-1, 63), st.integers(0, 10**21 - 1), st.integers(1, 256))
def test_every_tile_has_its_path(level: int, index: int, width: int) -> None:
    assert parse_tile_path(str(TilePath(level, index, width))) == TilePath(level, index, width)


@given(st.text("0123456789x/.pentris", max_size=30))
def test_no_tile_has_two_paths(path: str) -> None:
    try:
        assert str(parse_tile_path(path)) == path
    except MalformedPathError:
        return
