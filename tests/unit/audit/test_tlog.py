"""The tree against a naive implementation of RFC 6962 section 2.1, word for word."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca_server.core.tlog import (
    EMPTY_ROOT,
    Frontier,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    range_hashes,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from ca_server.domain.errors import CaError


def split(count: int) -> int:
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def naive_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def leaves_of(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


def hashes_of(count: int) -> list[bytes]:
    return [leaf_hash(leaf) for leaf in leaves_of(count)]


def test_roots_of_the_reference_implementation() -> None:
    """Test vectors of certificate-transparency-go (merkle tree, eight leaves)."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashed = [leaf_hash(bytes.fromhex(each)) for each in inputs]
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree_root(hashed[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert tree_root(hashed[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert tree_root(hashed).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(st.integers(0, 70))
def test_frontier_has_the_root_and_survives_encoding(count: int) -> None:
    tree = Frontier()
    for hashed in hashes_of(count):
        tree = Frontier.decode(tree.encode())
        tree.append(hashed)
    assert tree.root() == naive_root(leaves_of(count))
    assert tree.size == count


def test_copy_grows_on_its_own() -> None:
    tree = Frontier()
    tree.extend(hashes_of(5))
    other = tree.copy()
    other.append(leaf_hash(b"x"))
    assert (tree.size, tree.root()) == (5, naive_root(leaves_of(5)))


@given(st.binary(max_size=200))
def test_hostile_states_raise_the_one_error(state: bytes) -> None:
    try:
        again = Frontier.decode(state).encode()
    except CaError:
        return
    assert again == state


@given(st.integers(1, 70), st.data())
def test_inclusion(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = range_hashes(inclusion_ranges(index, size), hashes_of(size))
    root = naive_root(leaves_of(size))
    assert list(path) == naive_path(index, leaves_of(size))
    hashed = leaf_hash(b"leaf %d" % index)
    assert verify_inclusion(index, size, hashed, path, root)
    assert not verify_inclusion(index, size, leaf_hash(b"another"), path, root)
    assert not verify_inclusion(index, size, hashed, (*path, root), root)
    assert not verify_inclusion(index, size, hashed, path[:-1], root) or not path
    other = data.draw(st.integers(-1, size))
    assert not verify_inclusion(other, size, hashed, path, root) or other == index
    if path:
        spot = data.draw(st.integers(0, len(path) - 1))
        changed = (*path[:spot], bytes(32), *path[spot + 1 :])
        assert not verify_inclusion(index, size, hashed, changed, root)


@given(st.integers(1, 70), st.data())
def test_consistency(new: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, new))
    proof = range_hashes(consistency_ranges(old, new), hashes_of(new))
    assert list(proof) == naive_subproof(old, leaves_of(new), True)
    old_root, new_root = naive_root(leaves_of(old)), naive_root(leaves_of(new))
    assert verify_consistency(old, new, old_root, new_root, proof)
    assert not verify_consistency(old, new, bytes(32), new_root, proof)
    assert not verify_consistency(old, new, old_root, bytes(32), proof)
    assert not verify_consistency(old, new, old_root, new_root, (*proof, bytes(32)))
    if proof:
        assert not verify_consistency(old, new, old_root, new_root, proof[:-1])
        spot = data.draw(st.integers(0, len(proof) - 1))
        assert not verify_consistency(old, new, old_root, new_root, (*proof[:spot], bytes(32), *proof[spot + 1 :]))
    wrong = data.draw(st.integers(0, new))
    if wrong not in (old, 0):
        assert not verify_consistency(wrong, new, old_root, new_root, proof)


def test_every_tree_extends_the_empty_one() -> None:
    root = naive_root(leaves_of(3))
    assert verify_consistency(0, 3, EMPTY_ROOT, root, ())
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, ())
    assert not verify_consistency(0, 3, root, root, ())
    assert not verify_consistency(3, 2, root, root, ())


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 4)])
def test_no_proof_of_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(CaError):
        inclusion_ranges(index, size)


def test_missing_leaves_make_no_proof() -> None:
    with pytest.raises(CaError):
        range_hashes(inclusion_ranges(1, 6), hashes_of(5))
