"""Our notes, trees and proofs held against others' code: sigstore, pymerkle, and the text of RFC 6962 itself."""

from base64 import b64decode
from typing import Any

import pymerkle
import pytest
import rfc6962
from independent import is_included, open_checkpoint
from sigstore.errors import VerificationError
from victims import MemoryKey

from ca_server.core.audit import prove_serial
from ca_server.core.notes import InclusionProof
from ca_server.core.tlog import (
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    range_hashes,
    tree_root,
    verify_consistency,
)

LEAVES = tuple(b"leaf %d" % number for number in range(70))
HASHES = tuple(map(leaf_hash, LEAVES))


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 70])
def test_every_root_and_inclusion_proof(size: int) -> None:
    others = pymerkle.InmemoryTree()
    others.append_entries(LEAVES[:size])
    root = tree_root(HASHES[:size])
    assert root == rfc6962.mth(LEAVES[:size]) == others.get_root()
    for index in range(size):
        made = list(range_hashes(inclusion_ranges(index, size), HASHES))
        assert made == rfc6962.path(index, LEAVES[:size])
        # Theirs begins with the leaf itself.
        assert [HASHES[index], *made] == list(others.prove_inclusion(index + 1).path)
        assert is_included(LEAVES[index], index, size, made, root)


@pytest.mark.parametrize("size", [*range(1, 34), 70])
def test_every_consistency_proof(size: int) -> None:
    others = pymerkle.InmemoryTree()
    others.append_entries(LEAVES[:size])
    for old in range(1, size + 1):
        made = list(range_hashes(consistency_ranges(old, size), HASHES))
        assert made == rfc6962.proof(old, LEAVES[:size])
        before, after = tree_root(HASHES[:old]), tree_root(HASHES[:size])
        assert verify_consistency(old, size, before, after, made)
        pymerkle.verify_consistency(before, after, others.prove_consistency(old, size))


async def test_every_checkpoint_of_a_log_is_read_by_sigstore(log: Any) -> None:
    for stored in await log.victim.store.checkpoints(0, 10):
        told = open_checkpoint(stored.note, log.victim.key.spki_der)
        assert told == ("log.example.test", stored.size, stored.root)
        with pytest.raises(VerificationError):
            open_checkpoint(stored.note.replace(b"\n%d\n" % stored.size, b"\n7\n", 1), log.victim.key.spki_der)
        with pytest.raises(VerificationError):
            open_checkpoint(stored.note, MemoryKey().spki_der)


async def test_a_proof_file_is_what_the_specification_says(log: Any) -> None:
    """C2SP tlog-proof, read line by line; sigstore verifies both parts of it."""
    spki = log.victim.key.spki_der
    proof = await prove_serial(log.victim.store, "0b", [spki])
    text, _, checkpoint = proof.encode().partition(b"\n\n")
    header, extra, index, *path = text.decode().split("\n")
    assert header == "c2sp.org/tlog-proof@v1"
    leaf = b64decode(extra.removeprefix("extra "))
    assert b'"serial":"0b"' in leaf
    _, size, root = open_checkpoint(checkpoint, spki)
    assert is_included(leaf, int(index.removeprefix("index ")), size, [b64decode(line) for line in path], root)
    assert InclusionProof.parse(proof.encode()).verify([spki]).root == root
