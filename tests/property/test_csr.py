"""Hostile CSRs: whatever the bytes, parse_csr returns a ParsedCsr or raises CaError, and nothing else."""

import warnings
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca_server.core.csr import ParsedCsr, parse_csr
from ca_server.core.der import SEQUENCE, DerError, assemble, children, decode_oid, encode, encode_oid, read
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm

ACCEPTED = {ErrorKind.BAD_CSR, ErrorKind.BAD_PUBLIC_KEY}


@cache
def keys():
    return (
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    )


@cache
def samples() -> tuple[bytes, ...]:
    made = []
    for key in keys():
        digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, "a.test"), x509.NameAttribute(NameOID.COUNTRY_NAME, "CH")]
        )
        names = x509.SubjectAlternativeName([x509.DNSName("a.test"), x509.RFC822Name("u@a.test")])
        builder = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(subject)
            .add_extension(names, critical=False)
            .add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"secret")
        )
        made.append(builder.sign(key, digest).public_bytes(Encoding.DER))
    return tuple(made)


def judge(der: bytes) -> ParsedCsr | None:
    """The parsed request, or None where it was refused as it should be; warnings count as failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            outcome: ParsedCsr | CaError = parse_csr(der)
        except CaError as error:
            outcome = error
    if isinstance(outcome, CaError):
        assert outcome.kind in ACCEPTED
        assert outcome.rule
        return None
    return outcome


def resigned(info: bytes) -> bytes:
    """The same garbage with a valid signature: what comes after the signature's check is reached."""
    key = keys()[0]
    return assemble(info, KeyAlgorithm.P256, key.sign(info, ec.ECDSA(SHA256())))


@given(st.binary(max_size=600))
def test_arbitrary_bytes(data):
    assert judge(data) is None
    assert judge(encode(SEQUENCE, data)) is None


@given(st.integers(0, 2), st.data())
@settings(deadline=None)
def test_mutated_requests(index, data):
    der = bytearray(samples()[index])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(der) - 1))
        action = data.draw(st.sampled_from(["set", "delete", "insert"]))
        if action == "set":
            der[position] = data.draw(st.integers(0, 255))
        elif action == "delete":
            del der[position]
        else:
            der.insert(position, data.draw(st.integers(0, 255)))
    judge(bytes(der))


@given(st.data())
@settings(deadline=None)
def test_mutated_and_signed_again(data):
    der = samples()[0]
    _, start, _ = read(der)
    _, _, stop = read(der, start)
    info = bytearray(der[start:stop])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(4, len(info) - 1))
        info[position] = data.draw(st.integers(0, 255))
    judge(resigned(bytes(info)))


@given(
    st.lists(st.tuples(st.sampled_from([0x81, 0x82, 0x86, 0x87, 0x88, 0xA0, 0xA4]), st.binary(max_size=40)), max_size=5)
)
@settings(deadline=None)
def test_arbitrary_names_under_a_valid_signature(names):
    value = encode(SEQUENCE, *(encode(tag, body) for tag, body in names))
    extension = encode(SEQUENCE, encode_oid("2.5.29.17"), encode(0x04, value))
    request = encode(SEQUENCE, encode_oid("1.2.840.113549.1.9.14"), encode(0x31, encode(SEQUENCE, extension)))
    der = samples()[0]
    _, start, _ = read(der)
    _, info_start, info_stop = read(der, start)
    parts = [der[offset:stop] for _, offset, _, stop in children(der, info_start, info_stop)]
    parsed = judge(resigned(encode(SEQUENCE, *parts[:3], encode(0xA0, request))))
    if parsed is not None:
        assert len(parsed.alternative_names) == len(set(parsed.alternative_names)) <= len(names)


@given(st.text(max_size=80))
@settings(deadline=None)
def test_any_common_name(text):
    encoded = text.encode("utf-8", "replace")
    subject = encode(SEQUENCE, encode(0x31, encode(SEQUENCE, encode_oid("2.5.4.3"), encode(0x0C, encoded))))
    der = samples()[0]
    _, start, _ = read(der)
    _, info_start, info_stop = read(der, start)
    parts = [der[offset:stop] for _, offset, _, stop in children(der, info_start, info_stop)]
    parsed = judge(resigned(encode(SEQUENCE, parts[0], subject, parts[2], encode(0xA0))))
    assert parsed is not None
    assert parsed.common_name == encoded.decode()


@given(st.binary(max_size=200))
def test_reader_never_leaves_its_bounds(data):
    try:
        for _tag, offset, content, stop in children(data, 0, len(data)):
            assert 0 <= offset < content <= stop <= len(data)
    except DerError:
        pass


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=10), st.integers(0, 2), st.integers(0, 39))
def test_object_identifiers_round_trip(arcs, first, second):
    dotted = ".".join(map(str, (first, second, *arcs)))
    assert decode_oid(encode_oid(dotted)[2:]) == dotted


@pytest.mark.parametrize("text", ["", "1", "3.1", "1.40", "a.b", "1.-2"])
def test_object_identifiers_that_are_none(text):
    with pytest.raises(DerError):
        encode_oid(text)
