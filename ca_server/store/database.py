"""Group commit: units of work that wait for durability at the same moment share one transaction.

A unit is a synchronous function over a `Connection`, or the argument of a `Bulk`, which does many of a kind by a few
statements. One task takes all units that are queued, begins one transaction, runs all, commits once and wakes every
caller. So:

- a caller is woken only after the commit of what its unit did;
- an error in one unit undoes and fails that unit alone (by savepoints, see `_commit_together`);
- what units are going to lock or use up, the batch takes first, in one order (see `claims`): no two processes wait for
  each other;
- an error that aborts the whole transaction (disk full, deadlock, lost connection) rolls it back, and the units are
  run again one by one, each with a verdict of its own. A unit may therefore run MORE THAN ONCE and must have no effect
  outside its connection;
- a connection lost during COMMIT leaves the outcome open: PostgreSQL is asked for it (`txid_status`) before any unit is
  run again.
"""

import asyncio
import functools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Connection, text

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.backends import Backend, Work, open_backend
from ca_server.store.claims import Once, give_back, take_locks, take_once
from ca_server.store.failures import Failure, classify

A = TypeVar("A")
T = TypeVar("T")
Observer = Callable[[str, float, int], None]
"""Called with `write` (seconds of a transaction, units in it), `read` (seconds, 1), `retry` (0.0, units),
`refused` (0.0, units that were given up or did not fit in the queue) or `waiting` (0.0, units queued now).
"""

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
_READ_ATTEMPTS = 2
_CAREFUL_BATCHES = 16
"""How many transactions use savepoints from the start after a unit failed: failures come in swarms."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """How one unit ended: its value, or its error."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bulk(Generic[A, T]):
    """Units of one kind, which a batch does together.

    `run` is given the arguments of all and returns their values in that order. Where it raises nothing of it stands,
    and each is run alone: an error must be told apart by one run of one unit.
    """

    run: Callable[[Connection, Sequence[A]], Sequence[T]]


@dataclass(frozen=True, slots=True)
class Along:
    """What is done along with a unit, in bulk, where the unit's value is not False."""

    bulk: Bulk[Any, Any]
    argument: Any


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is done, and what must be taken before."""

    work: Work[Any]
    locks: Sequence[str] = ()
    once: Once | None = None
    along: Along | None = None
    bulk: Bulk[Any, Any] | None = None
    """What does `argument` together with others in place of `work`."""
    argument: Any = None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A queued unit; after `patience_ends` it is not tried again."""

    unit: _Unit
    future: asyncio.Future[Any]
    patience_ends: float

    def settle(self, verdict: _Verdict) -> None:
        """Wake the caller, unless he was cancelled meanwhile."""
        if self.future.done():
            return
        if verdict.error is None:
            self.future.set_result(verdict.value)
        else:
            self.future.set_exception(verdict.error)


class _CommitUnknownError(Exception):
    """The connection was lost during COMMIT; the transaction may stand."""

    def __init__(self, transaction: int, verdicts: list[_Verdict]) -> None:
        super().__init__("the outcome of a commit is unknown")
        self.transaction = transaction
        self.verdicts = verdicts


@dataclass(frozen=True, slots=True)
class _Committed:
    """A transaction that stands; `clean` where no unit of it failed."""

    verdicts: list[_Verdict]
    clean: bool


def _commit_together(connection: Connection, units: Sequence[_Unit], *, careful: bool) -> _Committed:
    """Run units in one transaction and commit it; raises only what aborts all of it.

    Savepoints cost as much as a statement, so units go without them until one fails: then all are undone and run again
    with savepoints, as they are at once where `careful`.
    """
    if not careful:
        try:
            return _Committed(_transact(connection, units, _run_together), clean=True)
        except _CommitUnknownError:
            raise
        except Exception as error:
            if classify(error) is not Failure.UNIT:
                raise
            if len(units) == 1:
                return _Committed([_Verdict(error=error)], clean=False)
    verdicts = _transact(connection, units, _run_apart)
    return _Committed(verdicts, clean=all(verdict.error is None for verdict in verdicts))


def _transact(
    connection: Connection, units: Sequence[_Unit], run: Callable[[Connection, list[_Unit]], list[_Verdict]]
) -> list[_Verdict]:
    transaction = connection.begin()
    try:
        take_locks(connection, {name for unit in units for name in unit.locks})
        allowed = take_once(connection, [unit.once for unit in units])
        ran = iter(run(connection, [unit for unit, may_run in zip(units, allowed, strict=True) if may_run]))
        verdicts = [next(ran) if may_run else _used(unit) for unit, may_run in zip(units, allowed, strict=True)]
        outcomes = zip(units, allowed, verdicts, strict=True)
        give_back(connection, [unit.once for unit, taken, verdict in outcomes if taken and verdict.error is not None])
        identity = _transaction_identity(connection)
    except BaseException:
        _roll_back(transaction)
        raise
    try:
        transaction.commit()
    except Exception as error:
        _roll_back(transaction)
        if identity is not None and classify(error) is Failure.LOST:
            raise _CommitUnknownError(identity, verdicts) from error
        raise
    return verdicts


def _used(unit: _Unit) -> _Verdict:
    return _Verdict(error=None if unit.once is None else unit.once.table.used())


def _run_together(connection: Connection, units: list[_Unit]) -> list[_Verdict]:
    """Run units in the order of their arrival, but those of a bulk with its first."""
    together: dict[Bulk[Any, Any], list[int]] = {}
    for at, unit in enumerate(units):
        if unit.bulk is not None:
            together.setdefault(unit.bulk, []).append(at)
    values: list[Any] = [None] * len(units)
    for at, unit in enumerate(units):
        if unit.bulk is None:
            values[at] = unit.work(connection)
        elif (places := together.pop(unit.bulk, None)) is not None:
            results = unit.bulk.run(connection, [units[place].argument for place in places])
            for place, value in zip(places, results, strict=True):
                values[place] = value
    along: dict[Bulk[Any, Any], list[Any]] = {}
    for unit, value in zip(units, values, strict=True):
        if unit.along is not None and value is not False:
            along.setdefault(unit.along.bulk, []).append(unit.along.argument)
    for bulk, arguments in along.items():
        bulk.run(connection, arguments)
    return [_Verdict(value) for value in values]


def _run_apart(connection: Connection, units: list[_Unit]) -> list[_Verdict]:
    return [_run_in_savepoint(connection, unit) for unit in units]


def _run_in_savepoint(connection: Connection, unit: _Unit) -> _Verdict:
    connection.exec_driver_sql("SAVEPOINT unit")
    try:
        value = unit.work(connection)
        if unit.along is not None and value is not False:
            unit.along.bulk.run(connection, (unit.along.argument,))
    except Exception as error:
        if classify(error) is not Failure.UNIT:
            raise
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT unit")
        connection.exec_driver_sql("RELEASE SAVEPOINT unit")
        return _Verdict(error=error)
    connection.exec_driver_sql("RELEASE SAVEPOINT unit")
    return _Verdict(value)


def _transaction_identity(connection: Connection) -> int | None:
    """What the outcome of this transaction can be asked for by; None where a commit is certain or writes nothing."""
    if connection.dialect.name != "postgresql":
        return None
    identity: int | None = connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar()
    return identity


def _roll_back(transaction: Any) -> None:
    try:
        transaction.rollback()
    except Exception as error:  # noqa: BLE001 - the connection is gone, and the transaction with it
        _log.debug("rollback failed", error=type(error).__name__)


class Database:
    """One database with a writer that groups commits, and a pool of readers. Open it with `Database.open`."""

    def __init__(
        self, backend: Backend, *, queue_limit: int, max_batch: int, patience: float, observe: Observer | None
    ) -> None:
        self.dialect = backend.dialect
        self._backend = backend
        self._queue_limit = queue_limit
        self._max_batch = max_batch
        self._patience = patience
        self._observe = observe or (lambda _name, _seconds, _count: None)
        self._closing = False
        self._queue: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        # Owned by the writer task:
        self._away = False
        """Whether the last attempt found the database gone or locked."""
        self._careful = 0
        self._problem: str | None = None
        self._writer = asyncio.create_task(self._run_writer(), name="store-writer")

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 4,
        queue_limit: int = 10_000,
        max_batch: int = 256,
        statement_timeout: float = 10.0,
        patience: float = 10.0,
        observe: Observer | None = None,
    ) -> "Database":
        """Open a database and check that it answers.

        `statement_timeout`, in seconds, bounds a statement (PostgreSQL) and the wait for the lock of another process
        (SQLite); `patience` how long a unit is tried again while the database is away or locked. Raises
        ConfigurationError for a URL that can't be used, CaError UNAVAILABLE where the database does not answer.
        """
        backend = await open_backend(url, pool_size=pool_size, statement_timeout=statement_timeout)
        database = cls(backend, queue_limit=queue_limit, max_batch=max_batch, patience=patience, observe=observe)
        try:
            await database.read(lambda connection: connection.execute(text("SELECT 1")).scalar())
        except BaseException:
            await database.close()
            raise
        return database

    async def write(
        self,
        unit: Callable[[Connection], T],
        *,
        locks: Sequence[str] = (),
        once: Once | None = None,
        along: Along | None = None,
    ) -> T:
        """Run `unit` in a transaction and return its value once that is committed; nothing is where this raises.

        `locks` name what it changes, where units of other processes may change the same; `once` is used up with it;
        `along` is done in the same transaction.
        Raises what the unit raised, or UNAVAILABLE where the queue is full or the database is away. Cancelling the
        caller does not cancel the unit.
        """
        result: T = await self._enqueue(_Unit(unit, locks, once, along))
        return result

    async def write_in_bulk(
        self, bulk: Bulk[A, T], argument: A, *, locks: Sequence[str] = (), once: Once | None = None
    ) -> T:
        """`write` of one unit of a bulk."""
        unit = _Unit(lambda connection: bulk.run(connection, (argument,))[0], locks, once, None, bulk, argument)
        result: T = await self._enqueue(unit)
        return result

    async def _enqueue(self, unit: _Unit) -> Any:
        if self._closing:
            raise CaError(ErrorKind.UNAVAILABLE, "the database is being closed")
        if len(self._queue) >= self._queue_limit:
            self._observe("refused", 0.0, 1)
            raise CaError(ErrorKind.UNAVAILABLE, "too much is waiting for the database")
        loop = asyncio.get_running_loop()
        pending = _Pending(unit, loop.create_future(), loop.time() + self._patience)
        self._queue.append(pending)
        self._observe("waiting", 0.0, len(self._queue))
        self._wake.set()
        return await pending.future

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a read transaction. UNAVAILABLE where the database is away."""
        return await self._read(self._backend.read, query)

    async def glance(self, query: Callable[[Connection], T], *, one_moment: bool = True) -> T:
        """`read` for a few rows found by index: on SQLite it is done at once, without another thread.

        With `one_moment` false each statement may see a moment of its own, which costs less.
        """
        return await self._read(functools.partial(self._backend.glance, one_moment=one_moment), query)

    async def _read(self, read: Callable[[Work[T]], Awaitable[T]], query: Work[T]) -> T:
        if self._closing:
            raise CaError(ErrorKind.UNAVAILABLE, "the database is being closed")
        began = time.perf_counter()
        for attempt in range(_READ_ATTEMPTS):
            try:
                result = await read(query)
            except Exception as error:
                failure = classify(error)
                if failure is Failure.UNIT:
                    raise
                if failure is Failure.BROKEN or attempt + 1 == _READ_ATTEMPTS:
                    raise _unavailable(error) from error
            else:
                self._observe("read", time.perf_counter() - began, 1)
                return result
        raise AssertionError("every attempt returns or raises")

    async def close(self) -> None:
        """Commit what is queued, then close all connections. Later calls raise UNAVAILABLE."""
        self._closing = True
        self._wake.set()
        await asyncio.shield(self._writer)
        await self._backend.close()

    @property
    def queued(self) -> int:
        """How many units wait for a transaction."""
        return len(self._queue)

    @property
    def problem(self) -> str | None:
        """Why the last transaction had to be given up; None since one was committed."""
        return self._problem

    async def _run_writer(self) -> None:
        while True:
            if not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_batch))]
            self._observe("waiting", 0.0, len(self._queue))
            try:
                await self._commit(batch)
            except Exception as error:  # noqa: BLE001 - the writer outlives a mistake in one batch
                _log.exception("a group commit failed")
                for pending in batch:
                    pending.settle(_Verdict(error=_unavailable(error)))

    async def _commit(self, batch: list[_Pending]) -> None:
        if self._away:
            batch = self._fail_impatient(batch)
            if not batch:
                return
        verdicts = await self._attempt(batch, last=False)
        if verdicts is None:
            self._observe("retry", 0.0, len(batch))
            for pending in batch:
                await self._commit_alone(pending)
            return
        for pending, verdict in zip(batch, verdicts, strict=True):
            pending.settle(verdict)

    def _fail_impatient(self, batch: list[_Pending]) -> list[_Pending]:
        """While the database is away, fail the units that waited long enough; return the others.

        Without another attempt, each of which may take as long as all of their patience: a batch that met a lock would
        be in the way of what came later for as many times that.
        """
        now = asyncio.get_running_loop().time()
        for pending in batch:
            if pending.patience_ends <= now:
                pending.settle(self._give_up(CaError(ErrorKind.UNAVAILABLE, "the database is away")))
        return [pending for pending in batch if pending.patience_ends > now]

    def _give_up(self, error: Exception) -> _Verdict:
        refusal = _unavailable(error)
        self._problem = refusal.detail
        self._observe("refused", 0.0, 1)
        return _Verdict(error=refusal)

    async def _commit_alone(self, pending: _Pending) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            if self._away and not self._fail_impatient([pending]):
                return
            verdicts = await self._attempt([pending], last=loop.time() >= pending.patience_ends)
            if verdicts is not None:
                pending.settle(verdicts[0])
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _attempt(self, batch: list[_Pending], *, last: bool) -> list[_Verdict] | None:
        """Try one transaction; None where its units should be tried (again) one by one."""
        units = [pending.unit for pending in batch]
        began = time.perf_counter()
        try:
            careful = self._careful > 0 and len(units) > 1
            committed = await self._backend.write(
                lambda connection: _commit_together(connection, units, careful=careful)
            )
            verdicts = committed.verdicts
            self._careful = _CAREFUL_BATCHES if not committed.clean else max(0, self._careful - 1)
        except _CommitUnknownError as unknown:
            verdicts_or_none = await self._ask_outcome(unknown, batch)
            if verdicts_or_none is None:
                return None
            verdicts = verdicts_or_none
        except Exception as error:  # noqa: BLE001 - whatever it is, it is each caller's verdict or is tried again
            failure = classify(error)
            self._away = failure in (Failure.LOST, Failure.TRANSIENT)
            _log.warning("a transaction was rolled back", error=type(error).__name__, reach=failure.value)
            await self._drop_writer()
            if len(batch) > 1:
                return None
            if last or failure in (Failure.BROKEN, Failure.UNIT):
                return [self._give_up(error)]
            return None
        self._away = False
        self._problem = None
        self._observe("write", time.perf_counter() - began, len(batch))
        return verdicts

    async def _ask_outcome(self, unknown: _CommitUnknownError, batch: list[_Pending]) -> list[_Verdict] | None:
        """Find out whether a transaction stands whose COMMIT was not answered; None where it does not."""
        await self._drop_writer()
        statement = text("SELECT txid_status(:transaction)")
        parameters = {"transaction": unknown.transaction}
        patience_ends = max(pending.patience_ends for pending in batch)
        loop = asyncio.get_running_loop()
        status: str | None = None
        while loop.time() < patience_ends:
            try:
                status = await self._backend.read(lambda connection: connection.execute(statement, parameters).scalar())
            except Exception as error:  # noqa: BLE001 - the database is away: ask again
                _log.warning("the outcome of a commit is not known yet", error=type(error).__name__)
                self._away = True
            else:
                self._away = False
                if status != "in progress":
                    break
            await asyncio.sleep(_LONGEST_PAUSE / 4)
        if status == "committed":
            return unknown.verdicts
        if status == "aborted":
            return None
        lost = CaError(ErrorKind.UNAVAILABLE, "the database was lost, and whether it committed is not known")
        return [self._give_up(lost) for _ in batch]

    async def _drop_writer(self) -> None:
        try:
            await self._backend.drop_writer()
        except Exception as error:  # noqa: BLE001 - it is being dropped because it is broken
            _log.debug("closing a connection failed", error=type(error).__name__)


def _unavailable(error: Exception) -> CaError:
    if isinstance(error, CaError):
        return error
    refusal = CaError(ErrorKind.UNAVAILABLE, "the database is away or can't write")
    refusal.__cause__ = error
    return refusal
