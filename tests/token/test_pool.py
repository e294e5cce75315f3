"""Many at once, slow, busy, given up: the token never blocks the event loop. Structure is asserted, not time."""

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable

import pytest
from tokenlib.gate import PATIENCE, Gate, delay_signatures
from tokenlib.place import Place
from tokenlib.verify import check_signature, check_signs

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from hsm.keys import TokenKeyStore

OpenStore = Callable[..., Awaitable[TokenKeyStore]]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - threads of the token have no asyncio.Event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("threads", [1, 2, 8])
async def test_every_algorithm_at_once(place: Place, open_store: OpenStore, threads: int) -> None:
    store = await open_store(place, threads=threads, timeout=120.0)
    kinds = [kind for kind in KeyAlgorithm if kind not in {KeyAlgorithm.RSA3072, KeyAlgorithm.RSA4096}]
    keys = [await store.generate(f"key-{kind.value}", kind) for kind in kinds]
    await store.ensure_secret_key("secret")

    async def work(number: int) -> None:
        key, data = keys[number % len(keys)], str(number).encode()
        check_signature(key, await key.sign(data), data)
        ciphertext = await store.encrypt("secret", data, key.label.encode())
        assert await store.decrypt("secret", ciphertext, key.label.encode()) == data
        assert (await store.find(key.label)).spki_der == key.spki_der

    await asyncio.gather(*(work(number) for number in range(60)))
    assert store.uses() == {key.label: 13 for key in keys}
    assert store._token.generation == 1


async def test_the_loop_goes_on_while_the_token_works(keys: TokenKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature waits in the token until the event loop opens the gate: on the loop's own thread it never would."""
    key = await keys.generate("slow", KeyAlgorithm.RSA2048)
    gate = Gate().install(monkeypatch)
    signature = asyncio.create_task(key.sign(b"x"))
    await until(gate.entered.is_set)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not signature.done()
    gate.open.set()
    check_signature(key, await signature, b"x")
    assert gate.threads
    assert threading.get_ident() not in gate.threads


async def test_the_loop_ticks_while_an_rsa_4096_key_is_made(keys: TokenKeyStore) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    before = ticks
    key = await keys.generate("large", KeyAlgorithm.RSA4096)
    assert ticks - before > 100
    before = ticks
    signature = await key.sign(b"x")
    assert ticks > before
    ticking.cancel()
    check_signature(key, signature, b"x")


@pytest.mark.parametrize("slow", [KeyAlgorithm.RSA2048, KeyAlgorithm.P384, KeyAlgorithm.ED25519], ids=str)
async def test_quick_signatures_do_not_queue_behind_slow_ones(
    keys: TokenKeyStore, monkeypatch: pytest.MonkeyPatch, slow: KeyAlgorithm
) -> None:
    tardy = await keys.generate("tardy", slow)
    quick = await keys.generate("quick", KeyAlgorithm.P256)
    gate = Gate(only=slow).install(monkeypatch)
    waiting = asyncio.create_task(tardy.sign(b"x"))
    await until(gate.entered.is_set)
    for _ in range(5):
        await check_signs(quick)
    assert not waiting.done()
    gate.open.set()
    check_signature(tardy, await waiting, b"x")


async def test_slow_signatures_use_all_threads(
    place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(place, threads=3)
    key = await store.generate("slow", KeyAlgorithm.RSA2048)
    gate = Gate().install(monkeypatch)
    signing = [asyncio.create_task(key.sign(b"x")) for _ in range(3)]
    await until(lambda: len(gate.begun) == 3)
    assert len(gate.threads) == 3
    gate.open.set()
    await asyncio.gather(*signing)


async def test_a_new_rsa_key_does_not_hold_up_signatures(keys: TokenKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = await keys.generate("quick", KeyAlgorithm.P256)
    gate = Gate(only=KeyAlgorithm.RSA2048).install(monkeypatch)
    making = asyncio.create_task(keys.generate("large", KeyAlgorithm.RSA2048))
    await until(gate.entered.is_set)
    await check_signs(quick)
    assert not making.done()
    gate.open.set()
    await check_signs(await making)


# --- Limits ---------------------------------------------------------------------------------------------------------


async def test_queue_limit(place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await open_store(place, queue_limit=3)
    key = await store.generate("key", KeyAlgorithm.P256)
    gate = Gate().install(monkeypatch)
    accepted = [asyncio.create_task(key.sign(str(number).encode())) for number in range(3)]
    await until(gate.entered.is_set)
    with pytest.raises(CaError, match="busy") as refused:
        await key.sign(b"one too many")
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert refused.value.retry_after == 5
    gate.open.set()
    for number, signature in enumerate(await asyncio.gather(*accepted)):
        check_signature(key, signature, str(number).encode())
    await check_signs(key)
    assert b"one too many" not in gate.begun


async def test_time_limit(place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up, what waits behind it is not begun any more, and what comes later is served."""
    store = await open_store(place, timeout=0.3)
    key = await store.generate("key", KeyAlgorithm.P256)
    gate = Gate().install(monkeypatch)
    hanging = asyncio.create_task(key.sign(b"hangs"))
    await until(gate.entered.is_set)
    behind = asyncio.create_task(key.sign(b"waits behind"))
    for task in (hanging, behind):
        with pytest.raises(CaError, match="slow") as refused:
            await task
        assert refused.value.kind is ErrorKind.UNAVAILABLE
        assert refused.value.retry_after == 5
    gate.open.set()
    await until(lambda: sum(store._pool._waiting) == 0)
    assert gate.begun == [b"hangs"]
    await check_signs(key)


async def test_making_a_key_may_take_longer(
    place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large RSA key takes a token longer than any signature, and a ceremony is not begun again lightly."""
    store = await open_store(place, timeout=0.2)
    gate = Gate().install(monkeypatch)
    making = asyncio.create_task(store.generate("key", KeyAlgorithm.P256))
    await until(gate.entered.is_set)
    await asyncio.sleep(0.4)
    gate.open.set()
    await check_signs(await making)


async def test_a_cancelled_caller(keys: TokenKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work is not begun, or its result dropped; the others get theirs, and the queue's count is right after."""
    key = await keys.generate("key", KeyAlgorithm.P256)
    gate = Gate().install(monkeypatch)
    running = asyncio.create_task(key.sign(b"running"))
    await until(gate.entered.is_set)
    queued, kept = asyncio.create_task(key.sign(b"queued")), asyncio.create_task(key.sign(b"kept"))
    await asyncio.sleep(0)
    running.cancel()
    queued.cancel()
    for task in (running, queued):
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.open.set()
    check_signature(key, await kept, b"kept")
    assert gate.begun == [b"running", b"kept"]
    assert keys.uses() == {"key": 3}, "the pair's check, and the two that reached the token"
    assert sum(keys._pool._waiting) == 0


async def test_what_nobody_waits_for_fails_quietly(
    keys: TokenKeyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio complains of exceptions that nobody fetched: not of those of callers that went away."""
    await keys.generate("key", KeyAlgorithm.P256)
    gate = threading.Event()
    entered = threading.Event()

    def fail(_bench: object) -> None:
        entered.set()
        gate.wait(PATIENCE)
        raise CaError(ErrorKind.INTERNAL, "after the caller went")

    failing = asyncio.create_task(keys._pool.run("fail", fail))
    await until(entered.is_set)
    failing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await failing
    gate.set()
    await until(lambda: sum(keys._pool._waiting) == 0)
    del failing
    with caplog.at_level(logging.ERROR, "asyncio"):
        gc.collect()
        await asyncio.sleep(0)
    assert caplog.records == []


async def test_closing_finishes_what_waits(
    place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(place)
    key = await store.generate("key", KeyAlgorithm.P256)
    gate = Gate().install(monkeypatch)
    waiting = [asyncio.create_task(key.sign(b"x")) for _ in range(5)]
    await until(gate.entered.is_set)
    closing = asyncio.create_task(store.close())
    gate.open.set()
    for signature in await asyncio.gather(*waiting):
        check_signature(key, signature, b"x")
    await closing


async def test_a_module_is_not_finalised_under_an_operation(
    place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs in the token when the process ends: to finalise then would crash instead of ending it."""
    store = await open_store(place, timeout=0.3)
    key = await store.generate("key", KeyAlgorithm.P256)
    gate = Gate().install(monkeypatch)
    hanging = asyncio.create_task(key.sign(b"x"))
    await until(gate.entered.is_set)
    finalised: list[bool] = []
    module = store._token._module
    monkeypatch.setattr(module, "finalise", lambda: finalised.append(gate.open.is_set()))
    await store.close()
    assert finalised == []
    with pytest.raises(CaError):
        await hanging
    gate.open.set()
    await until(lambda: store._token._users == 0)
    monkeypatch.undo()


async def test_a_closed_store_refuses(place: Place, open_store: OpenStore) -> None:
    """At once, without waiting for threads that are not there any more."""
    store = await open_store(place, timeout=3600.0)
    key = await store.generate("key", KeyAlgorithm.P256)
    await store.close()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(CaError) as refused:
            await key.sign(b"x")
    assert refused.value.kind is ErrorKind.UNAVAILABLE


# --- A slow token ---------------------------------------------------------------------------------------------------


async def test_half_a_second_for_every_signature(
    place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an HSM over a bad network: everything is signed, and the loop has turned for each of them."""
    store = await open_store(place, threads=4)
    keys = [await store.generate(f"key-{number}", KeyAlgorithm.P384) for number in range(2)]
    delay_signatures(monkeypatch, 0.5)
    turns: list[int] = []

    async def sign(number: int) -> None:
        key = keys[number % 2]
        working = asyncio.create_task(key.sign(b"x"))
        turned = 0
        while not working.done():
            turned += 1
            await asyncio.sleep(0.01)
        turns.append(turned)
        check_signature(key, working.result(), b"x")

    await asyncio.gather(*(sign(number) for number in range(8)))
    assert len(turns) == 8
    assert all(turned > 1 for turned in turns)
