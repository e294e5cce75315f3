"""Signed notes and checkpoints against the C2SP specifications' own examples, and against hostile bytes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca_server.core.notes import (
    MAX_NOTE,
    InclusionProof,
    NoteKey,
    NoteSignature,
    SignedNote,
    TreeHead,
    checkpoint_text,
    encode_note,
    open_checkpoint,
    parse_checkpoint_text,
    parse_note,
    verify_note,
)
from ca_server.core.tlog import inclusion_ranges, leaf_hash, range_hashes, tree_root
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm

# signed-note, "Verifier keys", example
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n"
    "\u2014 example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72"
    "IneyaQM=\n"
).encode()
# tlog-checkpoint, example
SPEC_CHECKPOINT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+"
    "zyWE+xeMcTOAYQ8=\n"
).encode()
# The Rekor and Pixel 6 logs' keys, as in transparency-dev/formats.
_P256 = "AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABN"
ECDSA_KEYS = [
    f"rekor.sigstore.dev+c0d23d6a+{_P256}htmPtrWm3U1eQXBogSMdGvXwBcK5AW5i0hrZLOC96l+smGNM7nwZ4QvFK/4sueRoVj//QP22Ni4Qt9DPfkWLc=",
    f"pixel6_transparency_log+91c16e30+{_P256}+4x0Jk1yTwvLFI9A4NDdGZcX0aiWVdWM5XJVy0M4VWD3AvyW5Q6Hs9A0mcDkpUoYgn+KKPNzFC0H3nN3q6JQ8=",
]


def test_the_specification_s_example_verifies() -> None:
    key = NoteKey.parse(SPEC_KEY)
    assert key.verifier_key == SPEC_KEY
    note = parse_note(SPEC_NOTE)
    assert note.text == "This is an example message.\n"
    assert verify_note(note, [key]) == (key,)


def test_the_specification_s_checkpoint_is_read() -> None:
    head = parse_checkpoint_text(parse_note(SPEC_CHECKPOINT).text)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint_text(head) == parse_note(SPEC_CHECKPOINT).text


@pytest.mark.parametrize("verifier_key", ECDSA_KEYS)
def test_ecdsa_key_ids_of_public_logs(verifier_key: str) -> None:
    assert NoteKey.parse(verifier_key).verifier_key == verifier_key


@pytest.mark.parametrize(
    "verifier_key",
    [
        "",
        "a+b",
        "name+00000000+" + ECDSA_KEYS[0].split("+", 2)[2],
        "name+c0d23d6a+AQ==",
        SPEC_KEY.replace("530d903a", "530D903A"),
        SPEC_KEY.replace("example.com/foo", "other"),
        ECDSA_KEYS[0].replace("+AjBZ", "+BTBZ"),
    ],
)
def test_bad_verifier_keys(verifier_key: str) -> None:
    with pytest.raises(CaError):
        NoteKey.parse(verifier_key)


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.P256, KeyAlgorithm.ED25519])
async def test_sign_and_open(algorithm: KeyAlgorithm, new_key: Callable[[KeyAlgorithm], "object"]) -> None:
    signer, stranger = new_key(algorithm), new_key(algorithm)
    key = NoteKey("log.example", signer.spki_der)
    other = NoteKey("log.example", stranger.spki_der)
    head = TreeHead("log.example", 3, bytes(range(32)))
    text = checkpoint_text(head)
    mine = NoteSignature("log.example", key.key_id, await signer.sign(text.encode()))
    witness = NoteSignature("witness.example", b"abcd", b"whatever")
    note = encode_note(text, [witness, mine])
    assert open_checkpoint(note, [key]) == head
    assert NoteKey.parse(key.verifier_key).verifies(text, mine.signature)
    with pytest.raises(CaError) as none_known:
        open_checkpoint(note, [other])
    assert none_known.value.kind is ErrorKind.UNAUTHENTICATED
    with pytest.raises(CaError) as forged:
        verify_note(SignedNote(text.replace("3", "4", 1), (mine,)), [key])
    assert forged.value.kind is ErrorKind.UNAUTHENTICATED
    # One bad signature of a known key spoils the note, even beside a good one.
    with pytest.raises(CaError):
        open_checkpoint(encode_note(text, [mine, replace(mine, signature=b"0" * 64)]), [key])


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        SPEC_NOTE[:-1],
        SPEC_NOTE + b"\n",
        SPEC_NOTE.replace(b"message", b"mess\tage"),
        SPEC_NOTE.replace(b"message", b"mess\xffage"),
        SPEC_NOTE.replace(b"example.com/foo", b"example.com/+foo"),
        SPEC_NOTE.replace(b"example.com/foo", "example\u2003foo".encode()),
        SPEC_NOTE.replace(b"IneyaQM=", b"IneyaQN="),
        b"text\n\n\xe2\x80\x94 name AAAAAA==\n",
        b"text\n\n- name AAAAAAA=\n",
        b"a" * MAX_NOTE + SPEC_NOTE,
        b"text\n\n" + SPEC_NOTE.split(b"\n\n")[1] * 65,
    ],
)
def test_notes_that_are_none(note: bytes) -> None:
    with pytest.raises(CaError) as caught:
        parse_note(note)
    assert caught.value.kind is ErrorKind.MALFORMED


def test_sixteen_signatures_of_five_kilobytes_are_read() -> None:
    signatures = [NoteSignature("witness", bytes([n]) * 4, bytes(5_000)) for n in range(16)]
    assert parse_note(encode_note("text\n", signatures)).signatures == tuple(signatures)


def test_text_may_have_empty_lines() -> None:
    note = encode_note("a\n\nb\n", [NoteSignature("n", b"1234", b"s")])
    assert parse_note(note).text == "a\n\nb\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "a\n1\n",
        "a\n01\n{}\n",
        "a\n-1\n{}\n",
        "a\n1\nAAAA\n",
        "a\n1\n{}",
        "a\n1\n{}\n\n",
        "a\n9223372036854775808\n{}\n",
    ],
)
def test_checkpoints_that_are_none(text: str) -> None:
    with pytest.raises(CaError):
        parse_checkpoint_text(text.format("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="))


def failure(call: Callable[[], object]) -> ErrorKind | None:
    """The kind of the CaError that a call raises; any other exception fails the test."""
    try:
        call()
    except CaError as error:
        return error.kind
    return None


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_arbitrary_bytes_raise_the_one_error(data: bytes) -> None:
    for parse in (parse_note, InclusionProof.parse):
        assert failure(lambda parse=parse: parse(data)) in (None, ErrorKind.MALFORMED)


@given(st.data())
def test_damaged_notes_raise_the_one_error_or_fail_to_verify(data: st.DataObject) -> None:
    key = NoteKey.parse(SPEC_KEY)
    at = data.draw(st.integers(0, len(SPEC_NOTE) - 1))
    by = data.draw(st.binary(max_size=3))
    damaged = SPEC_NOTE[:at] + by + SPEC_NOTE[at + 1 :]
    kind = failure(lambda: verify_note(parse_note(damaged), [key]))
    assert kind in (ErrorKind.MALFORMED, ErrorKind.UNAUTHENTICATED) or damaged == SPEC_NOTE


@given(st.text(max_size=60))
def test_arbitrary_checkpoint_text_raises_the_one_error(text: str) -> None:
    assert failure(lambda: parse_checkpoint_text(text)) in (None, ErrorKind.MALFORMED)


async def test_proofs_stand_alone(new_key: Callable[[], "object"]) -> None:
    signer = new_key(KeyAlgorithm.P256)
    leaves = [b"leaf %d" % n for n in range(7)]
    hashed = [leaf_hash(leaf) for leaf in leaves]
    key = NoteKey("log.example", signer.spki_der)
    text = checkpoint_text(TreeHead("log.example", 7, tree_root(hashed)))
    note = encode_note(text, [NoteSignature("log.example", key.key_id, await signer.sign(text.encode()))])
    proof = InclusionProof(4, range_hashes(inclusion_ranges(4, 7), hashed), note, leaves[4])
    parsed = InclusionProof.parse(proof.encode())
    assert parsed == proof
    assert parsed.verify([signer.spki_der]).size == 7
    bare = InclusionProof.parse(replace(proof, extra=b"").encode())
    assert bare.verify([signer.spki_der], leaves[4]).size == 7
    for wrong in (replace(proof, index=3), replace(proof, extra=leaves[3]), replace(proof, path=proof.path[:-1])):
        with pytest.raises(CaError) as caught:
            wrong.verify([signer.spki_der])
        assert caught.value.kind is ErrorKind.UNAUTHENTICATED
