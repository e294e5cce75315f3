"""Memory that was freed goes back to the system."""

import asyncio

import pytest

from ca_server.bootstrap import memory, process


@pytest.fixture
def trims(monkeypatch):
    """How often memory was given back, in a process that grows by steps."""
    calls = []

    class Library:
        def malloc_trim(self, pad: int) -> int:
            calls.append(pad)
            return 1

    monkeypatch.setattr(memory, "_c_library", Library)
    monkeypatch.setattr(memory, "_INTERVAL", 0.001)
    return calls


async def run_over(monkeypatch, sizes) -> None:
    done = asyncio.Event()
    left = iter(sizes)

    def resident() -> int:
        try:
            return next(left) * 2**20
        except StopIteration:
            done.set()
            return 0

    monkeypatch.setattr(memory, "resident", resident)
    task = asyncio.create_task(memory.give_back_memory())
    await done.wait()
    task.cancel()


@pytest.mark.parametrize(
    ("sizes", "times"),
    [
        pytest.param([100, 110, 120, 131, 100], 0, id="little"),
        pytest.param([100, 140, 100, 110, 132, 105], 2, id="twice"),
        pytest.param([100, 500, 500, 500, 500, 500, 105], 3, id="until it is free"),
        pytest.param([100, 50, 90, 60], 1, id="less before"),
    ],
)
async def test_when_it_grew(trims, monkeypatch, sizes, times):
    await run_over(monkeypatch, sizes)
    assert trims == [0] * times


async def test_another_c_library(monkeypatch):
    monkeypatch.setattr(memory, "_c_library", object)
    await asyncio.wait_for(memory.give_back_memory(), 5)
    memory.give_back_large_blocks()


def test_resident():
    before = memory.resident()
    block = bytearray(b"x" * (64 * 2**20))
    assert memory.resident() - before > 48 * 2**20
    del block


async def test_looks_become_rare_where_all_is_in_use(trims, monkeypatch):
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(memory.asyncio, "sleep", sleep)
    monkeypatch.setattr(memory, "_INTERVAL", 10.0)
    sizes = iter([100] + [500] * 10)
    monkeypatch.setattr(memory, "resident", lambda: next(sizes) * 2**20)
    with pytest.raises(asyncio.CancelledError):
        await memory.give_back_memory()
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]


def test_every_process_begins_with_it(monkeypatch):
    called = []
    monkeypatch.setattr(process, "give_back_large_blocks", lambda: called.append(1))

    async def work() -> int:
        return len(called)

    assert process._run(work()) == 1
