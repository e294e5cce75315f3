"""The token goes and comes back, in every way: callers get a retryable error meanwhile, and nobody restarts."""

import asyncio
import ctypes
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from tokenlib.place import PIN, Place
from tokenlib.verify import check_signs

from ca_server.core.ports import SigningKey
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from hsm import token
from hsm.keys import TokenKeyStore
from hsm.pool import Bench

OpenStore = Callable[..., Awaitable[TokenKeyStore]]
LABELS = ("p256", "p384", "rsa")


@dataclass(frozen=True)
class Open:
    """A store in use: three keys, a secret, and what was encrypted under it."""

    place: Place
    store: TokenKeyStore
    keys: dict[str, SigningKey]
    ciphertext: bytes

    async def check_works(self) -> None:
        for key in self.keys.values():
            await check_signs(key)
        assert await self.store.decrypt("secret", self.ciphertext, b"c") == b"kept"
        assert set(LABELS) <= set(await self.store.labels())
        await self.store.probe()


OPERATIONS: dict[str, Callable[[Open], Awaitable[object]]] = {
    "sign p256": lambda on: on.keys["p256"].sign(b"x"),
    "sign p384": lambda on: on.keys["p384"].sign(b"x"),
    "sign rsa": lambda on: on.keys["rsa"].sign(b"x"),
    "find": lambda on: on.store.find("p256"),
    "find what never was": lambda on: on.store.find("never"),
    "labels": lambda on: on.store.labels(),
    "generate": lambda on: on.store.generate("fresh", KeyAlgorithm.P256),
    "delete": lambda on: on.store.delete("p384"),
    "ensure": lambda on: on.store.ensure_secret_key("secret"),
    "ensure another": lambda on: on.store.ensure_secret_key("secret-2"),
    "encrypt": lambda on: on.store.encrypt("secret", b"x", b"c"),
    "decrypt": lambda on: on.store.decrypt("secret", on.ciphertext, b"c"),
    "probe": lambda on: on.store.probe(),
}
"""Everything that the KeyStore port has and that needs the token's objects."""


@pytest.fixture
async def in_use(place: Place, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> Open:
    # No waiting between attempts to open the token: the pauses have a test of their own.
    monkeypatch.setattr(token, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(token, "_LAST_PAUSE", 0.0)
    store = await open_store(place, probe_interval=0.0)
    kinds = (KeyAlgorithm.P256, KeyAlgorithm.P384, KeyAlgorithm.RSA2048)
    keys = {label: await store.generate(label, kind) for label, kind in zip(LABELS, kinds, strict=True)}
    await store.ensure_secret_key("secret")
    opened = Open(place, store, keys, await store.encrypt("secret", b"kept", b"c"))
    await opened.check_works()
    assert store._token.generation == 1
    return opened


async def refused(operation: Awaitable[object]) -> CaError:
    with pytest.raises(CaError) as caught:
        await operation
    error = caught.value
    assert error.kind is ErrorKind.UNAVAILABLE, error
    assert error.retry_after is not None
    assert PIN not in error.detail
    assert "/" not in error.detail, "remote readers learn no path"
    return error


# --- The token directory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", OPERATIONS)
async def test_the_token_directory_is_away(in_use: Open, first: str) -> None:
    """Whatever is asked first gets a retryable error, never "not found": an order would fail for good."""
    in_use.place.move_away()
    await refused(OPERATIONS[first](in_use))
    in_use.place.move_back()
    await in_use.check_works()


async def test_everything_is_refused_while_the_directory_is_away_and_works_after(in_use: Open) -> None:
    in_use.place.move_away()
    for _ in range(2):
        for operation in OPERATIONS.values():
            await refused(operation(in_use))
    in_use.place.move_back()
    await in_use.check_works()
    assert in_use.place.objects("privkey").keys() == set(LABELS), "nothing was made or destroyed meanwhile"
    assert in_use.place.objects("secrkey").keys() == {"secret"}


async def test_the_directory_comes_and_goes(in_use: Open) -> None:
    for _ in range(5):
        in_use.place.move_away()
        await refused(in_use.store.probe())
        in_use.place.move_back()
        await in_use.check_works()


async def test_away_and_back_unnoticed(in_use: Open) -> None:
    in_use.place.move_away()
    in_use.place.move_back()
    await in_use.check_works()


async def test_many_callers_meet_the_loss_together(in_use: Open) -> None:
    in_use.place.move_away()
    outcomes = await asyncio.gather(
        *(key.sign(b"x") for key in in_use.keys.values() for _ in range(20)), return_exceptions=True
    )
    assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {ErrorKind.UNAVAILABLE}
    in_use.place.move_back()
    await asyncio.gather(*(check_signs(key) for key in in_use.keys.values() for _ in range(20)))
    assert in_use.store._token.generation == 2, "one recovery served them all"


async def test_callers_wait_while_another_recovers(in_use: Open) -> None:
    """The keeper's session is closed while many sign: each gets a signature, and the token is opened anew once."""
    keeper = in_use.store._token._keeper
    assert keeper is not None
    signing = [asyncio.create_task(check_signs(key)) for key in in_use.keys.values() for _ in range(20)]
    await in_use.store._pool.run("close", lambda _bench: keeper.close())
    await asyncio.gather(*signing)
    await in_use.check_works()
    assert in_use.store._token.generation == 2


async def test_attempts_are_spaced(in_use: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the pause lasts the token is not tried again, and the caller is told the last failure at once."""
    monkeypatch.setattr(token, "_LAST_PAUSE", 3600.0)
    in_use.store._token._pause = 3600.0
    in_use.place.move_away()
    first = await refused(in_use.store.probe())
    in_use.place.move_back()
    again = await refused(in_use.store.probe())
    assert again.detail == first.detail
    in_use.store._token._not_before = 0.0
    await in_use.check_works()


# --- Sessions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", OPERATIONS)
async def test_a_workers_session_is_closed(in_use: Open, first: str) -> None:
    """The worker opens another; the token needs no recovery (PKCS#11: CKR_SESSION_HANDLE_INVALID)."""
    for number in range(2):
        await in_use.store._pool.run("close", lambda bench: bench.session.close(), spread=bool(number))
    try:
        await OPERATIONS[first](in_use)
    except CaError as error:
        assert error.kind is ErrorKind.NOT_FOUND  # noqa: PT017 - of one operation alone
        assert first == "find what never was"
    if first != "delete":
        await in_use.check_works()
    assert in_use.store._token.generation == 1


async def test_all_sessions_are_closed(in_use: Open) -> None:
    """C_CloseAllSessions logs out too."""
    library = in_use.store._token._module._native

    def close_all(bench: Bench) -> None:
        slot = bench.session.token.slot.slot_id
        assert library.C_CloseAllSessions(ctypes.c_ulong(slot)) == 0

    await in_use.store._pool.run("close", close_all)
    await in_use.check_works()


# --- Keys -----------------------------------------------------------------------------------------------------------


async def test_a_key_is_deleted_behind_our_back(in_use: Open) -> None:
    in_use.place.delete_private_key("p256")
    error = await refused(in_use.keys["p256"].sign(b"x"))
    assert "'p256'" in error.detail
    await check_signs(in_use.keys["p384"])
    error = await refused(in_use.store.probe())
    assert "'p256'" in error.detail


async def test_a_missing_key_is_no_reason_to_open_the_token_again_and_again(in_use: Open) -> None:
    """That would stop the signers of all other keys at every probe."""
    in_use.place.delete_private_key("p256")
    await refused(in_use.store.probe())
    settled = in_use.store._token.generation
    for _ in range(3):
        await refused(in_use.store.probe())
        await refused(in_use.keys["p256"].sign(b"x"))
        await check_signs(in_use.keys["p384"])
    assert in_use.store._token.generation == settled


async def test_a_key_is_deleted_and_made_anew(in_use: Open) -> None:
    """The new one is another key: it is found, and what it signs is not passed off as the old one's."""
    old = in_use.keys["p256"]
    in_use.place.delete_private_key("p256")
    in_use.place.pkcs11_tool("--delete-object", "--type", "pubkey", "--label", "p256")
    await refused(in_use.store.probe())
    in_use.place.pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "p256")
    await in_use.store.probe()
    new = await in_use.store.find("p256")
    assert new.spki_der != old.spki_der
    await check_signs(new)


async def test_a_key_is_replaced_between_two_signatures(in_use: Open) -> None:
    in_use.place.delete_private_key("p256")
    in_use.place.pkcs11_tool("--delete-object", "--type", "pubkey", "--label", "p256")
    in_use.place.pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "p256")
    await in_use.keys["p256"].sign(b"x")
    await check_signs(await in_use.store.find("p256"))


async def test_a_key_becomes_ambiguous(in_use: Open) -> None:
    in_use.place.pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "p256")
    error = await refused(in_use.store.probe())
    assert "2 private keys" in error.detail


async def test_the_secret_key_is_deleted(in_use: Open) -> None:
    in_use.place.pkcs11_tool("--delete-object", "--type", "secrkey", "--label", "secret")
    await refused(in_use.store.decrypt("secret", in_use.ciphertext, b"c"))
    await refused(in_use.store.encrypt("secret", b"x", b"c"))
    await check_signs(in_use.keys["p256"])


# --- Another token of the same label --------------------------------------------------------------------------------


async def test_the_token_is_initialised_anew(in_use: Open) -> None:
    """An empty token of the same label and PIN: the keys are gone, until the old token is put back."""
    copy = in_use.place.folder / "copy"
    in_use.place.run("cp", "-a", in_use.place.tokens, copy)
    in_use.place.reinitialise()
    for name in ("sign p256", "sign p384", "sign rsa", "find", "labels", "decrypt", "probe"):
        await refused(OPERATIONS[name](in_use))
    in_use.place.run("rm", "-r", in_use.place.tokens)
    copy.rename(in_use.place.tokens)
    await in_use.check_works()


async def test_the_pin_is_changed(in_use: Open) -> None:
    """By another process; it is read anew for each log-in, so that changing the file is enough."""
    in_use.place.pkcs11_tool("--change-pin", "--new-pin", "another-pin-1618")
    in_use.place.move_away()
    await refused(in_use.store.probe())
    in_use.place.move_back()
    error = await refused(in_use.store.probe())
    assert "is not the user PIN" in error.detail
    # A token counts wrong PINs, and locks: what it refused it is not asked again.
    assert "not tried again" in (await refused(in_use.store.probe())).detail
    in_use.place.pin_file.write_text("another-pin-1618\n")
    await in_use.check_works()


@pytest.mark.parametrize("spoilt", ["missing", "empty", "wrong"])
async def test_the_pin_cannot_be_had_when_the_token_comes_back(in_use: Open, spoilt: str) -> None:
    in_use.place.move_away()
    await refused(in_use.store.probe())
    in_use.place.move_back()
    if spoilt == "missing":
        in_use.place.pin_file.unlink()
    else:
        in_use.place.pin_file.write_text("" if spoilt == "empty" else "9999-wrong-9999")
    error = await refused(in_use.store.probe())
    assert "PIN" in error.detail
    assert "9999" not in error.detail
    in_use.place.pin_file.write_text(PIN)
    await in_use.check_works()


async def test_a_token_lost_for_good_is_closed_in_peace(in_use: Open) -> None:
    in_use.place.move_away()
    await refused(in_use.store.probe())
    await in_use.store.close()
