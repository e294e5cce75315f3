"""Reads the configuration: one TOML file, overridden by the environment and by `--set section.key=value`.

An unknown key is an error, and so is a value out of range: each names where it was set, key, value and remedy in one
line.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ca_server.configuration.consistency import check_consistency
from ca_server.configuration.wording import Mistake, find_mistake, how_to_write, known_keys
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Settings, default_issuers, default_listeners

ENVIRONMENT_PREFIX = "CA_SERVER__"
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def load_settings(
    path: Path | None, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Settings:
    """Read the file (defaults where `path` is None), then the environment, then `section.key=value` overrides.

    Raises ConfigurationError with one line naming file, `--set` or variable, then key, value and remedy.
    """
    where = str(path) if path is not None else "defaults"
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_toml(path)
    origins: dict[str, str] = {}
    for key, text, origin in _all_overrides(overrides, os.environ if environment is None else environment):
        _override(tree, key, text, origin)
        origins[key] = origin
    mistake: Mistake | None
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        mistake = find_mistake(tree, Settings) or Mistake("file", None, str(error))
    else:
        mistake = check_consistency(settings)
    if mistake is not None:
        raise ConfigurationError(origins.get(mistake.key, where), mistake.key, mistake.value, mistake.remedy)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            str(path), "file", None, "not found; run 'ca-server init' or name the home with --home"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), "file", None, f"can't be read: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits, brackets in too many brackets
        raise ConfigurationError(str(path), "syntax", None, f"not TOML: {error}") from None


def _all_overrides(overrides: Iterable[str], environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            found.append((key, text, f"environment {name}"))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or "." not in key:
            raise ConfigurationError("--set", item, None, "write section.key=value")
        found.append((key.strip(), text, "--set"))
    return found


def _override(tree: dict[str, Any], key: str, text: str, origin: str) -> None:
    parts = key.split(".")
    node = tree
    spec: Any = Settings
    for part in parts[:-1]:
        spec = _field_type(spec, part, origin, key)
        node = node.setdefault(part, _defaults_for(part))
        if not isinstance(node, dict):
            raise ConfigurationError(origin, key, text, f"{part} is not a section")
    leaf = _field_type(spec, parts[-1], origin, key)
    try:
        node[parts[-1]] = _parse_value(leaf, text)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError):
        raise ConfigurationError(origin, key, text, how_to_write(leaf, with_commas=True)) from None


def _defaults_for(part: str) -> dict[str, Any]:
    """Overriding one key of a default listener or issuer keeps the others."""
    if part == "listeners":
        return {name: msgspec.to_builtins(value) for name, value in default_listeners().items()}
    if part == "issuers":
        return {name: msgspec.to_builtins(value) for name, value in default_issuers().items()}
    return {}


def _field_type(spec: Any, part: str, origin: str, key: str) -> Any:
    if isinstance(spec, type) and issubclass(spec, Struct):
        for field in msgspec.structs.fields(spec):
            if field.name == part:
                return field.type
        raise ConfigurationError(origin, key, None, f"unknown key {part!r}; known here: {known_keys(spec)}")
    arguments: tuple[Any, ...] = getattr(spec, "__args__", ())
    if getattr(spec, "__origin__", None) is dict and len(arguments) == 2:  # noqa: PLR2004
        return arguments[1]
    raise ConfigurationError(origin, key, None, f"{part!r} is not inside a section")


def _parse_value(kind: Any, text: str) -> Any:
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.VarTupleType):
        items: Any
        if text.lstrip().startswith("["):
            items = tomllib.loads(f"value = {text}")["value"]
        else:
            items = [item.strip() for item in text.split(",") if item.strip()]
        return msgspec.to_builtins(msgspec.convert(items, kind, strict=False))
    if isinstance(info, msgspec.inspect.BoolType):
        lowered = text.lower()
        if lowered not in _TRUE | _FALSE:
            raise ValueError(text)
        return lowered in _TRUE
    return msgspec.to_builtins(msgspec.convert(text, kind, strict=False))
