"""Where syslog listens."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_UDP_PORT: Final = 514  # RFC 5426 section 3.3
_TCP_PORT: Final = 601  # RFC 6587 section 3.2


@dataclass(frozen=True, slots=True)
class SyslogAddress:
    """Where syslog listens: `kind` is `unix`, `udp` or `tcp`; `place` a path or a host."""

    kind: str
    place: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> "SyslogAddress":
        """Read `unix:PATH`, `udp://HOST[:PORT]` (514) or `tcp://HOST[:PORT]` (601). ValueError."""
        if text.startswith("unix:/"):
            return cls("unix", text.removeprefix("unix:"))
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        else:
            if (
                host
                and parts.scheme in {"udp", "tcp"}
                and not (parts.path or parts.query or parts.username)
                and port != 0
            ):
                return cls(parts.scheme, host, port or (_UDP_PORT if parts.scheme == "udp" else _TCP_PORT))
        raise ValueError("write unix:/dev/log, udp://HOST[:PORT] or tcp://HOST[:PORT]")
