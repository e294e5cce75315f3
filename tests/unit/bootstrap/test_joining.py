"""What `ca-server init --join` takes from a node's home, and what it refuses. Whole nodes are in tests/faults."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tomlkit

from ca_server.bootstrap.initialise import InitialChoices, mark_initialised
from ca_server.bootstrap.joining import join_home
from ca_server.bootstrap.resources import shipped_configuration
from ca_server.configuration import load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home

OVERRIDES = ("processes.allow_root=true",)


@pytest.fixture
def source(tmp_path: Path) -> Home:
    """What matters of the home of a node, or of a copy of one; its database has no CA."""
    home = Home(tmp_path / "source")
    for folder in (home.path, home.core, home.tokens, home.profiles):
        folder.mkdir()
    document = tomlkit.parse((shipped_configuration() / "ca-server.toml").read_text("utf-8"))
    document["server"]["external_host"] = "ca.example.test"
    document["database"]["url"] = "postgresql://nobody@127.0.0.1/nothing"
    home.configuration.write_text(tomlkit.dumps(document))
    (home.profiles / "own.toml").write_text("own")
    (home.tokens / "object").write_text("key")
    home.pin_file.write_text("1234")
    home.so_pin_file.write_text("5678")
    home.anchor.write_text("anchor")
    home.node_id.write_text("0123")
    home.log_key.write_text("log key")
    mark_initialised(home)
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


async def refusal(home: Home, source: Home, node: str = "node2", **choices: int) -> str:
    with pytest.raises(ConfigurationError) as refused:
        await join_home(home, source, node, InitialChoices(**choices), OVERRIDES)
    return str(refused.value)


async def test_what_is_taken_and_what_is_not(home: Home, source: Home, postgresql: str) -> None:
    document = tomlkit.parse(source.configuration.read_text())
    document["database"]["url"] = postgresql
    source.configuration.write_text(tomlkit.dumps(document))
    assert "there is no CA in this database" in await refusal(home, source, https_port=9443)
    before, after = (load_settings(each.configuration) for each in (source, home))
    assert (after.server.node, before.server.node) == ("node2", "node1")
    assert after.listeners["https"].port == 9443
    assert (after.https_url, after.http_url) == (before.https_url, before.http_url)
    for name in ("pin_file", "so_pin_file", "anchor", "log_key"):
        assert getattr(home, name).read_text() == getattr(source, name).read_text()
    assert home.pin_file.stat().st_mode & 0o777 == 0o600
    assert (home.tokens / "object").read_text() == "key"
    assert str(home.tokens) in home.softhsm_configuration.read_text()
    assert (home.profiles / "own.toml").exists()
    assert not home.node_id.exists()
    assert not (home.path / "initialised").exists(), "it did not come to its end"
    # A second attempt takes up what is there, for the same node.
    assert "there is no CA in this database" in await refusal(home, source)
    assert "another node than node3" in await refusal(home, source, "node3")


def without_mark(source: Home) -> str:
    (source.path / "initialised").unlink()
    return "node2"


def own_name(_source: Home) -> str:
    return "node1"


def embedded_database(source: Home) -> str:
    document = tomlkit.parse(source.configuration.read_text())
    document["database"]["url"] = ""
    source.configuration.write_text(tomlkit.dumps(document))
    return "node2"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_mark, "is no initialised home, nor a copy of one"),
        (own_name, "give each node its own"),
        (embedded_database, "share a PostgreSQL database"),
    ],
)
async def test_homes_that_have_no_second_node(home: Home, source: Home, spoil: Callable, said: str) -> None:
    node = spoil(source)
    assert said in await refusal(home, source, node)
    assert not home.path.exists()


async def test_a_port_of_a_listener_that_is_not_there(home: Home, source: Home) -> None:
    document = tomlkit.parse(source.configuration.read_text())
    del document["listeners"]["http"]
    document["listeners"]["plain"] = {"port": 80, "serves": ["status"]}
    source.configuration.write_text(tomlkit.dumps(document))
    assert "there is no such listener" in await refusal(home, source, http_port=9080)


async def test_a_home_that_is_in_use(home: Home, source: Home) -> None:
    home.path.mkdir()
    mark_initialised(home)
    assert "is initialised already" in await refusal(home, source)
