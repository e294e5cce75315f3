"""Checkpoints that were seen outside the database: whatever the log is now, it must extend them."""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ca_server.core.audit.findings import FindingKind, Findings
from ca_server.core.notes import TreeHead, open_own_checkpoint, parse_checkpoint_text, parse_note
from ca_server.domain.errors import CaError, ErrorKind

_SYSLOG_NOTE: Final = re.compile(rb"(?<!\S)note=([A-Za-z0-9+/]+={0,2})(?!\S)")


def find_checkpoint(text: bytes) -> bytes:
    """The signed note in what somebody kept: the note itself, or lines of syslog, of which the last counts.

    Nothing is verified. MALFORMED.
    """
    unix = text.replace(b"\r\n", b"\n")
    for encoded in reversed(_SYSLOG_NOTE.findall(unix)):
        with suppress(Base64Error, CaError):
            return _checkpoint(b64decode(encoded, validate=True))
    try:
        return _checkpoint(unix.strip(b"\n") + b"\n")
    except CaError:
        raise CaError(ErrorKind.MALFORMED, "there is no checkpoint in it: a signed note or a line of syslog") from None


def _checkpoint(note: bytes) -> bytes:
    parse_checkpoint_text(parse_note(note).text)
    return note


@dataclass(slots=True)
class Witnessed:
    """One checkpoint kept elsewhere, and what the log has at its size: `stored` is the root of the leaf hashes as they
    are, `signed` that of the checkpoint of this size. `by` names the place.
    """

    by: str
    head: TreeHead
    stored: bytes | None = None
    signed: bytes | None = None

    def at_leaves(self, size: int, root: Callable[[], bytes]) -> None:
        """Take the root of the first `size` leaves."""
        if size == self.head.size:
            self.stored = root()

    def at_checkpoint(self, size: int, root: bytes) -> None:
        """Take a checkpoint of the log."""
        if size == self.head.size:
            self.signed = root

    def judge(self, latest: TreeHead | None, findings: Findings) -> None:
        """Say how the log, whose last checkpoint is `latest`, fails to extend what was seen."""
        seen, where = self.head.size, f"checkpoint {self.head.size}"
        size = latest.size if latest else 0
        if latest is not None and latest.origin != self.head.origin:
            text = f"{self.by} has seen the log {self.head.origin}, this is {latest.origin}"
            findings.add(FindingKind.ANCHOR_MISMATCH, where, text)
        elif size < seen:
            text = f"{self.by} has seen {seen} leaves, the checkpoints end at {size}: truncated or rolled back"
            findings.add(FindingKind.TRUNCATED, f"leaves {size}..{seen - 1}", text)
        elif self.signed == self.head.root or not seen:
            return  # how the leaves agree with that checkpoint was told in the replay
        elif self.signed is None and self.stored == self.head.root:
            findings.add(FindingKind.DELETED, where, f"the checkpoint that {self.by} has seen was deleted")
        else:
            text = f"the first {seen} leaves are not those that {self.by} has seen: forked or rewritten"
            findings.add(FindingKind.ANCHOR_MISMATCH, where, text)


def open_witnessed(by: str, note: bytes, keys: Sequence[bytes], findings: Findings) -> Witnessed | None:
    """Open a checkpoint from elsewhere; where it is none of this log's key, that is a finding."""
    try:
        return Witnessed(by, open_own_checkpoint(note, keys))
    except CaError as error:
        text = f"not a checkpoint of this log's key: {error.detail}"
        findings.add(FindingKind.ANCHOR_MISMATCH, by.removeprefix("the "), text)
        return None
