"""Checkpoints as people keep them."""

from datetime import UTC, datetime

import pytest

from ca_server.core.audit.witnessed import find_checkpoint
from ca_server.core.notes import NoteSignature, TreeHead, checkpoint_text, encode_note
from ca_server.domain.audit import Checkpoint
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.syslog import syslog_line


def made(size: int) -> Checkpoint:
    text = checkpoint_text(TreeHead("ca-server/default", size, bytes(32)))
    note = encode_note(text, [NoteSignature("ca-server/default", b"abcd", b"s" * 70)])
    return Checkpoint("ca-server/default", size, bytes(32), note, datetime(2026, 11, 1, 12, 0, 0, 123456, UTC))


LINES = [syslog_line(made(size), "host", 7) for size in (3, 4)]


@pytest.mark.parametrize(
    ("kept", "size"),
    [
        (made(3).note, 3),
        (b"\n" + made(3).note + b"\n", 3),
        (made(3).note.replace(b"\n", b"\r\n"), 3),
        (LINES[0], 3),
        (LINES[0] + b"\n" + LINES[1] + b"\n", 4),
        (
            b"Nov  1 12:00:00 host other: note= nothing\n"
            + LINES[1]
            + b"\nNov  1 host kernel: footnote=AAAA note=AAAA\n",
            4,
        ),
    ],
    ids=["note", "blank lines", "mail", "line", "last of two lines", "among others"],
)
def test_where_a_checkpoint_is_found(kept: bytes, size: int) -> None:
    assert find_checkpoint(kept) == made(size).note


@pytest.mark.parametrize(
    "kept", [b"", b"note=AAAA", LINES[0][:-9], made(3).note[:40], b"text\n\n\xe2\x80\x94 name AAAAAAAA\n", b"\xff"]
)
def test_where_there_is_none(kept: bytes) -> None:
    with pytest.raises(CaError) as caught:
        find_checkpoint(kept)
    assert caught.value.kind is ErrorKind.MALFORMED
