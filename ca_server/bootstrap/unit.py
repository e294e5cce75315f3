"""The systemd unit of a home, made from the template that the package ships."""

import sys
from pathlib import Path

from ca_server.bootstrap.resources import shipped_configuration
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ProtectHome=yes makes inaccessible (systemd.exec(5))."""
_MARGIN = 15


def systemd_unit(home: Home, settings: Settings) -> str:
    """The text of ca-server.service for a home. ConfigurationError for a path that no unit can have."""
    command = Path(sys.executable).with_name("ca-server")
    writable = [home.path]
    if settings.audit.anchor:
        writable.append(Path(settings.audit.anchor).parent)
    needed = (command, command.resolve(), Path(sys.executable).resolve(), Path(__file__).resolve(), *writable)
    hidden = any(path.is_relative_to(top) for path in needed for top in _HOMES)
    values = {
        "COMMAND": _quoted(command),
        "HOME": _quoted(home.path),
        # Fronts and core have that long one after the other.
        "STOP_SECONDS": str(int(2 * settings.processes.drain_seconds) + _MARGIN),
        "WRITABLE": " ".join(map(_quoted, writable)),
        "PROTECT_HOME": "read-only" if hidden else "yes",
    }
    text = (shipped_configuration() / "systemd" / "ca-server.service").read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _quoted(path: Path) -> str:
    """A path as systemd.syntax(7) has it: specifiers and variables doubled, in quotes where it has white space."""
    text = str(path)
    if not text.isprintable() or any(character in text for character in "\"'\\"):
        raise ConfigurationError(
            text, "path", None, "a unit can't have quotes or control characters in a path; move it"
        )
    text = text.replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text
