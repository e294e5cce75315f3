"""The certificate of tls-alpn-01 is read from a hostile peer: it is right, or it is refused by a typed error."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_responder import ACME_IDENTIFIER, challenge_pair

from ca_server.core.der import encode, encode_oid
from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.challenge_certificate import CertificateError, check_certificate

NAME = Identifier(IdentifierType.DNS, "a.test")
AUTHORIZATION = "token.thumbprint"
GOOD = challenge_pair(["a.test"], AUTHORIZATION, key=rsa.generate_private_key(65_537, 2048)).der
FIELDS = [b"\x30\x00"] * 7


def outline(*extensions: bytes) -> bytes:
    """What has the outline of a certificate with these extensions, and nothing else of one."""
    tbs = encode(0x30, *FIELDS, encode(0xA3, encode(0x30, *extensions)))
    return encode(0x30, tbs, b"\x30\x00", b"\x03\x01\x00")


def refused(data: bytes) -> str:
    with pytest.raises(CertificateError) as caught:
        check_certificate(data, NAME, AUTHORIZATION)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_the_good_one() -> None:
    check_certificate(GOOD, NAME, AUTHORIZATION)


@given(st.binary(max_size=400))
def test_any_octets(data: bytes) -> None:
    refused(data)


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_octet_changed(place: int, change: int) -> None:
    refused(GOOD[:place] + bytes([GOOD[place] ^ change]) + GOOD[place + 1 :])


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_cut_off_and_more(place: int, more: bytes) -> None:
    refused(GOOD[:place] + more)
    refused(GOOD + more + b"\x00")


TAGS = st.sampled_from([0x01, 0x02, 0x04, 0x05, 0x06, 0x30, 0x82, 0x87, 0xA3])
VALUES = st.one_of(st.binary(max_size=40), st.tuples(TAGS, st.binary(max_size=20)).map(lambda each: encode(*each)))
OIDS = st.sampled_from([encode_oid(ACME_IDENTIFIER), encode_oid("2.5.29.17"), b"\x06\x00", b"\x06\x01\x80"])
EXTENSIONS = st.one_of(
    st.binary(max_size=20),
    st.tuples(OIDS, st.sampled_from([b"", b"\x01\x01\xff", b"\x01\x00"]), VALUES).map(
        lambda each: encode(0x30, each[0], each[1], encode(0x04, each[2]))
    ),
)


@given(st.lists(EXTENSIONS, max_size=4))
def test_any_extensions(extensions: list[bytes]) -> None:
    refused(outline(*extensions))


def test_extensions_are_counted_and_each_is_there_once() -> None:
    many = [encode(0x30, encode_oid(f"1.2.{number}"), b"\x04\x00") for number in range(33)]
    assert "no subjectAltName" in refused(outline(*many[:32]))
    assert "more than 32" in refused(outline(*many))
    assert "twice" in refused(outline(many[0], many[0]))


@pytest.mark.parametrize(("in_certificate", "asked"), [("a.bc", "97.46.98.99"), ("97.46.98.99", "a.bc")])
def test_the_same_octets_as_another_kind_of_name(in_certificate: str, asked: str) -> None:
    kind = IdentifierType.IP if asked[-1].isdigit() else IdentifierType.DNS
    with pytest.raises(CertificateError, match=f"not for {asked}"):
        check_certificate(challenge_pair([in_certificate], AUTHORIZATION).der, Identifier(kind, asked), AUTHORIZATION)


def test_a_signature_of_broken_octets() -> None:
    assert GOOD[-257] == 0
    assert "whole number of octets" in refused(GOOD[:-257] + b"\x01" + GOOD[-256:])


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())])
def test_keys(key: object) -> None:
    check_certificate(pair_of(key), NAME, AUTHORIZATION)


def test_other_keys() -> None:
    assert "not EC, RSA or Ed25519" in refused(pair_of(ed448.Ed448PrivateKey.generate()))


@pytest.mark.parametrize(("exponent", "bits"), [(65_537, 9_000), ((1 << 256) + 1, 2_048)])
def test_huge_rsa_keys_are_not_used(exponent: int, bits: int) -> None:
    key = rsa.RSAPublicNumbers(exponent, (1 << bits) - 1).public_key()
    assert "more than 8192 bits" in refused(challenge_pair(["a.test"], AUTHORIZATION, public_key=key).der)


def pair_of(key: object) -> bytes:
    return challenge_pair(["a.test"], AUTHORIZATION, key=key).der
