"""The main functions of the processes: core, front, and both in one."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop

from ca_server import telemetry
from ca_server.bootstrap.announcement import announcement
from ca_server.bootstrap.core import CoreRuntime
from ca_server.bootstrap.descriptors import raise_limit
from ca_server.bootstrap.front import front_at_work
from ca_server.bootstrap.hardening import keep_memory_private
from ca_server.bootstrap.memory import give_back_large_blocks
from ca_server.bootstrap.users import FRONT_UID, SHARED_UMASK
from ca_server.rpc.admin import ADMIN_OPERATIONS
from ca_server.rpc.children import notify_ready, watch_lifeline
from ca_server.rpc.client import RpcCorePort
from ca_server.rpc.listeners import ListenerSpec, bind_listeners, inherited_sockets
from ca_server.rpc.messages import CORE_OPERATIONS
from ca_server.rpc.server import PEER, UnixServer, serve_unix
from ca_server.settings import Home, Settings

_log = structlog.get_logger()

_GARBAGE_THRESHOLD = 20_000


def _settle_heap() -> None:
    """Keep the garbage collector from what start-up made, which stays: it took a twelfth of an issuance's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)


def _run(work: Coroutine[Any, Any, int]) -> int:
    give_back_large_blocks()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def run_core(home: Home, settings: Settings) -> int:
    """Be the core process until SIGTERM or the supervisor's end."""
    telemetry.configure_logging(settings.log.format, settings.log.level, process="core")
    keep_memory_private()
    os.umask(SHARED_UMASK)
    return _run(_core(home, settings))


def run_front(home: Home, settings: Settings, index: int) -> int:
    """Be a front process until SIGTERM or the supervisor's end."""
    telemetry.configure_logging(settings.log.format, settings.log.level, process=f"front-{index}")
    os.umask(SHARED_UMASK)
    return _run(_front(home, settings, index))


def run_single(home: Home, settings: Settings) -> int:
    """Be core and front in one process, over the same port in-process."""
    telemetry.configure_logging(settings.log.format, settings.log.level, process="single")
    raise_limit()
    os.umask(SHARED_UMASK)
    return _run(_single(home, settings))


def peer_actor() -> str:
    """Who is at the other end of the admin socket, as audit events name it."""
    peer = PEER.get()
    return f"uid:{peer.uid}" if peer is not None else f"uid:{os.getuid()}"


class _Stop:
    """Waits for SIGTERM, SIGINT or the supervisor's end; SIGHUP calls `reload`."""

    def __init__(self, reload: Callable[[], Awaitable[object]]) -> None:
        self._event = asyncio.Event()
        self._reload = reload
        self._reloading: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._event.set)
        loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        self._lifeline = asyncio.create_task(self._watch())

    async def wait(self) -> None:
        """Return when this process is to stop."""
        await self._event.wait()
        self._lifeline.cancel()

    async def _watch(self) -> None:
        await watch_lifeline()
        _log.warning("the supervisor is gone, stopping")
        self._event.set()

    def _start_reload(self) -> None:
        task = asyncio.create_task(self._do_reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _do_reload(self) -> None:
        try:
            await self._reload()
            _log.info("reloaded")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new profiles, the old ones stay
            _log.error("not reloaded, what stood stays", error=str(error))


async def _serve_ports(core: CoreRuntime, home: Home) -> list[UnixServer]:
    own = os.getuid()
    fronts = await serve_unix(
        home.core_socket,
        CORE_OPERATIONS,
        core.front_port(),
        allowed_uids=frozenset({own, _front_uid(own)}),
        mode=0o660,
    )
    admin = await serve_unix(
        home.admin_socket,
        ADMIN_OPERATIONS,
        core.admin(peer_actor),
        allowed_uids=frozenset({own, 0}),
        mode=0o600,
    )
    return [fronts, admin]


def _front_uid(own: int) -> int:
    """The fronts' uid as the supervisor told it: the core has dropped root and can't resolve it from its own uid."""
    text = os.environ.get(FRONT_UID, "")
    return int(text) if text.isdigit() else own


async def _core(home: Home, settings: Settings) -> int:
    async with CoreRuntime.open(home, settings, process="core") as core:
        await core.settle_in()
        async with core.at_work():
            stop = _Stop(core.reload)
            servers = await _serve_ports(core, home)
            _settle_heap()
            notify_ready()
            _log.info("core ready", node=core.fence.node, boot=core.fence.boot_epoch)
            await stop.wait()
            _log.info("core drains")
            await _close_ports(servers, settings)
    return 0


async def _close_ports(servers: Sequence[UnixServer], settings: Settings) -> None:
    """Finish what the ports began, in half of the time that the supervisor gives."""
    seconds = settings.processes.drain_seconds / 2
    await asyncio.gather(*(server.close(seconds) for server in servers))


async def _front(home: Home, settings: Settings, index: int) -> int:
    async with AsyncExitStack() as stack:
        port = RpcCorePort.at(home.core_socket)
        stack.push_async_callback(port.close)
        front = await stack.enter_async_context(
            front_at_work(home, settings, port, inherited_sockets(), process=f"front-{index}")
        )
        stop = _Stop(front.reload)
        _settle_heap()
        notify_ready()
        _log.info("front ready", listeners=sorted(settings.listeners))
        await stop.wait()
        _log.info("front drains")
    return 0


async def _single(home: Home, settings: Settings) -> int:
    listeners = bind_listeners(
        ListenerSpec(name, listener.address, listener.port) for name, listener in settings.listeners.items()
    )
    async with CoreRuntime.open(home, settings, process="core") as core:
        await core.settle_in()
        async with core.at_work():
            servers = await _serve_ports(core, home)
            async with front_at_work(home, settings, core.front_port(), listeners, process="front-1") as front:

                async def reload() -> None:
                    await core.reload()
                    await front.reload()

                stop = _Stop(reload)
                _settle_heap()
                notify_ready()
                sys.stdout.write(announcement(home, settings))
                sys.stdout.flush()
                await stop.wait()
            await _close_ports(servers, settings)
    return 0
