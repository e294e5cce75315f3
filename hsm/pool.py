"""Worker threads with a session each: the token never blocks the event loop, and one wake-up brings many results."""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pkcs11

from ca_server.domain.errors import CaError, ErrorKind
from hsm.failures import SESSION_LOST, is_token_lost, unavailable
from hsm.token import Token, TokenAwayError

T = TypeVar("T")

Observe = Callable[[str, str, float], None]


@dataclass(slots=True)
class Bench:
    """What one worker thread has at hand: its session, and the handles it opened in it. Owned by that thread."""

    session: pkcs11.Session
    generation: int
    handles: dict[str, tuple[Any, Any, float]] = field(default_factory=dict)


@dataclass(slots=True)
class _Job:
    name: str
    work: Callable[[Bench], Any]
    future: asyncio.Future[Any]


class Pool:
    """Runs operations on worker threads. A first worker takes the quick ones; slow ones go where least waits."""

    def __init__(self, token: Token, observe: Observe) -> None:
        self._token = token
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._queues: list[queue.SimpleQueue[_Job | None]] = []
        self._waiting = [0] * token.options.threads
        self._done: deque[tuple[_Job, int, Any, BaseException | None, float]] = deque()
        self._wake_scheduled = threading.Event()
        self._closed = False
        self._threads = []
        for number in range(token.options.threads):
            jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(number, jobs), name=f"token-{number}", daemon=True)
            self._queues.append(jobs)
            self._threads.append(thread)
            thread.start()

    async def run(
        self, name: str, work: Callable[[Bench], T], *, spread: bool = False, limit: float | None = None
    ) -> T:
        """Run `work` on a worker; once more after recovery where the token was lost.

        UNAVAILABLE where the token stays away, the queue is full or the time limit (`limit` in seconds, or the
        token's) runs out. Work that nobody waits for any more is not begun; where it was begun its result is dropped.
        """
        limit = limit or self._token.options.timeout
        try:
            return await self._once(name, work, spread=spread, limit=limit)
        except _LostError as lost:
            await asyncio.to_thread(self._token.recover, lost.generation)
        try:
            return await self._once(name, work, spread=spread, limit=limit)
        except _LostError as lost:
            raise unavailable(lost.cause) from None

    async def _once(self, name: str, work: Callable[[Bench], T], *, spread: bool, limit: float) -> T:
        if self._closed:
            raise unavailable("closed")
        number = self._idlest() if spread else 0
        if sum(self._waiting) >= self._token.options.queue_limit:
            raise CaError(ErrorKind.UNAVAILABLE, "the token is busy", retry_after=5)
        job = _Job(name, work, self._loop.create_future())
        self._waiting[number] += 1
        self._queues[number].put(job)
        try:
            async with asyncio.timeout(limit):
                result: T = await job.future
        except TimeoutError:
            raise CaError(ErrorKind.UNAVAILABLE, "the token is slow", retry_after=5) from None
        return result

    def _idlest(self) -> int:
        """The worker with the least to do; of equals the last, which leaves the first to the quick operations."""
        return min(reversed(range(len(self._waiting))), key=self._waiting.__getitem__)

    def _work(self, number: int, jobs: queue.SimpleQueue[_Job | None]) -> None:
        bench: Bench | None = None
        while (job := jobs.get()) is not None:
            if job.future.cancelled():
                self._finish(job, number, None, None, 0.0)
                continue
            started = time.perf_counter()
            try:
                with self._token.in_use():
                    bench, result = self._attempt(bench, job.work)
            except TokenAwayError:
                lost = _LostError(self._token.generation, "not open")
                self._finish(job, number, None, lost, time.perf_counter() - started)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                self._finish(job, number, None, error, time.perf_counter() - started)
            else:
                self._finish(job, number, result, None, time.perf_counter() - started)

    def _attempt(self, bench: Bench | None, work: Callable[[Bench], T]) -> tuple[Bench, T]:
        """Do the work in this thread's session, in a new one where the old was closed under it."""
        generation = self._token.generation
        try:
            if bench is None or bench.generation != generation:
                bench = Bench(self._token.session(writable=True), generation)
            try:
                return bench, work(bench)
            except SESSION_LOST:
                bench = Bench(self._token.session(writable=True), generation)
                return bench, work(bench)
        except pkcs11.PKCS11Error as error:
            if isinstance(error, SESSION_LOST) or is_token_lost(error):
                raise _LostError(generation, type(error).__name__) from None
            raise unavailable(error) from None

    def _finish(self, job: _Job, number: int, result: Any, error: BaseException | None, seconds: float) -> None:
        self._done.append((job, number, result, error, seconds))
        if not self._wake_scheduled.is_set():
            self._wake_scheduled.set()
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    def _deliver(self) -> None:
        self._wake_scheduled.clear()
        while self._done:
            job, number, result, error, seconds = self._done.popleft()
            self._waiting[number] -= 1
            self._observe(job.name, _outcome(job, error), seconds)
            if job.future.done():
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
                job.future.exception()  # a caller that gave up waiting is no unretrieved exception

    async def close(self) -> None:
        """Finish what waits, then end the threads; take nothing new."""
        self._closed = True
        for jobs in self._queues:
            jobs.put(None)
        limit = self._token.options.timeout
        await asyncio.gather(*(asyncio.to_thread(thread.join, limit) for thread in self._threads))


def _outcome(job: _Job, error: BaseException | None) -> str:
    if job.future.cancelled():
        return "dropped"
    if error is None:
        return "ok"
    return "lost" if isinstance(error, _LostError) else "failed"


class _LostError(Exception):
    """The token of this generation is lost: recover, then try again."""

    def __init__(self, generation: int, cause: str) -> None:
        super().__init__(cause)
        self.generation = generation
        self.cause = cause
