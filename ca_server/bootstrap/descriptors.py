"""File descriptors: as many as this system gives, and no more connections than they allow."""

import resource

import structlog

from ca_server.settings import Settings

_log = structlog.get_logger()
OTHER_DESCRIPTORS = 256
"""What a front needs beside its clients' connections: database, core, validations, files."""
_ENOUGH = 1 << 20


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one: shells give 1024, which a few clients would use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warning("limit of open files not raised", soft=soft, wanted=wanted, error=str(error))


def needed(settings: Settings) -> int:
    """Descriptors of a front that has all the connections that it may have."""
    return sum(listener.max_connections for listener in settings.listeners.values()) + OTHER_DESCRIPTORS


def affordable_connections(settings: Settings) -> dict[str, int]:
    """Connections that each listener may have: `max_connections`, or its part of what the limit of open files leaves.

    Where it leaves less, a warning says so.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = {name: listener.max_connections for name, listener in settings.listeners.items()}
    if limit == resource.RLIM_INFINITY or needed(settings) <= limit:
        return wanted
    room, total = max(limit - OTHER_DESCRIPTORS, len(wanted)), sum(wanted.values())
    given = {name: max(1, count * room // total) for name, count in wanted.items()}
    _log.warning("fewer connections than configured: too few open files", limit=limit, **given)
    return given
