"""Mistakes of an operator: each is one clear line that names what is wrong, and never the PIN."""

import ctypes.util
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pkcs11 import PKCS11Error, exceptions
from tokenlib.place import LABEL, MODULE, PIN, SO_PIN, Place, need

from ca_server.bootstrap.token import pin_source, token_options
from ca_server.configuration import load_settings
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.settings import Home, Settings
from hsm.failures import login_failure, unavailable
from hsm.keys import open_keystore
from hsm.module import Module
from hsm.pin import PinSource, generate_pin

Spoil = Callable[[Place, pytest.MonkeyPatch], dict[str, object]]


async def mistake(place: Place, **changes: object) -> str:
    """The one line with which opening is refused; nothing in the whole chain of errors has the PIN."""
    with pytest.raises(ConfigurationError) as refused:
        await open_keystore(place.options(**changes))
    return check_line(refused.value)


def check_line(error: BaseException) -> str:
    shown = "".join(traceback.format_exception(error))
    assert PIN not in shown
    assert SO_PIN not in shown
    line = str(error)
    assert len(line.splitlines()) == 1, line
    return line


# --- Module ---------------------------------------------------------------------------------------------------------


async def test_no_such_module(place: Place) -> None:
    line = await mistake(place, module=Path("/nowhere/module.so"))
    assert "/nowhere/module.so" in line
    assert "no such file" in line


async def test_a_folder_for_a_module(place: Place) -> None:
    assert str(place.folder) in await mistake(place, module=place.folder)


@pytest.mark.parametrize("content", [b"", b"not a library\n", b"\x7fELF" + bytes(100)], ids=["empty", "text", "ELF"])
async def test_a_file_that_is_no_library(place: Place, content: bytes) -> None:
    file = place.folder / "module.so"
    file.write_bytes(content)
    line = await mistake(place, module=file)
    assert str(file) in line
    assert "can't be loaded as a PKCS#11 module" in line


async def test_a_library_that_is_no_module(place: Place) -> None:
    """The C library loads well and has no C_Initialize."""
    name = ctypes.util.find_library("z") or ctypes.util.find_library("m")
    library = next(path for path in MODULE.parent.parent.glob(f"**/{name}"))
    line = await mistake(place, module=library)
    assert "can't be loaded as a PKCS#11 module" in line
    assert "C_Initialize" in line


# --- Token ----------------------------------------------------------------------------------------------------------


async def test_no_token_of_the_label(place: Place) -> None:
    line = await mistake(place, token_label="another")
    assert "'another'" in line
    assert LABEL in line, "it tells what labels there are"


async def test_no_token_at_all(place: Place) -> None:
    place.run("rm", "-r", place.tokens)
    place.tokens.mkdir()
    assert "none" in await mistake(place)


async def test_a_label_is_matched_whole(place: Place) -> None:
    assert "there is no token" in await mistake(place, token_label=LABEL[:-1])


async def test_two_tokens_of_one_label(place: Place) -> None:
    arguments = ("--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", SO_PIN)
    place.run(need("softhsm2-util"), *arguments)
    line = await mistake(place)
    assert "2 tokens have this label" in line


async def test_a_token_without_a_user_pin(tmp_path: Path) -> None:
    """Initialised by the security officer alone."""
    place = Place(tmp_path / "token")
    place.provision()
    module = Module(MODULE, place.configuration)
    library = module.initialise()
    free = next(slot.slot_id for slot in library.get_slots() if slot.get_token().label != LABEL)
    module.initialise_token(free, SO_PIN.encode(), "officers-only")
    module.finalise()
    line = await mistake(place, token_label="officers-only")
    assert "has no user PIN yet" in line


async def test_a_token_directory_that_is_missing(place: Place) -> None:
    """That may come back: to be tried again, and said in a line."""
    place.move_away()
    with pytest.raises(CaError) as refused:
        await open_keystore(place.options())
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert "can't be initialised" in check_line(refused.value)
    place.move_back()
    await (await open_keystore(place.options())).close()


# --- PIN ------------------------------------------------------------------------------------------------------------


def _wrong(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text("31415-wrong-92653")
    return {}


def _short(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text("314")
    return {}


def _long(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text("31415" * 100)
    return {}


def _officers(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text(SO_PIN)
    return {}


def _foreign(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text("31415-ünwahr-92653")
    return {}


@pytest.mark.parametrize("spoil", [_wrong, _short, _long, _officers, _foreign], ids=lambda each: each.__name__[1:])
async def test_a_wrong_pin(place: Place, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    line = await mistake(place, **spoil(place, monkeypatch))
    assert str(place.pin_file) in line
    assert "is not the user PIN of token" in line
    assert "31415" not in line
    place.pin_file.write_text(PIN)
    await (await open_keystore(place.options())).close()


def _missing(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.unlink()
    return {}


def _empty(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text("")
    return {}


def _blank(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_text(" \n\n")
    return {}


def _folder(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.unlink()
    place.pin_file.mkdir()
    return {}


def _bytes(place: Place, _: pytest.MonkeyPatch) -> dict[str, object]:
    place.pin_file.write_bytes(b"\xff\xfe\x00")
    return {}


def _unset(_: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.delenv("TEST_TOKEN_PIN", raising=False)
    return {"pin": PinSource.from_environment("TEST_TOKEN_PIN")}


def _set_empty(_: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("TEST_TOKEN_PIN", "")
    return {"pin": PinSource.from_environment("TEST_TOKEN_PIN")}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_missing, "can't be read (No such file or directory)"),
        (_folder, "can't be read (Is a directory)"),
        (_bytes, "can't be read (not UTF-8)"),
        (_empty, "is empty"),
        (_blank, "is empty"),
        (_unset, "is empty"),
        (_set_empty, "is empty"),
    ],
    ids=lambda each: getattr(each, "__name__", "")[1:],
)
async def test_no_pin(place: Place, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, told: str) -> None:
    changes = spoil(place, monkeypatch)
    line = await mistake(place, **changes)
    assert told in line
    assert ("environment TEST_TOKEN_PIN" if changes else str(place.pin_file)) in line


async def test_the_pin_from_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.pin_file.unlink()
    monkeypatch.setenv("TEST_TOKEN_PIN", PIN)
    store = await open_keystore(place.options(pin=PinSource.from_environment("TEST_TOKEN_PIN")))
    assert await store.random(4)
    await store.close()


@pytest.mark.parametrize("error", [each for each in vars(exceptions).values() if isinstance(each, type)])
def test_no_return_value_of_the_module_shows_more_than_its_name(error: type[Exception]) -> None:
    """Whatever a module puts into its errors, the PIN it was given for one, goes no further."""
    if not issubclass(error, PKCS11Error):
        return
    for told in (unavailable(error(f"login with {PIN}")), login_failure(error(f"login with {PIN}"), LABEL, "file")):
        assert PIN not in str(told)


# --- Settings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.configuration.write_text("")
    return home


def with_settings(home: Home, *overrides: str) -> Settings:
    return load_settings(home.configuration, overrides)


def test_a_variable_that_is_not_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TOKEN_PIN", raising=False)
    with pytest.raises(ConfigurationError) as refused:
        pin_source(home, with_settings(home, "token.pin_environment=TEST_TOKEN_PIN"))
    line = check_line(refused.value)
    assert "TEST_TOKEN_PIN" in line
    assert "is not set" in line


def test_where_the_pin_comes_from(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TOKEN_PIN", PIN)
    assert pin_source(home, with_settings(home)) == PinSource.from_file(home.pin_file)
    chosen = with_settings(home, "token.pin_file=/elsewhere/pin")
    assert pin_source(home, chosen) == PinSource.from_file(Path("/elsewhere/pin"))
    both = with_settings(home, "token.pin_file=/elsewhere/pin", "token.pin_environment=TEST_TOKEN_PIN")
    assert pin_source(home, both) == PinSource.from_environment("TEST_TOKEN_PIN")


def test_a_configured_module_is_not_told_of_the_homes_token(home: Home) -> None:
    """SOFTHSM2_CONF is the operator's where the module is."""
    assert token_options(home, with_settings(home)).softhsm_configuration == home.softhsm_configuration
    chosen = token_options(home, with_settings(home, f"token.module={MODULE}"))
    assert (chosen.module, chosen.softhsm_configuration) == (MODULE, None)


def test_a_configured_module_that_is_missing(home: Home) -> None:
    with pytest.raises(ConfigurationError) as refused:
        token_options(home, with_settings(home, "token.module=/nowhere/module.so"))
    assert "/nowhere/module.so" in check_line(refused.value)


def test_drawn_pins_are_strong_and_different() -> None:
    drawn = {generate_pin() for _ in range(50)}
    assert len(drawn) == 50
    assert all(len(pin) == 24 and pin.isascii() and pin.isalnum() for pin in drawn)
