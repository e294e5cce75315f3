"""The table of clients in docs/interop.md, held to what interoplib/matrix.py says of them."""

from interoplib.matrix import COLUMNS, LACKS, Matrix, committed, lacks


def test_the_committed_table_has_each_client_and_no_other() -> None:
    assert set(committed()) == set(LACKS)


def test_each_cell_is_done_or_explained() -> None:
    for client, cells in committed().items():
        open_cells = {column for column in COLUMNS[:-1] if cells[column] == "-"}
        assert open_cells == set(LACKS[client]), client
        assert cells["what it lacks"] == lacks(LACKS[client])


def test_holes_are_what_is_neither_done_nor_explained() -> None:
    matrix = Matrix()
    assert "uacme: IP" in matrix.holes()
    matrix.record("uacme", "1", "IP", "yes")
    assert "uacme: IP" not in matrix.holes()
