"""Attestation objects come from hostile clients: they show a device, or they are refused by a typed error."""

from datetime import timedelta
from functools import cache

import cbor2
import pytest
from attestations import NOW, AppleDevice, Chain, Tpm, YubiKey, attestation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.acme.attestation import AttestationError, Question, Roots, verify
from protocols.acme.attestation.tpm_structures import (
    StructureError,
    parse_certify,
    parse_public,
    parse_signature,
)

AUTHORIZATION = "token.thumbprint"
CHAIN = Chain.of("any")
ROOTS = Roots(dict.fromkeys(("apple", "step", "tpm"), (CHAIN.root.certificate,)))
QUESTION = Question("token", AUTHORIZATION, NOW)
KINDS = st.sampled_from(["apple", "step", "tpm"])


@cache
def good(kind: str) -> bytes:
    if kind == "apple":
        return AppleDevice(CHAIN).attest("token")
    return (YubiKey(CHAIN) if kind == "step" else Tpm(CHAIN)).attest(AUTHORIZATION)


def refused(data: bytes) -> str:
    with pytest.raises(AttestationError) as caught:
        verify(data, QUESTION, ROOTS)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return str(caught.value)


@given(st.binary(max_size=400))
def test_any_octets(data: bytes) -> None:
    refused(data)


@settings(max_examples=300)
@given(KINDS, st.data())
def test_any_octet_changed(kind: str, data: st.DataObject) -> None:
    """Either it is refused, or it shows the same: alg, issuer's certificate and unread members may vary in part."""
    whole = good(kind)
    place = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    changed = whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :]
    try:
        shown = verify(changed, QUESTION, ROOTS)
    except AttestationError:
        return
    assert shown == verify(whole, QUESTION, ROOTS)


@given(KINDS, st.data(), st.binary(max_size=3))
def test_cut_off_and_more(kind: str, data: st.DataObject, more: bytes) -> None:
    whole = good(kind)
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))] + more)
    assert "octets follow" in refused(whole + b"\x00" + more)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.binary(max_size=60),
    st.text("a/\n\u00e9", max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(SCALARS, inner, max_size=4)),
    max_leaves=12,
)
MEMBERS = st.dictionaries(
    st.sampled_from(["ver", "alg", "sig", "x5c", "certInfo", "pubArea", "more"]),
    st.one_of(VALUES, st.lists(st.binary(max_size=60), max_size=3), st.just("2.0")),
)


@settings(max_examples=200)
@given(KINDS, MEMBERS)
def test_any_members(kind: str, members: dict[str, object]) -> None:
    refused(attestation(kind, members))


@settings(max_examples=100)
@given(VALUES)
def test_any_cbor(value: object) -> None:
    refused(cbor2.dumps(value))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x81" * 5000, "nests more than 6 deep"),
        (b"\xbf" * 5000, "canonical CBOR"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff" + b"\x00" * 5000, "more than 200 items"),
        (b"\x98\xc9" + b"\x00" * 201, "more than 200 items"),
        (b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
        (b"\x19\x01", "cut off"),
        (b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01", "a tag"),
        (b"\xd8\x1c\x81\xd8\x1d\x00", "a tag"),
        (b"\xf9\x7e\x00", "canonical CBOR"),
        (b"\xf8\xff", "canonical CBOR"),
        (b"\xf7", "no number, text, octets, list or map"),
        (b"\x1c", "canonical CBOR"),
        (b"\x61\xff", "no CBOR"),
        (b"\x00" * (64 * 1024 + 1), "more than 65536 octets"),
        (b"\x80", "no map"),
        (b"\xa1\x63fmt\x60", "no fmt"),
        (b"\xa1\x63fmt\x78\x21" + b"a" * 33, "no fmt"),
        (b"\xa1\x63fmt\x65apple", "no attStmt"),
        (b"\xa2\x63fmt\x65apple\x67attStmt\xa1\x01\x01", "no attStmt"),
    ],
    ids=lambda value: value.hex()[:20] if isinstance(value, bytes) else value[:20],
)
def test_what_would_cost(data: bytes, why: str) -> None:
    assert why in refused(data)


@settings(max_examples=200)
@given(st.binary(max_size=200))
@example(b"\xffTCG\x80\x17" + b"\xff" * 100)
@example(b"\x00\x01\x00\x0b" + b"\x00" * 100)
@example(b"\x00\x23\x00\x0b" + b"\x00" * 100)
@example(bytes.fromhex("0001000b00000072000000100010080000000003000401020304"))
def test_structures_of_a_tpm(data: bytes) -> None:
    for parse in (parse_certify, parse_public, parse_signature):
        try:
            parse(data)
        except StructureError:
            continue


def test_the_good_ones() -> None:
    for kind in ("apple", "step", "tpm"):
        assert verify(good(kind), QUESTION, ROOTS).format == kind
    with pytest.raises(AttestationError):
        verify(good("tpm"), Question("token", AUTHORIZATION, NOW + timedelta(days=9)), ROOTS)
