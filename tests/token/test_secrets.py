"""Secrets under an AES key of the token: authentic, bound to their context."""

from collections.abc import Awaitable, Callable

import pytest
from pkcs11 import Attribute, AttributeSensitive, ObjectClass
from tokenlib.place import Place

from ca_server.domain.errors import CaError, ErrorKind
from hsm.keys import TokenKeyStore
from hsm.pool import Bench

OpenStore = Callable[..., Awaitable[TokenKeyStore]]
LABEL = "secrets-1"
CONTEXT = b"eab:kid-1"
PLAINTEXT = b"an HMAC key of 32 octets, or so."


@pytest.fixture
async def secrets(keys: TokenKeyStore) -> TokenKeyStore:
    await keys.ensure_secret_key(LABEL)
    return keys


@pytest.mark.parametrize("plaintext", [b"", b"x", PLAINTEXT, b"long " * 5000], ids=len)
@pytest.mark.parametrize("context", [b"", CONTEXT, b"c" * 1000], ids=len)
async def test_what_is_encrypted_is_decrypted(secrets: TokenKeyStore, plaintext: bytes, context: bytes) -> None:
    ciphertext = await secrets.encrypt(LABEL, plaintext, context)
    assert await secrets.decrypt(LABEL, ciphertext, context) == plaintext
    assert len(plaintext) < 8 or plaintext not in ciphertext


async def test_every_ciphertext_is_another(secrets: TokenKeyStore) -> None:
    """An IV that came twice under one key would give GCM's authentication away (SP 800-38D section 8)."""
    made = [await secrets.encrypt(LABEL, PLAINTEXT, CONTEXT) for _ in range(30)]
    assert len({ciphertext[1:13] for ciphertext in made}) == 30
    assert len({ciphertext[13:] for ciphertext in made}) == 30


@pytest.mark.parametrize("context", [b"", b"eab:kid-2", CONTEXT + b" ", CONTEXT[:-1]])
async def test_another_context(secrets: TokenKeyStore, context: bytes) -> None:
    ciphertext = await secrets.encrypt(LABEL, PLAINTEXT, CONTEXT)
    with pytest.raises(CaError) as refused:
        await secrets.decrypt(LABEL, ciphertext, context)
    assert refused.value.kind is ErrorKind.MALFORMED
    assert secrets._token.generation == 1, "a wrong tag is no lost token, though SoftHSM2 answers CKR_GENERAL_ERROR"


@pytest.mark.parametrize("place_changed", ["format", "iv", "body", "tag"])
async def test_a_changed_bit(secrets: TokenKeyStore, place_changed: str) -> None:
    ciphertext = bytearray(await secrets.encrypt(LABEL, PLAINTEXT, CONTEXT))
    ciphertext[{"format": 0, "iv": 5, "body": 14, "tag": -1}[place_changed]] ^= 1
    with pytest.raises(CaError) as refused:
        await secrets.decrypt(LABEL, bytes(ciphertext), CONTEXT)
    assert refused.value.kind is ErrorKind.MALFORMED


async def test_a_cut_ciphertext(secrets: TokenKeyStore) -> None:
    ciphertext = await secrets.encrypt(LABEL, b"short", CONTEXT)
    for length in range(len(ciphertext)):
        with pytest.raises(CaError) as refused:
            await secrets.decrypt(LABEL, ciphertext[:length], CONTEXT)
        assert refused.value.kind is ErrorKind.MALFORMED, length
    assert await secrets.decrypt(LABEL, ciphertext, CONTEXT) == b"short"


async def test_another_key(secrets: TokenKeyStore) -> None:
    await secrets.ensure_secret_key("secrets-2")
    ciphertext = await secrets.encrypt(LABEL, PLAINTEXT, CONTEXT)
    with pytest.raises(CaError) as refused:
        await secrets.decrypt("secrets-2", ciphertext, CONTEXT)
    assert refused.value.kind is ErrorKind.MALFORMED


async def test_ensuring_again_keeps_the_key(place: Place, open_store: OpenStore) -> None:
    """Over a restart too: a second key would make every secret of the database unreadable."""
    first = await open_store(place)
    await first.ensure_secret_key(LABEL)
    ciphertext = await first.encrypt(LABEL, PLAINTEXT, CONTEXT)
    await first.ensure_secret_key(LABEL)
    await first.close()
    second = await open_store(place)
    await second.ensure_secret_key(LABEL)
    assert await second.decrypt(LABEL, ciphertext, CONTEXT) == PLAINTEXT
    assert list(place.objects("secrkey")) == [LABEL]


async def test_two_secret_keys_of_a_label(place: Place, open_store: OpenStore) -> None:
    for _ in range(2):
        place.pkcs11_tool("--keygen", "--key-type", "AES:32", "--label", LABEL)
    store = await open_store(place)
    with pytest.raises(CaError) as refused:
        await store.ensure_secret_key(LABEL)
    assert refused.value.kind is ErrorKind.CONFLICT
    with pytest.raises(CaError, match="exactly one") as refused:
        await store.encrypt(LABEL, PLAINTEXT, CONTEXT)
    assert refused.value.kind is ErrorKind.NOT_FOUND


async def test_no_secret_key(keys: TokenKeyStore) -> None:
    for attempt in (keys.encrypt("none", b"x", b""), keys.decrypt("none", b"\x01" + bytes(40), b"")):
        with pytest.raises(CaError) as refused:
            await attempt
        assert refused.value.kind is ErrorKind.NOT_FOUND


async def test_the_secret_key_is_closed(secrets: TokenKeyStore) -> None:
    def look(bench: Bench) -> dict[str, object]:
        (key,) = bench.session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY})
        with pytest.raises(AttributeSensitive):
            key[Attribute.VALUE]
        names = ("SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "PRIVATE", "VALUE_LEN")
        names += ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "DERIVE")
        return {name: key[Attribute[name]] for name in names}

    assert await secrets._pool.run("look", look) == {
        "SENSITIVE": True,
        "EXTRACTABLE": False,
        "NEVER_EXTRACTABLE": True,
        "PRIVATE": True,
        "VALUE_LEN": 32,
        "ENCRYPT": True,
        "DECRYPT": True,
        "WRAP": False,
        "UNWRAP": False,
        "SIGN": False,
        "DERIVE": False,
    }
