"""`ca-server serve`: binds the listeners and supervises core and fronts."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ca_server import telemetry
from ca_server.bootstrap.announcement import announcement
from ca_server.bootstrap.attestation import load_attestation_roots
from ca_server.bootstrap.descriptors import raise_limit
from ca_server.bootstrap.hardening import no_new_privileges
from ca_server.bootstrap.profiles import load_profiles
from ca_server.bootstrap.token import module_path
from ca_server.bootstrap.users import (
    FRONT_UID,
    SHARED_UMASK,
    Users,
    check_reachable,
    create_folders,
    resolve_users,
)
from ca_server.domain.errors import ConfigurationError
from ca_server.rpc.listeners import ListenerSpec, bind_listeners
from ca_server.rpc.supervisor import ChildSpec, SupervisorPlan, supervise
from ca_server.settings import Home, Settings

_CORE_SECRETS = ("CA_SERVER_PIN",)
_METRICS_OF = {True: telemetry.METRICS_OF_CORE, False: telemetry.METRICS_OF_FRONTS}
_DATABASE_SECRETS = ("PGPASSWORD", "PGPASSFILE")
"""The fronts' too, where they have no role of their own."""


def serve_home(home: Home, settings: Settings, overrides: Sequence[str]) -> int:
    """Serve until SIGTERM; returns the exit code. ConfigurationError for what can be seen before anything starts."""
    telemetry.configure_logging(settings.log.format, settings.log.level, process="supervisor")
    no_new_privileges()
    raise_limit()
    users = resolve_users(settings.processes, str(home.configuration))
    check_reachable(home, users)
    check_interpreter(users)
    load_profiles(home, settings)
    load_attestation_roots(home, settings)
    module_path(home, settings)
    try:
        create_folders(home, users)
        telemetry.prepare_metrics_directory(home.metrics)
    except OSError as error:
        raise ConfigurationError(
            str(error.filename or home.path), "permissions", None, f"can't be written ({error.strerror})"
        ) from None
    listeners = bind_listeners(
        ListenerSpec(name, listener.address, listener.port) for name, listener in settings.listeners.items()
    )
    plan = SupervisorPlan(
        core=_child("core", ("core",), home, settings, overrides, users),
        fronts=tuple(
            _child(f"front-{index}", ("front", "--index", str(index)), home, settings, overrides, users)
            for index in range(1, settings.processes.fronts + 1)
        ),
        listeners=listeners,
        drain_seconds=settings.processes.drain_seconds,
        metrics_directory=home.metrics,
        announcement=announcement(home, settings),
    )
    return asyncio.run(supervise(plan))


def check_interpreter(users: Users) -> None:
    """Check that the users can execute this Python. ConfigurationError names the folder that is closed to them."""
    if not users.separated:
        return
    executable = Path(sys.executable)
    for place in sorted({executable.absolute(), executable.resolve(), Path(__file__).resolve()}):
        for folder in place.parents:
            if not folder.stat().st_mode & 0o001:
                raise ConfigurationError(
                    str(folder),
                    "permissions",
                    None,
                    f"closed to the server's users, who must execute {place}; install elsewhere (for example under "
                    "/opt), or set processes.allow_root=true to run everything as root",
                )


def _child(
    name: str, role: tuple[str, ...], home: Home, settings: Settings, overrides: Sequence[str], users: Users
) -> ChildSpec:
    """How to start one process. Settings go by argument and environment; no secret does, but the core's own PIN."""
    is_core = role[0] == "core"
    secrets = {*_CORE_SECRETS, settings.token.pin_environment}
    if settings.database.front_url:
        secrets.update(_DATABASE_SECRETS)
    environment = {key: value for key, value in os.environ.items() if is_core or key not in secrets}
    environment.update(telemetry.metrics_environment(home.metrics, _METRICS_OF[is_core]))
    environment[FRONT_UID] = str(users.front_uid)
    arguments = [sys.executable, "-m", "ca_server", "process", *role, "--home", str(home.path)]
    for override in overrides:
        arguments += ["--set", override]
    account = users.core if is_core else users.front
    if account is not None:
        environment.update(account.environment)
    return ChildSpec(
        name=name,
        argv=arguments,
        env=environment,
        user=account.uid if account else None,
        group=users.gid if account else None,
        extra_groups=() if account else None,
        umask=SHARED_UMASK,
        listeners=() if is_core else tuple(settings.listeners),
    )
