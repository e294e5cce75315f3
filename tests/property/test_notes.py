"""Signed notes, checkpoints and proofs: round trips, and hostile bytes give CaError MALFORMED or UNAUTHENTICATED."""

import warnings
from collections.abc import Callable
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ca_server.core.notes import (
    InclusionProof,
    NoteKey,
    NoteSignature,
    TreeHead,
    checkpoint_text,
    encode_note,
    open_checkpoint,
    open_own_checkpoint,
    parse_checkpoint_text,
    parse_note,
    verify_note,
)
from ca_server.domain.errors import CaError, ErrorKind

ORIGIN = "ca.test/log"
EXPECTED = {ErrorKind.MALFORMED, ErrorKind.UNAUTHENTICATED}
LINE = st.text(st.characters(min_codepoint=0x20, codec="utf-8"), min_size=1, max_size=40)
NAME = LINE.filter(lambda text: "+" not in text and not any(char.isspace() for char in text))
ROOT = st.binary(min_size=32, max_size=32)
HEADS = st.builds(TreeHead, NAME, st.integers(0, 2**63 - 1), ROOT, st.lists(LINE, max_size=3).map(tuple))
SIGNATURES = st.builds(NoteSignature, NAME, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80))


@cache
def keys():
    """The same in every run, as their signatures are: what is drawn depends on their length."""
    return ec.derive_private_key(7, ec.SECP256R1()), ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32)


def spki(index: int) -> bytes:
    return keys()[index].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(index: int, text: str) -> bytes:
    key = keys()[index]
    return (
        key.sign(text.encode(), ec.ECDSA(SHA256(), deterministic_signing=True))
        if index == 0
        else key.sign(text.encode())
    )


def signed(index: int, head: TreeHead) -> bytes:
    key = NoteKey(head.origin, spki(index))
    text = checkpoint_text(head)
    return encode_note(text, [NoteSignature(key.name, key.key_id, sign(index, text))])


def judge(work: Callable[[], object]) -> object | None:
    """The result, or None for an error of the right kind; warnings count as failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return work()
        except CaError as error:
            assert error.kind in EXPECTED  # noqa: PT017 - what it is not is raised on
            return None


@given(st.integers(0, 1), HEADS)
@settings(deadline=None)
def test_checkpoints_round_trip(index, head):
    note = signed(index, head)
    assert open_checkpoint(note, [NoteKey(head.origin, spki(index))]) == head
    assert open_own_checkpoint(note, [spki(index)]) == head
    assert parse_checkpoint_text(checkpoint_text(head)) == head
    assert judge(lambda: open_own_checkpoint(note, [spki(1 - index)])) is None


@given(st.lists(LINE, min_size=1, max_size=4), st.lists(SIGNATURES, min_size=1, max_size=4))
def test_notes_round_trip(lines, signatures):
    text = "\n".join(lines) + "\n"
    parsed = parse_note(encode_note(text, signatures))
    assert (parsed.text, parsed.signatures) == (text, tuple(signatures))
    assert judge(lambda: verify_note(parsed, [NoteKey(ORIGIN, spki(0))])) is None


@given(st.integers(0, 1), NAME)
def test_verifier_keys_round_trip(index, name):
    key = NoteKey(name, spki(index))
    again = NoteKey.parse(key.verifier_key)
    assert (again.name, again.key_id, again.material, again.type) == (name, key.key_id, key.material, key.type)


@given(
    st.integers(0, 2**63 - 1),
    st.lists(ROOT, max_size=63),
    st.binary(max_size=80),
    HEADS,
)
@settings(deadline=None)
def test_proofs_round_trip(index, path, extra, head):
    proof = InclusionProof(index, tuple(path), signed(0, head), extra)
    assert InclusionProof.parse(proof.encode()) == proof


@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_arbitrary_bytes(data):
    for work in (
        lambda: parse_note(data),
        lambda: open_checkpoint(data, [NoteKey(ORIGIN, spki(0))]),
        lambda: open_own_checkpoint(data, [spki(0)]),
        lambda: InclusionProof.parse(data),
        lambda: InclusionProof.parse(b"c2sp.org/tlog-proof@v1\n" + data),
        lambda: NoteKey(ORIGIN, data),
    ):
        judge(work)


@given(st.text(max_size=120))
def test_arbitrary_text(text):
    for work in (
        lambda: NoteKey.parse(text),
        lambda: NoteKey.parse(f"name+00000000+{text}"),
        lambda: NoteKey(text, spki(0)),
        lambda: parse_checkpoint_text(text),
        lambda: parse_checkpoint_text(f"origin\n{text}\n"),
        lambda: encode_note(text, [NoteSignature("name", b"1234", b"s")]),
        lambda: encode_note("text\n", [NoteSignature(text, b"1234", b"s")]),
    ):
        judge(work)


@given(st.integers(0, 1), st.data())
@settings(deadline=None)
def test_no_mutated_checkpoint_says_anything_else(index, data):
    head = TreeHead(ORIGIN, 123_456, b"r" * 32, ("extension",))
    note = bytearray(signed(index, head))
    position = data.draw(st.integers(0, len(note) - 1))
    match data.draw(st.sampled_from(["set", "delete", "insert"])):
        case "set":
            note[position] = data.draw(st.integers(0, 255))
        case "delete":
            del note[position]
        case _:
            note.insert(position, data.draw(st.integers(0, 255)))
    parsed = judge(lambda: parse_note(bytes(note)))
    assert parsed is None or encode_note(parsed.text, parsed.signatures) == bytes(note)  # one note has one form
    opened = judge(lambda: open_checkpoint(bytes(note), [NoteKey(ORIGIN, spki(index))]))
    assert opened in (None, head)


@given(st.data())
@settings(deadline=None)
def test_mutated_proofs(data):
    proof = InclusionProof(1, (b"a" * 32, b"b" * 32), signed(1, TreeHead(ORIGIN, 3, b"r" * 32)), b"leaf")
    encoded = bytearray(proof.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    parsed = judge(lambda: InclusionProof.parse(bytes(encoded)))
    assume(parsed is not None)
    assert judge(lambda: parsed.verify([spki(1)])) is None
