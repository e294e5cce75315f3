"""The parent of core and fronts: starts them in order, restarts what dies, drains them in reverse order.

It opens no token and no database and parses nothing of the network's. Children are spawned, never forked: nothing of
this process's memory is in them. They lead sessions of their own, so that a terminal's interrupt reaches the
supervisor alone, which then stops them in order.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ca_server import telemetry
from ca_server.rpc.children import LIFELINE_FD, READY_FD, notify_systemd
from ca_server.rpc.listeners import listener_environment

_log = structlog.get_logger(__name__)
EXIT_START_TIMEOUT = 75
"""EX_TEMPFAIL: a child neither became ready nor ended in time."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running. `env` is the whole environment, to which the supervisor adds its descriptors.

    `listeners` names the listeners that it inherits. User and groups are ids; None keeps the supervisor's.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None
    umask: int = 0o077
    pass_fds: tuple[int, ...] = ()
    listeners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before restarts, in seconds: doubling from `first` to `last`, forgotten after `reset_after` up."""

    first: float = 0.2
    last: float = 10.0
    reset_after: float = 60.0


@dataclass(frozen=True, slots=True)
class SupervisorPlan:
    """What to run. `listeners` are bound (see `bind_listeners`); times are in seconds."""

    core: ChildSpec
    fronts: tuple[ChildSpec, ...]
    listeners: Mapping[str, tuple[socket.socket, ...]] = field(default_factory=dict)
    start_seconds: float = 60.0
    drain_seconds: float = 30.0
    backoff: Backoff = field(default_factory=Backoff)
    metrics_directory: Path | None = None
    announcement: str = ""
    """Printed on standard output when all is ready."""


_KILLED = 128 + signal.SIGKILL


class _StartError(Exception):
    """A first start failed; `code` is what the supervisor exits with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _exit_code(returncode: int) -> int:
    """As a shell tells it; a child that ended well without becoming ready has failed all the same."""
    if returncode < 0:
        return 128 - returncode
    return returncode or 1


class _Child:
    """One kept process. All fields are owned by the event loop of the supervisor."""

    def __init__(self, spec: ChildSpec, plan: SupervisorPlan, lifeline: int) -> None:
        self.spec = spec
        self.plan = plan
        self.lifeline = lifeline
        self.process: subprocess.Popen[bytes] | None = None
        self.exited = asyncio.Event()
        self.ready = False
        self.stopping = False
        self.watcher: asyncio.Task[None] | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.started_at = 0.0

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.exited.is_set()

    async def start(self) -> int | None:
        """Spawn and wait until it is ready: None; otherwise it has ended, and this is its exit code."""
        ready_read, ready_write = os.pipe()
        os.set_blocking(ready_read, False)
        try:
            self.process = self._spawn(ready_write)
        except (OSError, subprocess.SubprocessError) as error:
            _log.error("child can't be started", child=self.spec.name, reason=str(error))
            os.close(ready_read)
            return 126
        finally:
            os.close(ready_write)
        self.exited.clear()
        self.started_at = time.monotonic()
        self.watcher = asyncio.create_task(self._watch(self.process))
        try:
            async with asyncio.timeout(self.plan.start_seconds):
                if await self._told_ready(ready_read):
                    self.ready = True
                    _log.info("child ready", child=self.spec.name, pid=self.process.pid)
                    return None
                # End of file: it has ended, or closed the pipe and will be waited for.
                await self.exited.wait()
        except TimeoutError:
            _log.error("child not ready in time", child=self.spec.name, seconds=self.plan.start_seconds)
            self.signal(signal.SIGKILL)
            await self.exited.wait()
            return EXIT_START_TIMEOUT
        finally:
            os.close(ready_read)
        return _exit_code(self.process.returncode)

    def _spawn(self, ready_write: int) -> subprocess.Popen[bytes]:
        spec = self.spec
        sockets = {name: self.plan.listeners[name] for name in spec.listeners}
        environment = {
            **spec.env,
            **listener_environment(sockets),
            READY_FD: str(ready_write),
            LIFELINE_FD: str(self.lifeline),
        }
        # Only the supervisor may speak to systemd.
        environment.pop("NOTIFY_SOCKET", None)
        descriptors = [s.fileno() for group in sockets.values() for s in group]
        return subprocess.Popen(  # noqa: S603 - the plan's own command, no shell
            list(spec.argv),
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(*spec.pass_fds, *descriptors, ready_write, self.lifeline),
            user=spec.user,
            group=spec.group,
            extra_groups=spec.extra_groups,
            umask=spec.umask,
            # No terminal either: what is typed there (TIOCSTI) would be root's to run.
            start_new_session=True,
        )

    async def _told_ready(self, descriptor: int) -> bool:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()

        def readable() -> None:
            if not answer.done():
                answer.set_result(bool(os.read(descriptor, 1)))

        loop.add_reader(descriptor, readable)
        try:
            return await answer
        finally:
            loop.remove_reader(descriptor)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the process through its pidfd, which can't be another process's."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        # Not yet reaped, so the number of its group is still its own: what it started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.ready = False
        if self.plan.metrics_directory is not None:
            telemetry.forget_process(self.plan.metrics_directory, process.pid)
        self.exited.set()

    async def keep(self) -> None:
        """Restart whenever it ends, until it is stopped."""
        backoff = self.plan.backoff
        pause = backoff.first
        while True:
            await self.exited.wait()
            if self.stopping:
                return
            code = self.process.returncode if self.process is not None else None
            if time.monotonic() - self.started_at >= backoff.reset_after:
                pause = backoff.first
            _log.error("child ended, restarting", child=self.spec.name, returncode=code, seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, backoff.last)
            telemetry.CHILD_RESTARTS.labels(self.spec.name).inc()
            if await self.start() is not None:
                self.exited.set()

    def signal(self, number: int) -> None:
        """Send a signal to the process if it lives."""
        if self.alive and self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def stop(self, seconds: float) -> None:
        """SIGTERM, `seconds` to finish, SIGKILL; returns when it is gone."""
        self.stopping = True
        if self.keeper is not None:
            self.keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.keeper
        if not self.alive:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        except TimeoutError:
            _log.warning("child did not finish in time, killed", child=self.spec.name, seconds=seconds)
            self.signal(signal.SIGKILL)
            await self.exited.wait()


class _Supervisor:
    def __init__(self, plan: SupervisorPlan, lifeline: int) -> None:
        self.plan = plan
        self.core = _Child(plan.core, plan, lifeline)
        self.fronts = [_Child(spec, plan, lifeline) for spec in plan.fronts]
        self.stop_asked = asyncio.Event()

    @property
    def children(self) -> list[_Child]:
        return [self.core, *self.fronts]

    def on_stop_signal(self) -> None:
        if not self.stop_asked.is_set():
            _log.info("stopping", drain_seconds=self.plan.drain_seconds)
            notify_systemd("STOPPING=1")
            self.stop_asked.set()
            return
        _log.warning("second signal, killing")
        for child in self.children:
            child.signal(signal.SIGKILL)

    def on_reload_signal(self) -> None:
        for child in self.children:
            # One that still starts has no handler yet, would die of it, and reads its configuration anyway.
            if child.ready:
                child.signal(signal.SIGHUP)

    async def start(self) -> None:
        """The core, and when it is ready the fronts, all at once. Raises _StartError."""
        code = await self.core.start()
        if code is not None:
            raise _StartError(code)
        self.core.keeper = asyncio.create_task(self.core.keep())
        codes = await asyncio.gather(*(front.start() for front in self.fronts))
        for code in codes:
            # One that was killed is restarted as at any other time: that is nobody's mistake, and the others may serve.
            if code is not None and code != _KILLED:
                raise _StartError(code)
        for front in self.fronts:
            front.keeper = asyncio.create_task(front.keep())

    async def run(self) -> int:
        starting = asyncio.create_task(self.start())
        asked = asyncio.create_task(self.stop_asked.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                notify_systemd("READY=1")
                if self.plan.announcement:
                    print(self.plan.announcement, flush=True)  # noqa: T201 - for the person who started it
                await asked
            else:
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError, _StartError):
                    await starting
        except _StartError as failure:
            return failure.code
        finally:
            asked.cancel()
            await self.drain()
        return 0

    async def drain(self) -> None:
        """Fronts first: what they still finish needs the core."""
        await asyncio.gather(*(front.stop(self.plan.drain_seconds) for front in self.fronts))
        await self.core.stop(self.plan.drain_seconds)


async def supervise(plan: SupervisorPlan) -> int:
    """Run core and fronts until SIGTERM or SIGINT; return the exit code.

    A first start that fails is not repeated: its message is on standard error already, and its exit code is returned
    (a front that somebody killed meanwhile is restarted).
    Later, what dies is restarted with growing pauses. SIGTERM and SIGINT drain the fronts, then the core (0 is
    returned); a second one kills. SIGHUP is passed on. When this process dies, however it dies, children see the end
    of their lifeline.
    """
    loop = asyncio.get_running_loop()
    lifeline_read, lifeline_write = os.pipe()
    supervisor = _Supervisor(plan, lifeline_read)
    handlers = {
        signal.SIGTERM: supervisor.on_stop_signal,
        signal.SIGINT: supervisor.on_stop_signal,
        signal.SIGHUP: supervisor.on_reload_signal,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    sys.stdout.flush()
    try:
        return await supervisor.run()
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
        os.close(lifeline_write)
        os.close(lifeline_read)
