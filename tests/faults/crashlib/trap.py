"""Where processes are to die, and what was signed: the outside of `inside/sitecustomize.py`."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"

CORE_STEPS = (
    "pipeline.before",
    "reserve.before",
    "reserve.uncommitted",
    "reserve.after",
    "sign.before",
    "sign.after",
    "store.before",
    "store.uncommitted",
    "store.after",
    "answer.before",
    "answer.after",
)
LIST_SIGNED = "list.before"
"""In the core, between a CRL's signature and its publication."""
FRONT_STEPS = (
    "front.challenge.before",
    "front.challenge.after",
    "front.validated.before",
    "front.validated.after",
    "front.finalize.before",
    "front.finalize.after",
    "front.ask.before",
    "front.ask.after",
    "front.answer.before",
    "front.answer.after",
)
"""Each is the point right before or after something is done; `uncommitted`: its statements ran, COMMIT did not."""


@dataclass(frozen=True)
class Signatures:
    """Signatures of certificates by the hash of what was signed: asked of the token, and made by it."""

    asked: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Signatures of CRLs, OCSP answers and checkpoints."""


class Trap:
    """One folder of files, which every process of a server may change, whatever its user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        folder.chmod(0o777)
        (folder / "signatures").touch()
        (folder / "signatures").chmod(0o666)

    @property
    def environment(self) -> dict[str, str]:
        """What the server's processes must find in their environment."""
        paths = [str(INSIDE), os.environ.get("PYTHONPATH", "")]
        return {"CRASH_FOLDER": str(self.folder), "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def arm(self, step: str, nth: int) -> None:
        """The process that passes `step` for the nth time from now on dies there."""
        self._number += 1
        draft = self.folder / "draft"
        draft.write_text(f"{step} {nth} {self._number}")
        draft.chmod(0o666)
        draft.rename(self.folder / "armed")

    def hold(self, *steps: str) -> None:
        """Let what comes to these steps stay there."""
        draft = self.folder / "draft"
        draft.write_text(" ".join(steps))
        draft.chmod(0o666)
        draft.rename(self.folder / "held")

    def let_go(self) -> None:
        """Undo `hold`."""
        (self.folder / "held").unlink(missing_ok=True)

    def sprung(self, seconds: float) -> bool:
        """Wait until a process died of what was armed last; disarms where none does in time."""
        fired = self.folder / f"fired-{self._number}"
        deadline = time.monotonic() + seconds
        while not fired.exists():
            if time.monotonic() > deadline:
                (self.folder / "armed").unlink(missing_ok=True)
                return fired.exists()
            time.sleep(0.02)
        return True

    def signatures(self) -> Signatures:
        found = Signatures()
        others = 0
        for line in (self.folder / "signatures").read_text().splitlines():
            what, _label, kind, digest = line.split()
            if kind != "certificate":
                others += what == "made"
            elif what == "asked":
                found.asked[digest] += 1
            else:
                found.made[digest] += 1
        return Signatures(found.asked, found.made, others)
