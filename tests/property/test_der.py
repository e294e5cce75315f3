"""The DER reader and writer: what is written is read back, and nothing else is read."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from ca_server.core.der import (
    DerError,
    assemble,
    children,
    decode_oid,
    encode,
    encode_integer,
    encode_oid,
    read,
    verify,
    whole,
)
from ca_server.domain.keys import KeyAlgorithm

TAGS = st.sampled_from([0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0A, 0x17, 0x18, 0x30, 0x31, 0x80, 0xA0, 0xA3])
CONTENTS = st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(bytes))
KEY = ec.generate_private_key(ec.SECP256R1())


@given(TAGS, CONTENTS, st.binary(max_size=20), st.binary(max_size=20))
def test_elements_round_trip(tag, contents, before, after):
    der = encode(tag, contents)
    found, start, end = read(before + der + after, len(before))
    assert (found, end) == (tag, len(before) + len(der))
    assert (before + der + after)[start:end] == contents
    start, end = whole(der, tag)
    assert der[start:end] == contents


@given(st.lists(st.tuples(TAGS, CONTENTS), max_size=6))
def test_children_round_trip(items):
    der = encode(0x30, *(encode(tag, contents) for tag, contents in items))
    start, end = whole(der, 0x30)
    walked = list(children(der, start, end))
    assert [(tag, der[content:stop]) for tag, _, content, stop in walked] == items
    assert b"".join(der[offset:stop] for _, offset, _, stop in walked) == der[start:end]


LENGTHS = st.one_of(
    st.binary(min_size=1, max_size=1),
    st.tuples(st.integers(0x80, 0x85), st.binary(max_size=5)).map(lambda parts: bytes([parts[0]]) + parts[1]),
    st.tuples(st.integers(1, 4), st.integers(0, 300)).map(
        lambda parts: bytes([0x80 | parts[0]]) + (parts[1] % 256 ** parts[0]).to_bytes(parts[0], "big")
    ),
)


@given(
    st.one_of(
        st.binary(max_size=64),
        st.tuples(st.binary(min_size=1, max_size=1), LENGTHS, st.integers(0, 300).map(bytes)).map(b"".join),
    ),
    st.integers(0, 3),
)
def test_one_encoding_has_one_meaning(data, offset):
    """What is read would be written the same: no second form of a length passes."""
    try:
        tag, start, end = read(data, offset)
    except DerError:
        return
    assert data[offset:end] == encode(tag, data[start:end])


@given(TAGS, CONTENTS, st.binary(min_size=1, max_size=4))
def test_nothing_may_follow_the_whole(tag, contents, more):
    der = encode(tag, contents)
    for wrong in (der + more, der[: -len(more)] if len(more) < len(der) else b""):
        with pytest.raises(DerError):
            whole(wrong, tag)
    with pytest.raises(DerError):
        whole(der, tag ^ 0x40)


@given(st.integers(0, 2**200))
def test_integers(value):
    der = encode_integer(value)
    start, end = whole(der, 0x02)
    assert int.from_bytes(der[start:end], "big", signed=True) == value
    # Shortest form: the first nine bits are neither all zero nor all one (X.690 section 8.3.2).
    assert end - start == 1 or der[start] or der[start + 1] & 0x80


@given(st.binary(max_size=80))
def test_object_identifiers_have_one_form(contents):
    try:
        dotted = decode_oid(contents)
    except DerError:
        return
    assert encode_oid(dotted)[2:] == contents


@given(st.text(max_size=30))
def test_any_text_as_object_identifier(text):
    try:
        der = encode_oid(text)
    except DerError:
        return
    assert read(der) == (0x06, len(der) - len(der[2:]), len(der))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_assembled_signatures_verify(content):
    tbs = encode(0x30, content)
    signature = KEY.sign(tbs, ec.ECDSA(SHA256()))
    der = assemble(tbs, KeyAlgorithm.P256, signature)
    (_, _, _, stop), _, (tag, _, start, end) = children(der, *whole(der, 0x30))
    assert der[stop - len(tbs) : stop] == tbs
    assert (tag, der[start], der[start + 1 : end]) == (0x03, 0, signature)
    assert verify(KEY.public_key(), KeyAlgorithm.P256, tbs, signature)


@given(st.binary(max_size=100), st.sampled_from(list(KeyAlgorithm)))
@settings(deadline=None)
def test_any_bytes_as_signature(data, algorithm):
    """False, never an exception."""
    assert not verify(KEY.public_key(), algorithm, b"data", data) or is_right(data)


def is_right(data: bytes) -> bool:
    try:
        decode_dss_signature(data)
        KEY.public_key().verify(data, b"data", ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
