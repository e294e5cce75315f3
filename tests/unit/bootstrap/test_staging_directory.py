"""Twins of the default profile and its issuers, written into a home that is there."""

import shutil
from pathlib import Path

import pytest

from ca_server.bootstrap.profiles import load_profiles
from ca_server.bootstrap.resources import shipped_configuration
from ca_server.bootstrap.staging import add_staging_directory
from ca_server.configuration import load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    shutil.copytree(shipped_configuration() / "profiles", tmp_path / "profiles")
    shutil.copy(shipped_configuration() / "ca-server.toml", tmp_path)
    return Home(tmp_path)


def test_the_twins_are_as_the_real_ones_but_for_names(home: Home) -> None:
    file = home.configuration
    file.write_text(file.read_text().replace('key = "ec-p256"', 'key = "ec-p384"'))
    file.chmod(0o640)
    add_staging_directory(home)
    assert file.stat().st_mode & 0o777 == 0o640
    settings = load_settings(file)
    real, twin = settings.issuers["issuing"], settings.issuers["staging-issuing"]
    assert (twin.parent, twin.staging, twin.common_name) == ("staging-root", True, f"STAGING {real.common_name}")
    assert (twin.key, twin.days, twin.path_length) == (real.key, real.days, real.path_length)
    assert settings.issuers["staging-root"].staging
    assert not real.staging
    profiles = load_profiles(home, settings)
    assert profiles["staging"].issuer == "staging-issuing"
    assert profiles["staging"].names == profiles["default"].names
    assert profiles["staging"].validity == profiles["default"].validity


def test_what_is_there_stays(home: Home) -> None:
    add_staging_directory(home)
    file = home.profiles / "staging.toml"
    file.write_text(file.read_text().replace('"90d"', '"7d"'))
    before = home.configuration.read_text(), file.read_text()
    add_staging_directory(home)
    assert (home.configuration.read_text(), file.read_text()) == before


def test_long_names_are_cut(home: Home) -> None:
    text = home.configuration.read_text().replace("ca-server Root CA", "R" * 64)
    home.configuration.write_text(text)
    add_staging_directory(home)
    assert load_settings(home.configuration).issuers["staging-root"].common_name == "STAGING " + "R" * 56


def test_an_issuer_that_is_not_declared_has_no_twin(home: Home) -> None:
    profile = home.profiles / "default.toml"
    profile.write_text(profile.read_text().replace('"issuing"', '"elsewhere"'))
    with pytest.raises(ConfigurationError, match="elsewhere"):
        add_staging_directory(home)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("acme.chaos.profiles=short", "is no staging issuer"),
        ("acme.chaos.profiles=unknown", "no such file"),
    ],
)
def test_chaos_is_for_staging_profiles(home: Home, setting: str, told: str) -> None:
    add_staging_directory(home)
    load_profiles(home, load_settings(home.configuration, ["acme.chaos.profiles=staging"]))
    with pytest.raises(ConfigurationError, match=told):
        load_profiles(home, load_settings(home.configuration, [setting]))
    load_profiles(home, load_settings(home.configuration, ["acme.chaos.profiles=short", "server.staging=true"]))


def test_a_staging_issuer_has_no_real_parent(home: Home) -> None:
    with pytest.raises(ConfigurationError, match=r"issuers.issuing.parent"):
        load_settings(home.configuration, ["issuers.issuing.staging=true"])
