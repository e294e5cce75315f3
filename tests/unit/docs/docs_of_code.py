"""What there is to document, read from the code itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec import inspect as types
from prometheus_client import Counter, Gauge, Histogram
from typer.main import get_command

from ca_server import telemetry
from ca_server.cli.app import application
from ca_server.domain.audit import EventType
from ca_server.domain.names import IdentifierType
from ca_server.domain.profile_schema import ProfileFile
from ca_server.web.health import health_routes, metrics_routes
from protocols.acme.problems import ErrorType
from protocols.acme.views import AcmeFrontEnd
from protocols.log.views import LogFrontEnd
from protocols.status.views import StatusFrontEnd

ROOT = Path(__file__).resolve().parents[3]


def settings_of(spec: type[Struct], path: str = "") -> dict[str, msgspec.structs.FieldInfo]:
    """Every setting by its key; sections that have names stand for all of their kind."""
    found = {}
    for field in msgspec.structs.fields(spec):
        info = types.type_info(field.type)
        if isinstance(info, types.StructType):
            found |= settings_of(info.cls, f"{path}{field.name}.")
        elif isinstance(info, types.DictType):
            found |= settings_of(info.value_type.cls, f"{path}{field.name}.NAME.")
        else:
            found[f"{path}{field.name}"] = field
    return found


def profile_keys() -> dict[str, msgspec.structs.FieldInfo]:
    return settings_of(ProfileFile)


def setting_defaults(field: msgspec.structs.FieldInfo) -> str:
    """A default as the reference writes it."""
    if field.default is msgspec.NODEFAULT:
        return "required"
    return "none" if field.default is None else f"`{msgspec.json.encode(field.default).decode()}`"


@cache
def commands() -> dict[str, list[str]]:
    """Every command with its arguments in capitals and its options."""
    return dict(_commands(get_command(application()), "ca-server"))


def _commands(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    children = getattr(command, "commands", {})
    if not children:
        yield name, [_argument(parameter) for parameter in command.params]
    for child, each in children.items():
        if not each.hidden:
            yield from _commands(each, f"{name} {child}")


def _argument(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return str(next(option for option in parameter.opts if option.startswith("--")))


def metrics() -> dict[str, tuple[str, list[str]]]:
    """Every metric by the name that Prometheus sees, with its type and labels."""
    return {
        metric._name + ("_total" if isinstance(metric, Counter) else ""): (metric._type, list(metric._labelnames))
        for metric in vars(telemetry).values()
        if isinstance(metric, (Counter, Gauge, Histogram))
    }


def events() -> set[str]:
    return {kind.value for kind in EventType}


def routes() -> list[tuple[str, str, str]]:
    """Front-end, method and path of every route; patterns left out of the paths."""
    registrars = {
        "acme": AcmeFrontEnd.__new__(AcmeFrontEnd).register,
        "log": LogFrontEnd.__new__(LogFrontEnd).register,
        "status": StatusFrontEnd.__new__(StatusFrontEnd).register,
        "health": health_routes(None),  # type: ignore[arg-type]
        "metrics": metrics_routes(()),
    }
    found = []
    for name, register in registrars.items():
        application = web.Application()
        register(application)
        for route in application.router.routes():
            assert route.resource is not None
            if route.method != "HEAD" or not _also_get(application, route.resource.canonical) or name == "acme":
                found.append((name, route.method, _plain(route.resource.canonical)))
    return found


def _also_get(application: web.Application, path: str) -> bool:
    """Whether a HEAD route is the one that aiohttp adds to every GET."""
    return any(
        route.method == "GET" and route.resource is not None and route.resource.canonical == path
        for route in application.router.routes()
    )


def _plain(path: str) -> str:
    """A path without the patterns of its variables: `{name:[a-z]{1,3}}` is `{name}`."""
    plain, depth, in_pattern = "", 0, False
    for character in path:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 1 and character == ":":
            in_pattern = True
        if depth == 0:
            in_pattern = False
        if not in_pattern:
            plain += character
    return plain


RULE_ARGUMENTS = {"Deny": 0, "Hold": 0, "_refuse": 1, "_deny": 0}
"""Which argument of these functions is a rule."""


@cache
def rules() -> set[str]:
    """Every rule that a denial can name, found in the source; those made of parts are spelled out."""
    found = set()
    for folder in ("ca_server/core", "ca_server/store", "protocols"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    found |= {rule for argument in _rule_arguments(node) for rule in _spelled_out(argument)}
    return found


def _rule_arguments(call: ast.Call) -> Iterator[ast.expr]:
    yield from (keyword.value for keyword in call.keywords if keyword.arg == "rule")
    name = getattr(call.func, "id", "")
    position = RULE_ARGUMENTS.get(name)
    if position is not None and len(call.args) > position:
        yield call.args[position]


def _spelled_out(argument: ast.expr) -> set[str]:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return {argument.value}
    if isinstance(argument, ast.JoinedStr):
        text = ast.unparse(argument)
        if text == "f'names.{identifier.type.value}'":
            return {f"names.{kind.value}" for kind in IdentifierType}
        if text == "f'jws.{problem.type.value}'":
            recorded = (ErrorType.UNAUTHORIZED, ErrorType.BAD_SIGNATURE_ALGORITHM, ErrorType.BAD_PUBLIC_KEY)
            return {f"jws.{kind.value}" for kind in recorded}
        raise AssertionError(f"spell out the rules that {text} makes")
    return set()
