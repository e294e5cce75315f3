"""Runs first in every Python process whose PYTHONPATH names this folder: in a front, runs a test's code in its place.

The supervisor has started the process as it starts every front: user, groups, environment, descriptors, umask, folder
are a front's. Where PLACE_FOLDER has a file `code.py`, the first front takes it away, runs it, and leaves what its
`result` is in `result.json`; then the process goes on as the front that it is. The server has no hooks for tests.
"""

import os
import sys

_FOLDER = os.environ.get("PLACE_FOLDER", "")


def _is_front() -> bool:
    words = sys.orig_argv
    return "ca_server" in words and "process" in words[:-1] and words[words.index("process") + 1] == "front"


def _run() -> None:
    code, taken = os.path.join(_FOLDER, "code.py"), os.path.join(_FOLDER, "taken.py")  # noqa: PTH118
    try:
        os.rename(code, taken)  # noqa: PTH104 - pathlib is not loaded yet in every process
    except OSError:
        return
    import json
    import traceback

    with open(taken) as file:  # noqa: PTH123
        source = file.read()
    space: dict[str, object] = {}
    try:
        exec(compile(source, taken, "exec"), space)
        told = space["result"]
    except BaseException:  # noqa: BLE001 - whatever it is, the test is told
        told = {"traceback": traceback.format_exc()}
    draft = os.path.join(_FOLDER, "draft")  # noqa: PTH118
    with open(draft, "w") as file:  # noqa: PTH123
        json.dump(told, file)
    os.chmod(draft, 0o644)  # noqa: PTH101
    os.rename(draft, os.path.join(_FOLDER, "result.json"))  # noqa: PTH104, PTH118


if _FOLDER and _is_front():
    _run()
