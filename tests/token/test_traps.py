"""What crashes or misleads programs over PKCS#11 and SoftHSM2, one trap at a time."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pkcs11 import Attribute
from tokenlib.place import PIN, Place
from tokenlib.programs import LOG_IN_OFTEN, SIGN_WITH_THREADS, SPAWN_WHILE_OPEN
from tokenlib.verify import check_signs

from ca_server.bootstrap.resources import shipped_softhsm
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from hsm.keys import TokenKeyStore, open_keystore
from hsm.module import Module
from hsm.pin import PinSource
from hsm.pool import Bench

OpenStore = Callable[..., Awaitable[TokenKeyStore]]


@pytest.fixture
def stocked(place: Place) -> Place:
    async def stock() -> None:
        store = await open_keystore(place.options())
        for label, kind in (("p256", KeyAlgorithm.P256), ("p384", KeyAlgorithm.P384), ("rsa", KeyAlgorithm.RSA2048)):
            await store.generate(label, kind)
        await store.close()

    asyncio.run(stock())
    return place


# --- 1. C_Initialize without locking: two threads crash the process -------------------------------------------------


def test_eight_threads_sign_in_one_process(stocked: Place) -> None:
    for _ in range(3):
        assert "signed" in stocked.python(SIGN_WITH_THREADS, stocked.folder)


def test_the_module_is_told_of_threads(stocked: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """CKF_OS_LOCKING_OK (PKCS#11 v2.40 section 5.4), and none of the four mutex functions beside it."""
    module = Module(stocked.options().module, stocked.configuration)
    told: list[tuple[object, ...]] = []

    def initialize(arguments: object) -> int:
        made = arguments._obj  # type: ignore[attr-defined]
        told.append((made.flags, made.create_mutex, made.destroy_mutex, made.lock_mutex, made.unlock_mutex))
        return 0

    monkeypatch.setattr(module._native, "C_Initialize", initialize)
    module.initialise()
    assert told == [(2, None, None, None, None)]


# --- 2. Log-in rewrites a file of the token: two processes at once fail ---------------------------------------------


def start(place: Place, program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, str(place.folder), *arguments],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def test_many_processes_log_in_at_once(stocked: Place, open_store: OpenStore) -> None:
    """And one that has logged in before signs on, undisturbed."""
    store = await open_store(stocked)
    key = await store.find("p256")
    processes = [start(stocked, LOG_IN_OFTEN, "10") for _ in range(6)]
    signed = 0
    while any(process.poll() is None for process in processes):
        await check_signs(key)
        signed += 1
    for process in processes:
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0, output
        assert "logged in" in output
    assert signed > 0
    await store.probe()
    assert store._token.generation == 1


# --- 3. One log-in for the process ----------------------------------------------------------------------------------


async def test_one_log_in_serves_all_threads(
    stocked: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[PinSource] = []
    real = PinSource.read
    monkeypatch.setattr(PinSource, "read", lambda source: reads.append(source) or real(source))
    store = await open_store(stocked, threads=4)
    keys = [await store.find(label) for label in ("rsa", "p384", "p256")]
    await asyncio.gather(*(check_signs(key) for key in keys * 10))
    assert len(reads) == 1


@pytest.mark.parametrize("then", ["sign", "find", "labels", "probe", "encrypt", "generate", "delete"])
async def test_the_session_that_logged_in_is_closed(stocked: Place, open_store: OpenStore, then: str) -> None:
    """That logs every session out: SoftHSM2 then hides private objects without an error."""
    store = await open_store(stocked)
    key = await store.find("p256")
    await store.ensure_secret_key("secret")
    keeper = store._token._keeper
    assert keeper is not None
    await store._pool.run("close", lambda _bench: keeper.close())
    if then == "sign":
        await check_signs(key)
    elif then == "find":
        assert (await store.find("p384")).algorithm is KeyAlgorithm.P384
    elif then == "labels":
        assert await store.labels() == ("p256", "p384", "rsa")
    elif then == "probe":
        await store.probe()
    elif then == "encrypt":
        assert await store.decrypt("secret", await store.encrypt("secret", b"x", b""), b"") == b"x"
    elif then == "generate":
        await check_signs(await store.generate("new", KeyAlgorithm.P256))
    else:
        assert await store.delete("p384") is True
    await check_signs(key)
    assert store._token.generation == 2


# --- 5. A session copy signs on after the token is gone -------------------------------------------------------------


async def test_the_session_copy_is_as_closed_as_its_original(stocked: Place, open_store: OpenStore) -> None:
    store = await open_store(stocked)
    key = await store.find("p256")
    await check_signs(key)

    def look(bench: Bench) -> tuple[object, ...]:
        original, copy, _ = bench.handles["p256"]
        assert original[Attribute.TOKEN] is True
        names = ("TOKEN", "PRIVATE", "SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "LABEL")
        return tuple(copy[Attribute[name]] for name in names)

    assert await store._pool.run("look", look) == (False, True, True, False, True, "p256 (session)")
    assert (await store.find("p256")).spki_der == key.spki_der, "the copy is no second match"


async def test_the_session_copy_signs_no_longer_than_the_probe_interval(stocked: Place, open_store: OpenStore) -> None:
    store = await open_store(stocked, probe_interval=0.0)
    key = await store.find("p256")
    await check_signs(key)
    stocked.move_away()
    with pytest.raises(CaError) as refused:
        await key.sign(b"x")
    assert refused.value.kind is ErrorKind.UNAVAILABLE


async def test_within_the_probe_interval_the_copy_signs_alone(stocked: Place, open_store: OpenStore) -> None:
    """Which is what makes it fast: the token's files are not read again for each signature."""
    store = await open_store(stocked, probe_interval=3600.0)
    key = await store.find("p256")
    await check_signs(key)
    stocked.move_away()
    await check_signs(key)
    with pytest.raises(CaError):
        await store.probe()


# --- 6. Mechanisms that SoftHSM2 lacks: see test_keys.py for the signatures -----------------------------------------


def test_the_shipped_configuration_does_not_log_for_debugging() -> None:
    """DEBUG halves the speed."""
    lines = (shipped_softhsm() / "softhsm2.conf").read_text("utf-8").splitlines()
    settings = dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))
    assert settings == {
        "directories.tokendir": "{tokens}",
        "objectstore.backend": "file",
        "log.level": "ERROR",
        "slots.removable": "false",
        "slots.mechanisms": "ALL",
        "library.reset_on_fork": "false",
    }


# --- 7. Sessions don't cross a fork: every process opens the token itself -------------------------------------------


def test_a_process_spawned_while_the_token_is_open_opens_it_too(stocked: Place, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SPAWN_WHILE_OPEN)
    assert "both signed" in stocked.run(sys.executable, program, stocked.folder)


# --- And the PIN is nobody's business -------------------------------------------------------------------------------


async def test_nothing_shows_the_pin(stocked: Place, open_store: OpenStore) -> None:
    store = await open_store(stocked)
    for shown in (repr(store._token.options), str(store._token.options.pin), repr(store._token.__dict__)):
        assert PIN not in shown
