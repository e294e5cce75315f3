"""Programs that trust the system's list of CAs and can't be told of another."""

import os
import shutil
from pathlib import Path

import pytest

from interoplib.tools import run

SYSTEM = Path("/etc/ssl/certs")


def trusting(root: Path, folder: Path) -> list[str]:
    """The words before a command that runs it with a list that has `root` alone, laid over the system's for it."""
    folder.mkdir(mode=0o755)
    for name in ("root.pem", "ca-certificates.crt"):
        shutil.copy(root, folder / name)
    run(["openssl", "rehash", folder])
    mine = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = ["unshare", "--mount", *mine, "sh", "-c", f'mount --bind "{folder}" {SYSTEM} && exec "$@"', "sh"]
    if run([*words, "true"], expect=None).returncode:
        pytest.skip("this machine makes no mount namespaces, and this client trusts the system's list of CAs alone")
    return words
