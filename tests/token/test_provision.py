"""Making the embedded token: safe to repeat, to interrupt, and to do beside what is there."""

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tokenlib.place import LABEL, MODULE, PIN, SO_PIN, Place
from tokenlib.verify import check_signs

from ca_server.bootstrap.resources import shipped_softhsm
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm
from hsm import provision
from hsm.keys import open_keystore
from hsm.module import Module


async def make_key(place: Place) -> bytes:
    store = await open_keystore(place.options())
    key = await store.generate("key", KeyAlgorithm.P256)
    await store.close()
    return key.spki_der


async def check_key(place: Place, spki_der: bytes) -> None:
    store = await open_keystore(place.options())
    key = await store.find("key")
    assert key.spki_der == spki_der
    await check_signs(key)
    await store.close()


def files(place: Place) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.tokens.rglob("*")) if path.is_file()}


async def test_once_more_keeps_the_token(place: Place) -> None:
    made = await make_key(place)
    before = files(place)
    assert place.provision() is False
    assert files(place) == before
    await check_key(place, made)


async def test_once_more_with_another_pin_changes_nothing(place: Place) -> None:
    """A lost PIN file must not cost the keys."""
    made = await make_key(place)
    assert place.provision(pin="another-pin-1618") is False
    with pytest.raises(ConfigurationError):
        await open_keystore(place.options())
    place.pin_file.write_text(PIN)
    await check_key(place, made)


async def test_another_label_is_another_token(place: Place) -> None:
    made = await make_key(place)
    assert place.provision(label="another") is True
    await check_key(place, made)
    store = await open_keystore(place.options(token_label="another"))
    assert await store.labels() == ()
    await store.close()


def test_a_configuration_that_is_there_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path / "token")
    place.folder.mkdir()
    own = f"directories.tokendir = {tmp_path / 'elsewhere'}\nobjectstore.backend = file\n"
    place.configuration.write_text(own)
    (tmp_path / "elsewhere").mkdir()
    assert place.provision()
    assert place.configuration.read_text() == own
    assert list((tmp_path / "elsewhere").iterdir())
    assert not list(place.tokens.iterdir())


def test_the_configuration_is_the_shipped_one(place: Place) -> None:
    shipped = (shipped_softhsm() / "softhsm2.conf").read_text("utf-8")
    assert place.configuration.read_text("utf-8") == shipped.replace("{tokens}", str(place.tokens))
    assert shipped.count("{tokens}") == 1
    assert stat.S_IMODE(place.tokens.stat().st_mode) == 0o700


def test_a_folder_with_spaces_and_letters(tmp_path: Path) -> None:
    place = Place(tmp_path / "a home with späces {braces}")
    assert place.provision()
    assert list(place.tokens.iterdir())
    asyncio.run(make_key(place))


async def test_interrupted_before_the_user_pin_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between C_InitToken and C_InitPIN a token of the label has no user PIN: the next run takes it up."""
    place = Place(tmp_path / "token")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(provision.Module, "initialise_token", _then(killed))
        with pytest.raises(KeyboardInterrupt):
            place.provision()
    with pytest.raises(ConfigurationError, match="no user PIN yet"):
        await open_keystore(place.options())
    assert place.provision() is True
    await check_key(place, await make_key(place))
    assert len([folder for folder in place.tokens.iterdir() if folder.is_dir()]) == 1


def _then(action: object) -> object:
    real = Module.initialise_token

    def replaced(module: Module, slot: int, so_pin: bytes, label: str) -> None:
        real(module, slot, so_pin, label)
        action()  # type: ignore[operator]

    return replaced


async def test_a_half_made_token_of_another_officer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PIN is not ours: nothing is forced, and neither PIN is shown."""
    place = Place(tmp_path / "token")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(provision.Module, "initialise_token", _then(killed))
        with pytest.raises(KeyboardInterrupt):
            place.provision()
    with pytest.raises(ConfigurationError, match="CKR 0xa0") as refused:
        provision.initialize_softhsm(
            module=MODULE,
            template="",
            configuration=place.configuration,
            token_directory=place.tokens,
            label=LABEL,
            so_pin=b"not-the-officers-pin",
            user_pin=PIN.encode(),
        )
    assert "officers" not in str(refused.value)
    assert PIN not in str(refused.value)


@pytest.mark.parametrize("pin", ["123", "1" * 256])
def test_a_pin_that_the_token_does_not_take(tmp_path: Path, pin: str) -> None:
    place = Place(tmp_path / "token")
    with pytest.raises(ConfigurationError, match="4 to 255") as refused:
        place.provision(pin=pin)
    assert pin not in str(refused.value)
    assert place.provision() is True, "with a better one the half-made token is taken up"


def test_a_missing_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/module\.so"):
        provision.initialize_softhsm(
            module=Path("/nowhere/module.so"),
            template="",
            configuration=tmp_path / "softhsm2.conf",
            token_directory=tmp_path / "tokens",
            label=LABEL,
            so_pin=SO_PIN.encode(),
            user_pin=PIN.encode(),
        )


# --- softhsm/bootstrap ----------------------------------------------------------------------------------------------


@pytest.fixture
def script() -> Path:
    return shipped_softhsm() / "bootstrap"


def bootstrap(script: Path, *arguments: str | Path, expect: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


async def test_the_script_makes_a_token_outside_the_server(script: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "mine")
    said = bootstrap(script, place.folder, "--label", LABEL)
    for file in (place.pin_file, place.folder / "so-pin"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(file.read_text()) >= 16
        assert file.read_text() not in said
    assert str(place.configuration) in said
    made = await make_key(place)
    again = bootstrap(script, place.folder, "--label", LABEL)
    assert "is there already" in again
    await check_key(place, made)


async def test_the_script_takes_a_pin_from_the_environment(script: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "mine")
    bootstrap(script, place.folder, "--label", LABEL, CA_SERVER_PIN=PIN)
    assert place.pin_file.read_text() == PIN
    await make_key(place)


def test_the_script_takes_no_pin_as_argument(script: Path, tmp_path: Path) -> None:
    assert "unrecognized arguments" in bootstrap(script, tmp_path / "mine", "--pin", PIN, expect=2)
    assert not (tmp_path / "mine").exists()


def test_the_script_says_what_is_in_the_way(script: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in bootstrap(script, tmp_path / "file", expect=1)
    assert "4 to 255" in bootstrap(script, tmp_path / "mine", CA_SERVER_PIN="123", expect=1)
