"""Configuration: any override and any file give Settings or a ConfigurationError of one line."""

import tempfile
from pathlib import Path

import msgspec
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ca_server.configuration import load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Settings


def paths(kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    """The keys of a section, and of what is in it."""
    found = []
    for field in msgspec.structs.fields(kind):
        inner = field.type
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found += paths(inner, f"{prefix}{field.name}.")
        else:
            found.append(prefix + field.name)
    return found


KNOWN = [
    *paths(Settings),
    "listeners.https.port",
    "listeners.http.serves",
    "listeners.new.port",
    "listeners.new.serves",
    "issuers.issuing.parent",
    "issuers.root.crl_interval",
    "issuers.new.common_name",
]
KEYS = st.one_of(
    st.sampled_from(KNOWN),
    st.sampled_from(KNOWN).flatmap(lambda key: st.sampled_from([f"{key}.more", key.rpartition(".")[0], key.upper()])),
    st.text(max_size=30),
    st.lists(st.sampled_from(["server", "listeners", "http", "issuers", "x", "", "node"]), max_size=4).map(".".join),
)
VALUES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "1", "-1", "0", "1e400", "nan", "true", "no", "[", '["a", 1]', "[1, 2]", "{}", "9" * 400]),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.text(alphabet="ab.:/0-9", max_size=8)).map(",".join),
)


def load(path: Path | None, overrides: list[str], environment: dict[str, str]) -> Settings | None:
    """Settings, or None where they are refused in one line."""
    try:
        loaded = load_settings(path, overrides, environment)
    except ConfigurationError as error:
        assert str(error).isprintable()  # noqa: PT017 - any other exception fails the test
        return None
    assert isinstance(loaded, Settings)
    assert msgspec.convert(msgspec.to_builtins(loaded), Settings) == loaded
    return loaded


@given(st.lists(st.tuples(KEYS, VALUES).map("=".join), min_size=1, max_size=3))
@example(["listeners.http=1"])
@example(["server=1", "server.node=n"])
@example(["acme.denied_networks=[\n"])
@example(["acme.denied_networks=" + "[" * 5000])
@example(["acme.denied_networks=[" + "1" * 5000 + "]"])
@example(["acme.order_lifetime=nan"])
@example(["acme.order_lifetime=inf"])
@example(["server.\n=1"])
@settings(deadline=None)
def test_any_override(overrides):
    load(None, overrides, {})


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_as_override(overrides):
    load(None, overrides, {})


@given(st.dictionaries(KEYS.map(lambda key: "CA_SERVER__" + key.replace(".", "__").upper()), VALUES, max_size=3))
@settings(deadline=None)
def test_any_environment(environment):
    load(None, [], environment)


@given(st.sampled_from(KNOWN), VALUES)
@settings(deadline=None)
def test_environment_and_option_mean_the_same(key, value):
    by_option = load(None, [f"{key}={value}"], {})
    by_environment = load(None, [], {"CA_SERVER__" + key.replace(".", "__").upper(): value})
    assert by_option == by_environment


TREES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.one_of(
                st.sampled_from([part for key in KNOWN for part in key.split(".")]), st.text(min_size=1, max_size=6)
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def from_file(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ca-server.toml"
        path.write_bytes(content)
        load(path, [], {})


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@example(b"[" * 5000)
@example(b"a = " + b"[" * 5000)
@example(b"a = " + b"1" * 5000)
@settings(deadline=None)
def test_any_file(content):
    from_file(content)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from([key.partition(".")[0] for key in KNOWN]), st.text(min_size=1, max_size=6)),
        TREES,
        max_size=4,
    )
)
@settings(deadline=None)
def test_any_toml(tree):
    from_file(tomlkit.dumps(tree).encode())
