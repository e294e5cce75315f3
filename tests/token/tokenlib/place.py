"""A SoftHSM2 token in a folder of its own, with what a test may do to it behind the server's back."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ca_server.bootstrap.resources import shipped_softhsm
from ca_server.bootstrap.token import SOFTHSM_MODULES
from hsm.options import TokenOptions
from hsm.pin import PinSource
from hsm.provision import initialize_softhsm

LABEL = "ca-under-test"
PIN = "user-pin-49152"
SO_PIN = "officer-pin-27182"
MODULE = next((Path(path) for path in SOFTHSM_MODULES if Path(path).is_file()), Path(SOFTHSM_MODULES[0]))


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not installed; scripts/test installs it")
    return str(path)


@dataclass(frozen=True)
class Place:
    """The folder of a token: configuration, token directory, PIN file, lock."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def pin_file(self) -> Path:
        return self.folder / "pin"

    @property
    def environment(self) -> dict[str, str]:
        """For programs: the PINs go by environment, as everywhere."""
        return {
            **os.environ,
            "SOFTHSM2_CONF": str(self.configuration),
            "TOKEN_PIN": PIN,
            "TOKEN_SO_PIN": SO_PIN,
        }

    def provision(self, label: str = LABEL, pin: str = PIN) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pin_file.write_text(f"{pin}\n")
        return initialize_softhsm(
            module=MODULE,
            template=(shipped_softhsm() / "softhsm2.conf").read_text("utf-8"),
            configuration=self.configuration,
            token_directory=self.tokens,
            label=label,
            so_pin=SO_PIN.encode(),
            user_pin=pin.encode(),
        )

    def options(self, **changes: object) -> TokenOptions:
        values: dict[str, object] = {
            "module": MODULE,
            "token_label": LABEL,
            "pin": PinSource.from_file(self.pin_file),
            "softhsm_configuration": self.configuration,
            "lock_path": self.folder / "token.lock",
            "timeout": 30.0,
        }
        return TokenOptions(**(values | changes))  # type: ignore[arg-type]

    # --- Behind the server's back: other processes, as an operator's tools are --------------------------------------

    def run(self, *argv: str | Path, expect: int | None = 0) -> str:
        command = [str(part) for part in argv]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False, errors="replace"
        )
        if expect is not None:
            assert done.returncode == expect, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def pkcs11_tool(self, *arguments: str, expect: int | None = 0) -> str:
        argv = [need("pkcs11-tool"), "--module", str(MODULE), "--token-label", LABEL, "--login", "--pin"]
        return self.run(*argv, "env:TOKEN_PIN", *arguments, expect=expect)

    def python(self, code: str, *arguments: str | Path, expect: int | None = 0) -> str:
        """Run Python with the project importable; `expect` None also where it is killed by a signal."""
        return self.run(sys.executable, "-c", code, *arguments, expect=expect)

    def objects(self, kind: str) -> dict[str, str]:
        """Label and text of each object of a kind (privkey, pubkey, secrkey) as pkcs11-tool shows it."""
        shown = self.pkcs11_tool("--list-objects", "--type", kind)
        parts = [part for part in re.split(r"(?m)^(?=\S)", shown) if "label:" in part]
        return {re.findall(r"label:\s*(\S.*)", part)[0].strip(): part for part in parts}

    def delete_private_key(self, label: str) -> None:
        self.pkcs11_tool("--delete-object", "--type", "privkey", "--label", label)

    def move_away(self) -> Path:
        """The token directory goes, as when a volume is unmounted."""
        return self.tokens.rename(self.folder / "tokens-away")

    def move_back(self) -> None:
        (self.folder / "tokens-away").rename(self.tokens)

    def reinitialise(self) -> None:
        """A new, empty token of the same label and PINs in the place of the old."""
        shutil.rmtree(self.tokens)
        self.tokens.mkdir(mode=0o700)
        self.python(_INITIALISE, self.folder)


_INITIALISE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tokenlib.place import Place
assert Place(Path(sys.argv[1])).provision()
"""
