"""What is wrong with a tree of settings, and how to write it right: words made from the types themselves."""

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from msgspec import inspect as types

from ca_server.domain.rates import RATE_PATTERN

MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong setting; `value` is None where there is none to show."""

    key: str
    value: object
    remedy: str


def known_keys(spec: type[Struct]) -> str:
    """The keys of a section, for people."""
    return ", ".join(field.name for field in msgspec.structs.fields(spec))


def find_mistake(tree: Any, spec: Any, path: str = "") -> Mistake | None:
    """The first thing in a tree that is not as its type has it; None where all is."""
    info = types.type_info(spec)
    if isinstance(info, types.StructType):
        return _in_section(tree, info.cls, path)
    if isinstance(info, types.DictType):
        return _in_names(tree, spec, path)
    try:
        msgspec.convert(tree, spec)
    except msgspec.ValidationError:
        return Mistake(path, _shown(tree), how_to_write(spec))
    return None


def _in_section(tree: Any, spec: type[Struct], path: str) -> Mistake | None:
    if not isinstance(tree, dict):
        return Mistake(path or "file", _shown(tree), f"write a section [{path}] with keys of {known_keys(spec)}")
    fields = {field.name: field for field in msgspec.structs.fields(spec)}
    for key in tree:
        if key not in fields:
            return Mistake(_below(path, key), None, f"unknown key; known here: {known_keys(spec)}")
    for name, field in fields.items():
        where = _below(path, name)
        if name not in tree:
            if field.required:
                return Mistake(where, None, f"is missing; {how_to_write(field.type)}")
            continue
        mistake = find_mistake(tree[name], field.type, where)
        if mistake is not None:
            return mistake
    return None


def _in_names(tree: Any, spec: Any, path: str) -> Mistake | None:
    name_type, value_type = spec.__args__
    if not isinstance(tree, dict):
        return Mistake(path, _shown(tree), f"write sections [{path}.NAME]")
    for name, value in tree.items():
        try:
            msgspec.convert(name, name_type)
        except msgspec.ValidationError:
            return Mistake(f"{path}.{name}", None, f"not a name; {how_to_write(name_type)}")
        mistake = find_mistake(value, value_type, f"{path}.{name}")
        if mistake is not None:
            return mistake
    return None


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _shown(value: object) -> object:
    """A value as the error shows it: text and numbers, lists of them; never whole sections."""
    if isinstance(value, (list, tuple)) or (value is not None and not isinstance(value, dict)):
        text = repr(value)
        return value if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return None


def how_to_write(kind: Any, *, with_commas: bool = False) -> str:
    """The remedy for a wrong value of a type; `with_commas` where lists are written on a command line."""
    info = types.type_info(kind)
    if isinstance(info, types.VarTupleType):
        form = "values with commas between them" if with_commas else "a list in brackets"
        return f"write {form}; of each value: {_noun(info.item_type)}"
    return f"write {_noun(info)}"


def _noun(info: types.Type) -> str:
    if isinstance(info, types.UnionType):
        return _noun(next(kind for kind in info.types if not isinstance(kind, types.NoneType)))
    if isinstance(info, types.EnumType):
        return f"one of {', '.join(str(member.value) for member in info.cls)}"
    if isinstance(info, types.LiteralType):
        return f"one of {', '.join(map(str, info.values))}"
    if isinstance(info, types.BoolType):
        return "true or false"
    if isinstance(info, types.IntType):
        return f"a whole number{_range(info)}"
    if isinstance(info, types.FloatType):
        return f"a number{_range(info)}"
    if isinstance(info, types.StrType):
        return _text(info)
    return "a section"


def _range(info: types.IntType | types.FloatType) -> str:
    highest = "" if info.le is None else f"{info.le:.12g}"
    if info.gt is not None:
        return f" above {info.gt:g}" + (f", {highest} at most" if highest else "")
    lowest = "" if info.ge is None else f" from {info.ge:g}"
    return lowest + (f" to {highest}" if highest else "")


_PATTERNS = {
    r"^[a-z0-9][a-z0-9-]{0,62}$": "1 to 63 lower-case letters, digits and hyphens, no hyphen first",
    r"^([A-Z]{2})?$": "two capital letters (ISO 3166), or nothing",
    RATE_PATTERN: "COUNT per TIME, such as 300 per 3h or 10 per 1d burst 50, or nothing",
}


def _text(info: types.StrType) -> str:
    if info.pattern is not None:
        return _PATTERNS.get(info.pattern, f"text that matches {info.pattern}")
    if info.max_length is not None:
        return f"text of {info.min_length or 0} to {info.max_length} characters"
    return "text in quotes"
