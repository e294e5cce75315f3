"""Keys in a real SoftHSM2 token: made, found by label, used, destroyed."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, AttributeSensitive, ObjectClass
from tokenlib.place import Place
from tokenlib.verify import check_signature, check_signs

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from hsm.keys import TokenKeyStore, open_keystore
from hsm.pool import Bench

OpenStore = Callable[..., Awaitable[TokenKeyStore]]

EACH = pytest.mark.parametrize("algorithm", list(KeyAlgorithm), ids=str)
SIZES = {
    KeyAlgorithm.P256: 256,
    KeyAlgorithm.P384: 384,
    KeyAlgorithm.P521: 521,
    KeyAlgorithm.RSA2048: 2048,
    KeyAlgorithm.RSA3072: 3072,
    KeyAlgorithm.RSA4096: 4096,
}


def label_of(algorithm: KeyAlgorithm) -> str:
    return f"key-{algorithm.value}"


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A token with one key of every algorithm and a secret key, made by an earlier run; not to be changed."""

    async def stock() -> None:
        store = await open_keystore(place.options())
        for algorithm in KeyAlgorithm:
            key = await store.generate(label_of(algorithm), algorithm)
            assert key.algorithm is algorithm
        await store.ensure_secret_key("secret")
        assert store.uses() == {label_of(algorithm): 1 for algorithm in KeyAlgorithm}, "the check of each new pair"
        await store.close()

    place = Place(tmp_path_factory.mktemp("stocked") / "token")
    assert place.provision()
    asyncio.run(stock())
    return place


@EACH
async def test_a_key_of_an_earlier_run_is_found_and_signs(
    stocked: Place, open_store: OpenStore, algorithm: KeyAlgorithm
) -> None:
    store = await open_store(stocked)
    key = await store.find(label_of(algorithm))
    assert (key.label, key.algorithm) == (label_of(algorithm), algorithm)
    public = load_der_public_key(key.spki_der)
    if isinstance(public, rsa.RSAPublicKey):
        assert (public.key_size, public.public_numbers().e) == (SIZES[algorithm], 65537)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        assert public.curve.key_size == SIZES[algorithm]
    else:
        assert isinstance(public, ed25519.Ed25519PublicKey)
        assert algorithm is KeyAlgorithm.ED25519
    for data in (b"", b"x", b"more than one block " * 1000):
        signature = await key.sign(data)
        check_signature(key, signature, data)
        with pytest.raises(InvalidSignature):
            check_signature(key, signature, data + b".")


async def test_signatures_have_the_form_that_x509_carries(stocked: Place, open_store: OpenStore) -> None:
    """RFC 3279 section 2.2.3: ECDSA-Sig-Value, a SEQUENCE of r and s; RFC 8410 section 6: 64 raw octets."""
    store = await open_store(stocked)
    ecdsa = await (await store.find(label_of(KeyAlgorithm.P256))).sign(b"x")
    r, s = decode_dss_signature(ecdsa)
    assert r > 0
    assert s > 0
    assert len(await (await store.find(label_of(KeyAlgorithm.ED25519))).sign(b"x")) == 64
    assert len(await (await store.find(label_of(KeyAlgorithm.RSA3072))).sign(b"x")) == 384


@EACH
async def test_private_keys_are_closed(stocked: Place, open_store: OpenStore, algorithm: KeyAlgorithm) -> None:
    """As the module itself says through python-pkcs11, of the token object and of the copy that signs."""
    store = await open_store(stocked)
    key = await store.find(label_of(algorithm))
    await key.sign(b"x")

    def look(bench: Bench) -> list[dict[str, object]]:
        if key.label not in bench.handles:
            return []
        found = []
        for handle in bench.handles[key.label][:2]:
            with pytest.raises(AttributeSensitive):
                handle[Attribute.PRIVATE_EXPONENT if algorithm.is_rsa else Attribute.VALUE]
            names = ("SENSITIVE", "ALWAYS_SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "PRIVATE", "SIGN")
            names += ("DECRYPT", "UNWRAP", "DERIVE")
            found.append({name: handle[Attribute[name]] for name in names})
        return found

    spread = algorithm is not KeyAlgorithm.P256
    found = await store._pool.run("look", look, spread=spread)
    wanted = {
        "SENSITIVE": True,
        "ALWAYS_SENSITIVE": True,
        "EXTRACTABLE": False,
        "NEVER_EXTRACTABLE": True,
        "PRIVATE": True,
        "SIGN": True,
        "DECRYPT": False,
        "UNWRAP": False,
        "DERIVE": False,
    }
    assert found == [wanted, wanted]


def test_pkcs11_tool_agrees(stocked: Place) -> None:
    """The word of a program that shares no code with python-pkcs11."""
    private, public, secret = (stocked.objects(kind) for kind in ("privkey", "pubkey", "secrkey"))
    labels = {label_of(algorithm) for algorithm in KeyAlgorithm}
    assert set(private) == set(public) == labels
    assert set(secret) == {"secret"}
    for label, text in private.items():
        access = re.search(r"Access:\s*(.*)", text)
        assert access is not None, text
        assert {"sensitive", "always sensitive", "never extractable", "local"} <= set(access[1].split(", ")), text
        usage = re.search(r"Usage:\s*(.*)", text)
        assert usage is not None
        assert usage[1] == "sign", text
        identifier = re.findall(r"ID:\s*([0-9a-f]+)", text)
        assert len(identifier[0]) == 40
        assert identifier == re.findall(r"ID:\s*([0-9a-f]+)", public[label])
    assert "never extractable" in secret["secret"]
    assert "sensitive" in secret["secret"]


def test_pkcs11_tool_cannot_read_the_secret_key(stocked: Place, tmp_path: Path) -> None:
    """It does not even try with private keys."""
    stolen = tmp_path / "stolen"
    arguments = ("--read-object", "--type", "secrkey", "--label", "secret", "--output-file", str(stolen))
    assert "CKR_ATTRIBUTE_SENSITIVE" in stocked.pkcs11_tool(*arguments, expect=None)
    assert not stolen.exists() or stolen.stat().st_size == 0


async def test_labels_are_those_of_private_keys(stocked: Place, open_store: OpenStore) -> None:
    store = await open_store(stocked)
    await (await store.find(label_of(KeyAlgorithm.P256))).sign(b"so that a session copy is there")
    assert await store.labels() == tuple(sorted(label_of(algorithm) for algorithm in KeyAlgorithm))


# --- Exactly one match ----------------------------------------------------------------------------------------------


async def test_no_key_of_a_label(keys: TokenKeyStore) -> None:
    with pytest.raises(CaError, match="'nobody'") as refused:
        await keys.find("nobody")
    assert refused.value.kind is ErrorKind.NOT_FOUND


async def test_no_key_of_a_label_among_others(keys: TokenKeyStore) -> None:
    await keys.generate("somebody", KeyAlgorithm.P256)
    with pytest.raises(CaError) as refused:
        await keys.find("nobody")
    assert refused.value.kind is ErrorKind.NOT_FOUND
    assert keys._token.generation == 1, "a key that never was is no reason to open the token anew"


async def test_two_keys_of_a_label(place: Place, open_store: OpenStore) -> None:
    for _ in range(2):
        place.pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "twin")
    store = await open_store(place)
    with pytest.raises(CaError, match="2 private keys 'twin'") as refused:
        await store.find("twin")
    assert refused.value.kind is ErrorKind.CONFLICT
    with pytest.raises(CaError) as refused:
        await store.generate("twin", KeyAlgorithm.P256)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await store.labels() == ("twin", "twin")


async def test_a_label_is_taken_once(keys: TokenKeyStore) -> None:
    first = await keys.generate("once", KeyAlgorithm.P256)
    with pytest.raises(CaError) as refused:
        await keys.generate("once", KeyAlgorithm.P384)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert (await keys.find("once")).spki_der == first.spki_der


async def test_a_label_is_matched_whole(keys: TokenKeyStore) -> None:
    await keys.generate("root", KeyAlgorithm.P256)
    for near in ("roo", "root ", "Root", "root (session)", ""):
        with pytest.raises(CaError) as refused:
            await keys.find(near)
        assert refused.value.kind is ErrorKind.NOT_FOUND, near


async def test_two_public_keys_of_a_label(place: Place, open_store: OpenStore) -> None:
    """Which of the two is the private key's? Not for us to guess."""
    for _ in range(2):
        place.pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "half")
    place.delete_private_key("half")
    store = await open_store(place)
    with pytest.raises(CaError, match="2 public keys for 'half'") as refused:
        await store.find("half")
    assert refused.value.kind is ErrorKind.CONFLICT


async def test_a_public_key_of_another_label_is_found_by_id(place: Place, open_store: OpenStore) -> None:
    """Tools of other makers label the two halves differently; CKA_ID binds them (PKCS#11 v2.40 section 4.9)."""
    place.pkcs11_tool("--keypairgen", "--key-type", "EC:secp384r1", "--label", "foreign", "--id", "0a0b")
    store = await open_store(place)

    def rename(bench: Bench) -> None:
        (public,) = bench.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY})
        public[Attribute.LABEL] = "something else"

    await store._pool.run("rename", rename)
    key = await store.find("foreign")
    assert key.algorithm is KeyAlgorithm.P384
    await check_signs(key)


async def test_an_rsa_key_without_its_public_object(place: Place, open_store: OpenStore) -> None:
    place.pkcs11_tool("--keypairgen", "--key-type", "rsa:2048", "--label", "lonely")
    place.pkcs11_tool("--delete-object", "--type", "pubkey", "--label", "lonely")
    store = await open_store(place)
    await check_signs(await store.find("lonely"))


@pytest.mark.parametrize("kind", ["rsa:1024", "EC:secp256k1"])
async def test_a_key_of_a_kind_that_is_not_supported(place: Place, open_store: OpenStore, kind: str) -> None:
    place.pkcs11_tool("--keypairgen", "--key-type", kind, "--label", "odd")
    store = await open_store(place)
    with pytest.raises(CaError, match="not supported") as refused:
        await store.find("odd")
    assert refused.value.kind is ErrorKind.CONFLICT


# --- Delete, random, uses -------------------------------------------------------------------------------------------


async def test_delete(place: Place, keys: TokenKeyStore) -> None:
    gone = await keys.generate("gone", KeyAlgorithm.P256)
    await keys.generate("kept", KeyAlgorithm.P256)
    await gone.sign(b"so that a session copy is there")
    assert await keys.delete("gone") is True
    assert await keys.delete("gone") is False
    assert await keys.labels() == ("kept",)
    with pytest.raises(CaError) as refused:
        await keys.find("gone")
    assert refused.value.kind is ErrorKind.NOT_FOUND
    assert set(place.objects("pubkey")) == {"kept"}, "both halves are destroyed"
    await keys.probe()


async def test_a_deleted_key_signs_no_more(place: Place, open_store: OpenStore) -> None:
    """Not by the session copy either, which outlives its original in the module."""
    store = await open_store(place)
    key = await store.generate("gone", KeyAlgorithm.P256)
    await store.generate("kept", KeyAlgorithm.P256)
    await key.sign(b"x")
    await store.delete("gone")
    with pytest.raises(CaError) as refused:
        await key.sign(b"x")
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert store._token.generation == 1
    again = await store.generate("gone", KeyAlgorithm.P256)
    assert again.spki_der != key.spki_der
    await check_signs(again)


async def test_random(keys: TokenKeyStore) -> None:
    for length in (1, 16, 32, 1000):
        assert len(await keys.random(length)) == length
    assert len({await keys.random(16) for _ in range(50)}) == 50


async def test_uses_count_every_signature(keys: TokenKeyStore) -> None:
    assert keys.uses() == {}
    elliptic = await keys.generate("elliptic", KeyAlgorithm.P256)
    modular = await keys.generate("modular", KeyAlgorithm.RSA2048)
    await keys.ensure_secret_key("secret")
    assert keys.uses() == {"elliptic": 1, "modular": 1}, "each new pair is checked with one signature"
    await asyncio.gather(*(elliptic.sign(b"x") for _ in range(50)), *(modular.sign(b"x") for _ in range(20)))
    await keys.decrypt("secret", await keys.encrypt("secret", b"x", b""), b"")
    assert keys.uses() == {"elliptic": 51, "modular": 21}
    keys.uses()["elliptic"] = 0
    assert keys.uses()["elliptic"] == 51, "callers get a copy"


async def test_operations_are_observed(place: Place, open_store: OpenStore) -> None:
    seen: list[tuple[str, str]] = []
    store = await open_store(place, observe=lambda name, outcome, seconds: seen.append((name, outcome)))
    key = await store.generate("seen", KeyAlgorithm.P256)
    await key.sign(b"x")
    with pytest.raises(CaError):
        await store.find("nobody")
    assert seen == [("generate", "ok"), ("sign", "ok"), ("find", "failed")]
