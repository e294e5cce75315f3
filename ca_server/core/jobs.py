"""Periodic work of a core process; where it must be done once for all nodes, under a lease in the database."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from ca_server.core.ports import CoordinationStore
from ca_server.domain.errors import CaError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every `interval` seconds; `leased`: by one node at a time."""

    name: str
    interval: float
    run: Callable[[], Awaitable[object]]
    leased: bool = False


class Jobs:
    """Runs jobs, each in a task of its own; a job that fails is logged and comes again."""

    def __init__(self, store: CoordinationStore, holder: str, jobs: Sequence[Job]) -> None:
        self._store = store
        self._holder = holder
        self._jobs = jobs
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start every job; the first run comes after one interval."""
        self._tasks = [asyncio.create_task(self._loop(job), name=f"job {job.name}") for job in self._jobs]

    async def stop(self) -> None:
        """Stop every job and wait for it to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _loop(self, job: Job) -> None:
        while True:
            await asyncio.sleep(job.interval)
            try:
                if job.leased:
                    await self._run_leased(job)
                else:
                    await job.run()
            except CaError as error:
                _log.warning("job failed, will run again", job=job.name, error=error.detail)
            except Exception:  # noqa: BLE001 - logged with its traceback; the loop goes on
                _log.exception("job failed, will run again", job=job.name)

    async def _run_leased(self, job: Job) -> None:
        now = datetime.now(UTC)
        duration = timedelta(seconds=max(30.0, 2 * job.interval))
        lease = await self._store.acquire_lease(f"job:{job.name}", self._holder, now, duration)
        if lease is not None:
            await job.run()
