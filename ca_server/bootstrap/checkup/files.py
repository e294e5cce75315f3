"""Checks of the home's files: who can read and write them, how much room there is, the listeners' certificate."""

import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509

from ca_server.bootstrap.checkup.model import Check, Verdict, bad, good, warning
from ca_server.bootstrap.users import Users, resolve_users
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings

_OTHERS = 0o007
_GROUP_AND_OTHERS = 0o077
_GROUP_WRITE = 0o020
_OTHERS_WRITE = 0o022


def permissions(home: Home, settings: Settings) -> Iterator[Check]:
    """The core's part of the home and the PINs are closed to everyone else, so is the TLS key; data to strangers."""
    try:
        users = resolve_users(settings.processes, str(home.configuration))
    except ConfigurationError as error:
        yield bad("users", str(error))
        users = Users(None, None, None)
    core = users.core.uid if users.core else None
    front = users.front.uid if users.front else None
    embedded = not settings.token.module
    yield _mode(home.core, _GROUP_AND_OTHERS, owner=core)
    if settings.token.pin_file:
        yield _mode(Path(settings.token.pin_file), _GROUP_AND_OTHERS, owner=core)
    elif not settings.token.pin_environment:
        yield _mode(home.pin_file, _GROUP_AND_OTHERS, owner=core)
    if embedded:
        yield _mode(home.so_pin_file, _GROUP_AND_OTHERS, owner=core)
    database = settings.database
    for url, uid in ((database.url, core), (database.front_url, front), (database.owner_url, None)):
        for path in _passfiles(url):
            yield _mode(path, _GROUP_AND_OTHERS, owner=uid)
    yield _mode(home.tls, _GROUP_AND_OTHERS, owner=front)
    for path in _listed(home.tls, "*.pem"):
        yield _mode(path, _GROUP_AND_OTHERS, owner=front)
    yield _mode(home.data, _OTHERS, owner=core)
    yield _mode(home.run, _OTHERS | _GROUP_WRITE, owner=core)
    yield _mode(home.metrics, _OTHERS | _GROUP_WRITE)
    for path in (home.configuration, home.profiles, *_listed(home.profiles, "*.toml"), home.log_key):
        check = _mode(path, _OTHERS_WRITE)
        # Files that anybody may read are many, and told only where something is wrong with them.
        if check.verdict is not Verdict.GOOD:
            yield check


def _passfiles(url: str) -> list[Path]:
    """The files of passwords that a database's URL names."""
    return [Path(name) for name in parse_qs(urlsplit(url).query).get("passfile", [])]


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _mode(path: Path, closed: int, *, owner: int | None = None) -> Check:
    name = f"permissions of {path.name}"
    try:
        found = path.stat()
    except FileNotFoundError:
        return bad(name, f"{path} is missing; restore it from a backup")
    except PermissionError:
        return warning(name, "not visible to this user; run as root")
    mode = stat.S_IMODE(found.st_mode)
    if mode & closed:
        return bad(name, f"{mode:04o}; chmod {mode & ~closed:o} {path}")
    if owner is not None and found.st_uid != owner:
        return bad(name, f"belongs to uid {found.st_uid}; chown {owner} {path}")
    return good(name, f"{mode:04o}")


def disks(home: Home, settings: Settings, minimum: int) -> Iterator[Check]:
    """Room for the database and for the log's anchor, which may be on another volume."""
    yield _disk("disk", home.path, minimum)
    if settings.audit.anchor:
        yield _disk("disk of the anchor", Path(settings.audit.anchor).parent, min(minimum, 2**20))


def _disk(name: str, folder: Path, minimum: int) -> Check:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return bad(name, f"{folder}: {error.strerror}")
    found = f"{free // 2**20} MiB free at {folder}"
    return good(name, found) if free >= minimum else bad(name, f"{found}, wanted {minimum // 2**20} MiB; make room")


def tls_certificate(home: Home, settings: Settings) -> Iterator[Check]:
    """The listeners' own certificate, which a running server renews after two thirds of its life."""
    if not any(listener.tls for listener in settings.listeners.values()):
        return
    name, now = "tls certificate", datetime.now(UTC)
    try:
        certificate = x509.load_pem_x509_certificates((home.tls / "listener.pem").read_bytes())[0]
    except FileNotFoundError:
        yield warning(name, "none yet; the server gets one when it starts")
    except PermissionError:
        yield warning(name, "not visible to this user; run as root")
    except ValueError:
        yield bad(name, f"{home.tls / 'listener.pem'} is no PEM file; remove it, and start the server again")
    else:
        end = certificate.not_valid_after_utc
        left, life = end - now, end - certificate.not_valid_before_utc
        if left.total_seconds() <= 0:
            yield bad(name, f"expired at {end:%Y-%m-%d %H:%M}Z; a running server renews it")
        elif left < life / 5:
            yield warning(name, f"until {end:%Y-%m-%d %H:%M}Z, overdue for renewal")
        else:
            yield good(name, f"until {end:%Y-%m-%d %H:%M}Z")
