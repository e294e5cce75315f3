"""The folders of a home: what the separation of core and fronts stands on."""

import os
import stat
from pathlib import Path

import pytest

from ca_server.bootstrap.users import Users, create_folders, hand_over
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings

NOBODY = Users(None, None, None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    create_folders(home, NOBODY)
    assert {path.name: oct(mode(path)) for path in sorted(home.path.iterdir())} == {
        "core": "0o700",
        "data": "0o3770",
        "metrics": "0o750",
        "profiles": "0o755",
        # Fronts find the socket there, and put nothing there themselves.
        "run": "0o2750",
        "tls": "0o700",
    }
    assert {path.name: oct(mode(path)) for path in sorted(home.metrics.iterdir())} == {
        "core": "0o2750",
        "fronts": "0o2750",
    }


@pytest.mark.parametrize("name", ["core", "data", "metrics", "run", "tls", "profiles"])
def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    """Whoever plants it wants root to change what it points at."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    home = Home(tmp_path / "home")
    home.path.mkdir()
    (home.path / name).symlink_to(victim)
    with pytest.raises(ConfigurationError) as refused:
        create_folders(home, NOBODY)
    assert name in refused.value.where
    assert mode(victim) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root has users to hand over to")
def test_handing_over_follows_no_link(tmp_path: Path) -> None:
    from ca_server.bootstrap.users import Account

    users = Users(Account("core", 65534), Account("front", 65534), 65534)
    home = Home(tmp_path / "home")
    create_folders(home, users)
    victim = tmp_path / "victim"
    victim.write_text("root's")
    (home.data / "ca.db").symlink_to(victim)
    with pytest.raises(ConfigurationError):
        hand_over(home, users)
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize(("role", "name"), [(("core",), "the-core"), (("front", "--index", "1"), "the-front")])
def test_a_child_of_another_user_is_told_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: tuple[str, ...], name: str
) -> None:
    """asyncpg looks below HOME for its files: root's is closed to it, and no connection came about."""
    from ca_server.bootstrap.serve import _child
    from ca_server.bootstrap.users import Account

    monkeypatch.setenv("HOME", "/root")
    users = Users(Account("the-core", 1, "/of/the-core"), Account("the-front", 2, "/of/the-front"), 3)
    spec = _child(role[0], role, Home(tmp_path), Settings(), (), users)
    assert (spec.env["HOME"], spec.env["USER"], spec.env["LOGNAME"]) == (f"/of/{name}", name, name)
    spec = _child(role[0], role, Home(tmp_path), Settings(), (), NOBODY)
    assert spec.env["HOME"] == "/root"


@pytest.mark.parametrize(("own_role", "told"), [(True, {"core"}), (False, {"core", "front"})])
def test_a_front_with_a_role_of_its_own_gets_no_password_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_role: bool, told: set[str]
) -> None:
    from ca_server.bootstrap.serve import _child
    from ca_server.settings import DatabaseSettings

    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("PGPASSFILE", "/secret")
    settings = Settings(database=DatabaseSettings(front_url="postgresql://front@db/ca" if own_role else ""))
    specs = [_child(role, (role,), Home(tmp_path), settings, (), NOBODY) for role in ("core", "front")]
    assert {spec.name for spec in specs if "PGPASSWORD" in spec.env} == told
    assert {spec.name for spec in specs if "PGPASSFILE" in spec.env} == told
