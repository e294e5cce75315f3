"""Mistakes in the configuration: every setting refuses what it can't be, in one line that says where, what and how."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomlkit
from msgspec import Struct
from msgspec import inspect as types

from ca_server.configuration import ENVIRONMENT_PREFIX, load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Settings

NAMED = {"listeners": "http", "issuers": "issuing"}
"""A section of each kind that has names, as the defaults have it."""


def leaves(spec: type[Struct] = Settings, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting: its key and its type."""
    for field in msgspec.structs.fields(spec):
        info = types.type_info(field.type)
        if isinstance(info, types.StructType):
            yield from leaves(info.cls, f"{path}{field.name}.")
        elif isinstance(info, types.DictType):
            yield from leaves(info.value_type.cls, f"{path}{field.name}.{NAMED[field.name]}.")
        else:
            yield f"{path}{field.name}", info


def wrong_values(info: Any) -> Iterator[Any]:
    """Values of the wrong type, and values just out of range."""
    if isinstance(info, types.UnionType):
        info = next(kind for kind in info.types if not isinstance(kind, types.NoneType))
    yield {"a": "section"}
    if isinstance(info, types.VarTupleType):
        yield "not a list"
        yield from ([wrong] for wrong in wrong_values(info.item_type))
        return
    yield ["a list"]
    match info:
        case types.BoolType():
            yield from ("true", 1)
        case types.IntType() | types.FloatType():
            yield from wrong_numbers(info)
        case types.StrType():
            yield from wrong_texts(info)
        case types.LiteralType() | types.EnumType():
            yield from ("no-such-choice", 17)
        case _:
            pytest.fail(f"no wrong value is known for {info}")


def wrong_numbers(info: types.IntType | types.FloatType) -> Iterator[Any]:
    yield from ("12", True)
    yield from (1.5,) if isinstance(info, types.IntType) else (math.nan, math.inf)
    assert (info.ge is None) != (info.gt is None), "a number without a lower bound"
    yield info.gt if info.ge is None else info.ge - 1
    assert info.le is not None, "a number without an upper bound"
    yield info.le + 1


def wrong_texts(info: types.StrType) -> Iterator[Any]:
    yield from (17, True)
    if info.pattern is not None:
        yield "Not A Name!"
    if info.max_length is not None:
        yield "x" * (info.max_length + 1)
    if info.min_length:
        yield ""


def tree_with(key: str, value: Any) -> dict[str, Any]:
    """The default configuration with one value."""
    tree: dict[str, Any] = without_none(msgspec.to_builtins(Settings()))
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node[section]
    node[last] = value
    return tree


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def written(folder: Path, tree: dict[str, Any]) -> Path:
    file = folder / "ca-server.toml"
    file.write_text(tomlkit.dumps(tree), "utf-8")
    return file


def mistake(path: Path | None, *overrides: str, environment: dict[str, str] | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, overrides, environment or {})
    error = caught.value
    assert "\n" not in str(error)
    assert str(error).startswith(f"{error.where}: {error.key}")
    assert len(error.remedy) > 10
    return error


EVERY = dict(leaves())
WRONG = [(key, value) for key, info in EVERY.items() for value in wrong_values(info)]


def test_the_walk_finds_all() -> None:
    """Neither walk may lose a section unseen."""
    assert {key.partition(".")[0] for key in EVERY} == {field.name for field in msgspec.structs.fields(Settings)}
    assert len(EVERY) > 70


def test_defaults_written_out_are_good(tmp_path: Path) -> None:
    tree = without_none(msgspec.to_builtins(Settings()))
    assert load_settings(written(tmp_path, tree), (), {}) == Settings()


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}={str(value)[:20]}" for key, value in WRONG])
def test_in_the_file(tmp_path: Path, key: str, value: Any) -> None:
    file = written(tmp_path, tree_with(key, value))
    error = mistake(file)
    assert (error.where, error.key) == (str(file), key)
    if not isinstance(value, dict) and len(str(value)) < 100 and not (isinstance(value, list) and value == [{}]):
        assert str(error.value) == str(value)


TEXTS = [
    (key, value)
    for key, value in WRONG
    if isinstance(value, (str, float, int))
    and not isinstance(value, bool)
    and value != "12"
    and not isinstance(EVERY[key], (types.StrType, types.VarTupleType, types.BoolType))
] + [(key, value) for key, value in WRONG if isinstance(EVERY[key], types.StrType) and isinstance(value, str)]


@pytest.mark.parametrize(("key", "value"), TEXTS, ids=[f"{key}={str(value)[:20]}" for key, value in TEXTS])
def test_as_text(key: str, value: Any) -> None:
    """The same on the command line and in the environment, each named as the place of the mistake."""
    error = mistake(None, f"{key}={value}")
    assert (error.where, error.key, error.value) == ("--set", key, str(value))
    variable = ENVIRONMENT_PREFIX + key.upper().replace(".", "__")
    error = mistake(None, environment={variable: str(value)})
    assert (error.where, error.key, error.value) == (f"environment {variable}", key, str(value))


@pytest.mark.parametrize("key", EVERY)
def test_an_unknown_key_beside_it(tmp_path: Path, key: str) -> None:
    unknown = f"{key}x"
    file = written(tmp_path, tree_with(unknown, 1))
    error = mistake(file)
    assert (error.where, error.key) == (str(file), unknown)
    known = key.rpartition(".")[2]
    assert known in error.remedy
    error = mistake(None, f"{unknown}=1")
    assert (error.where, error.key) == ("--set", unknown)
    assert known in error.remedy


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("listeners.http.address=here", "listeners.http.address"),
        ("listeners.http.port=8443", "listeners.http.port"),
        ("server.external_host=https://ca.corp.example", "server.external_host"),
        ("server.external_host=ca.corp.example:8443", "server.external_host"),
        ("server.names=ca.corp.example,not a name", "server.names"),
        ("server.external_https_url=http://ca.corp.example", "server.external_https_url"),
        ("server.external_http_url=https://ca.corp.example", "server.external_http_url"),
        ("server.external_http_url=http://", "server.external_http_url"),
        ("acme.terms_of_service=terms", "acme.terms_of_service"),
        ("acme.website=ftp://ca.corp.example", "acme.website"),
        ("acme.limits.orders=0 per 1h", "acme.limits.orders"),
        ("acme.limits.orders=5 per 0h", "acme.limits.orders"),
        ("acme.limits.orders=0", "acme.limits.orders"),
        ("acme.limits.orders=a few per day", "acme.limits.orders"),
        ("acme.limits.accounts_per_network=5 per 1h burst 0", "acme.limits.accounts_per_network"),
        ("acme.limits.orders_per_account=1 per 400d", "acme.limits.orders_per_account"),
        ("acme.limits.orders_per_network=1 per 1d burst 400", "acme.limits.orders_per_network"),
        ("acme.limits.certificates_per_name=9999999w", "acme.limits.certificates_per_name"),
        ("acme.limits.certificates_per_domain=1 per 9999999w", "acme.limits.certificates_per_domain"),
        ("acme.limits.ipv4_prefix=33", "acme.limits.ipv4_prefix"),
        ("acme.limits.help_url=wiki", "acme.limits.help_url"),
        ("acme.caa_identities=ca corp", "acme.caa_identities"),
        ("acme.allowed_networks=10.0.0.1/8", "acme.allowed_networks"),
        ("acme.denied_networks=10.0.0.0/8,net", "acme.denied_networks"),
        ("acme.denied_networks=[1", "acme.denied_networks"),
        ("metrics.allow_from=all", "metrics.allow_from"),
        ("dns.nameservers=ns.corp.example", "dns.nameservers"),
        ("dns.nameservers=10.0.0.53:0", "dns.nameservers"),
        ("dns.nameservers=[::1]:x", "dns.nameservers"),
        ("policy.extra_domains=*.corp.example", "policy.extra_domains"),
        ("database.url=mysql://db", "database.url"),
        ("database.front_url=postgresql://front@db/ca", "database.url"),
        ("database.owner_url=sqlite:////ca.db", "database.url"),
        ("issuers.issuing.parent=nobody", "issuers.issuing.parent"),
        ("issuers.root.parent=issuing", "issuers.root.parent"),
        ("issuers.root.parent=root", "issuers.root.parent"),
        ("issuers.root.crl_interval=7776000", "issuers.root.crl_interval"),
        ("listeners.Web.port=80", "listeners.Web"),
        ("listeners.web.port=80", "listeners.web.serves"),
        ("acme.port.number=80", "acme.port.number"),
        ("acme..port=80", "acme..port"),
        ("acme=1", "acme=1"),
        ("acme.require_eab", "acme.require_eab"),
        ("nothing.here=1", "nothing.here"),
    ],
)
def test_what_can_not_be(setting: str, key: str) -> None:
    assert mistake(None, setting).key == key


@pytest.mark.parametrize(
    "setting",
    [
        "server.external_host=ca.corp.example",
        "server.external_host=10.0.0.5",
        "server.external_host=fd00::5",
        "dns.nameservers=10.0.0.53,10.0.0.54:5353,fd00::53,[fd00::53]:5353",
        "acme.denied_networks=",
        "acme.denied_networks=['10.0.0.0/8']",
        "acme.require_eab=yes",
        "policy.extra_domains=.corp.example",
        "database.url=postgresql://ca@db.corp.example/ca",
        "issuers.root.path_length=1",
    ],
)
def test_what_can_be(setting: str) -> None:
    assert load_settings(None, [setting], {}) != Settings()


def test_the_origin_of_a_mistake_is_told(tmp_path: Path) -> None:
    """What only all settings together show wrong is told of the place that set it."""
    file = written(tmp_path, tree_with("listeners.http.address", "here"))
    assert mistake(file).where == str(file)
    assert mistake(None, "listeners.http.address=here").where == "--set"
    variable = "CA_SERVER__LISTENERS__HTTP__ADDRESS"
    assert mistake(None, environment={variable: "here"}).where == f"environment {variable}"


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, tree_with("token.threads", 3))
    assert load_settings(file, (), {}).token.threads == 3
    environment = {"CA_SERVER__TOKEN__THREADS": "4"}
    assert load_settings(file, (), environment).token.threads == 4
    assert load_settings(file, ["token.threads=5"], environment).token.threads == 5


def test_a_password_in_the_url_is_not_shown() -> None:
    assert "hunter2" not in str(mistake(None, "database.url=mysql://ca:hunter2@db/ca"))


@pytest.mark.parametrize(
    ("key", "url", "told"),
    [
        ("front_url", "postgresql://core@db/ca", "names the role of database.url"),
        ("front_url", "postgresql:///ca", "name the role"),
        ("front_url", "sqlite:////ca.db", "roles are PostgreSQL's"),
        ("owner_url", "postgresql://owner:hunter2@db/ca", "put no password here"),
        ("owner_url", "postgresql://owner@db/ca?password=hunter2", "put no password here"),
    ],
)
def test_roles_that_separate_nothing(key: str, url: str, told: str) -> None:
    error = mistake(None, "database.url=postgresql://core@db/ca", f"database.{key}={url}")
    assert error.key == f"database.{key}"
    assert told in error.remedy
    assert "hunter2" not in str(error)


def test_the_cores_password_is_not_for_fronts_to_read() -> None:
    urls = ("database.url=postgresql://core:hunter2@db/ca", "database.front_url=postgresql://front@db/ca")
    error = mistake(None, *urls)
    assert error.key == "database.url"
    assert "hunter2" not in str(error)
    assert load_settings(None, urls[:1], {}).database.url, "one role for all may have it there"


def test_a_pin_where_none_belongs_is_not_shown(tmp_path: Path) -> None:
    file = written(tmp_path, tree_with("token.pin", "hunter2"))
    assert "hunter2" not in str(mistake(file))
    assert "hunter2" not in str(mistake(None, "token.pin=hunter2"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("acme = 1\n", "acme = 1: write a section [acme]"),
        ("listeners = []\n", "listeners = []: write sections [listeners.NAME]"),
        ("[listeners]\nhttp = 8080\n", "listeners.http = 8080: write a section [listeners.http]"),
        ("[nonsense]\nx = 1\n", "nonsense: unknown key; known here: server, processes, listeners"),
        ("[issuers.other]\ndays = 3\n", "issuers.other.common_name: is missing; write text of 1 to 64 characters"),
        ("[listeners]\n", "listeners: declare at least one"),
        ("this is [no TOML", "syntax: not TOML"),
        ("[acme]\nhttp_01_port = 1\nhttp_01_port = 2\n", "syntax: not TOML"),
    ],
)
def test_the_shape_of_the_file(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "ca-server.toml"
    file.write_text(text)
    assert str(mistake(file)).startswith(f"{file}: {told}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = mistake(tmp_path / "ca-server.toml")
    assert "ca-server init" in error.remedy


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "ca-server.toml"
    file.write_bytes(b"\xff\xfe")
    assert mistake(file).where == str(file)
