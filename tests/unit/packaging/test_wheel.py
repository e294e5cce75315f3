"""The wheel has everything that the server needs besides code, and finds it there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
SHIPPED = {"config": "ca_server/_config", "softhsm": "ca_server/_softhsm"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, unpacked as an installation unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: beside other tests, compiled files come and go in the checkout while the builder looks.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("ca_server", "protocols", "hsm", "config", "softhsm"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*argv, "-w", folder, source], check=True, timeout=120, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize(("source", "target"), SHIPPED.items())
def test_data_is_in_the_wheel_byte_for_byte(installed: Path, source: str, target: str) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    wanted = content(CHECKOUT / source)
    assert len(wanted) >= 3
    assert content(installed / target) == wanted


def ask(path: Path, expression: str) -> str:
    code = f"from ca_server.bootstrap.resources import *; print({expression})"
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(("function", "name"), [("shipped_configuration", "config"), ("shipped_softhsm", "softhsm")])
def test_data_is_found(installed: Path, function: str, name: str) -> None:
    """In the wheel beside the package; in a checkout, which has no such folder there, at its top."""
    assert ask(installed, f"{function}()") == str(installed / SHIPPED[name])
    assert ask(CHECKOUT, f"{function}()") == str(CHECKOUT / name)


def test_a_broken_installation_says_so(installed: Path) -> None:
    template = installed / "ca_server" / "_softhsm" / "softhsm2.conf"
    content = template.read_bytes()
    template.unlink()
    try:
        assert "the installation is incomplete" in ask(installed, "shipped_softhsm()")
    finally:
        template.write_bytes(content)
