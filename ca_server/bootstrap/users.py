"""Who runs what: as root, core and fronts are two users that share a group; otherwise everything is one user's."""

import errno
import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, ProcessSettings
from ca_server.telemetry import METRICS_OF_CORE, METRICS_OF_FRONTS

SHARED_UMASK = 0o007
FRONT_UID = "CA_SERVER_FRONT_UID"
"""Environment variable by which the supervisor tells the core whom to hear on its port."""


@dataclass(frozen=True, slots=True)
class Account:
    """A system user; `folder` is its home directory, which need not exist."""

    name: str
    uid: int
    folder: str = "/nonexistent"

    @property
    def environment(self) -> dict[str, str]:
        """What tells libraries who they run as: with root's HOME they would look for files that are closed to them."""
        return {"HOME": self.folder, "USER": self.name, "LOGNAME": self.name}


@dataclass(frozen=True, slots=True)
class Users:
    """The users of core and fronts with their shared group; all None where there is no separation."""

    core: Account | None
    front: Account | None
    gid: int | None

    @property
    def separated(self) -> bool:
        """Whether core and fronts run as different users."""
        return self.core is not None

    @property
    def core_uid(self) -> int:
        """The core's uid."""
        return self.core.uid if self.core else os.getuid()

    @property
    def front_uid(self) -> int:
        """The fronts' uid."""
        return self.front.uid if self.front else os.getuid()


def resolve_users(settings: ProcessSettings, where: str) -> Users:
    """Find the users to run as. ConfigurationError where root lacks them and `processes.allow_root` is not set."""
    if os.getuid() != 0 or settings.allow_root:
        return Users(None, None, None)
    try:
        core = pwd.getpwnam(settings.core_user)
        front = pwd.getpwnam(settings.front_user)
        group = grp.getgrnam(settings.group)
    except KeyError as error:
        raise ConfigurationError(
            where,
            "processes.core_user",
            settings.core_user,
            f"{error.args[0]}; create group and users (scripts/run does), or set processes.allow_root=true",
        ) from None
    return Users(_account(core), _account(front), group.gr_gid)


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_dir)


def check_reachable(home: Home, users: Users) -> None:
    """Check that the users can get to the home. ConfigurationError names the folder that is closed to them."""
    if not users.separated:
        return
    for folder in reversed(home.path.resolve().parents):
        if not folder.stat().st_mode & 0o001:
            raise ConfigurationError(
                str(folder),
                "permissions",
                None,
                f"closed to the server's users; choose a --home outside {folder}, such as /var/lib/ca-server",
            )


def create_folders(home: Home, users: Users) -> None:
    """Create the home's folders with the owners and modes that the separation stands on.

    All lie in folders that are root's: nobody else can put something in their place. What a front can write (`data`,
    its own of `metrics`, `tls`) holds nothing that root opens, changes or follows later.
    """
    core_uid = users.core.uid if users.core else -1
    front_uid = users.front.uid if users.front else -1
    gid = users.gid if users.gid is not None else -1
    for folder, uid, group, mode in (
        (home.path, -1, -1, 0o755),
        (home.profiles, -1, -1, 0o755),
        (home.core, core_uid, gid, 0o700),
        # Sticky: a front writes the core's database, but can't remove it or put another, or a link, in its place.
        (home.data, core_uid, gid, 0o3770),
        (home.run, core_uid, gid, 0o2750),
        (home.metrics, os.getuid(), gid, 0o750),
        (home.metrics / METRICS_OF_CORE, core_uid, gid, 0o2750),
        (home.metrics / METRICS_OF_FRONTS, front_uid, gid, 0o2750),
        (home.tls, front_uid, gid, 0o700),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        _own(folder, uid, group, mode)


def _own(path: Path, uid: int, gid: int, mode: int | None) -> None:
    """Set owner and mode of what is here, never of what a link points at. ConfigurationError for a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigurationError(str(path), "permissions", None, "is a link; remove it, and look who made it") from None
    try:
        os.fchown(descriptor, uid, gid)
        if mode is not None:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def hand_over(home: Home, users: Users) -> None:
    """Give what root created to the core's user, so that the core finds it as if it had made it."""
    if users.core is None or users.gid is None:
        return
    for top, mode in ((home.core, None), (home.data, 0o660)):
        for path in (top, *top.rglob("*")):
            if path.is_socket():
                os.chown(path, users.core.uid, users.gid, follow_symlinks=False)
            else:
                _own(path, users.core.uid, users.gid, None if path.is_dir() else mode)


def become_core(users: Users) -> None:
    """Give root up for the core's user, for good: what an offline command writes is then the core's to read."""
    if users.core is None or users.gid is None:
        return
    os.setgroups([])
    os.setgid(users.gid)
    os.setuid(users.core.uid)
    os.environ.update(users.core.environment)
    os.umask(SHARED_UMASK)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
