"""CSRs (RFC 2986): what is accepted, and each way to be refused."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_server.core.csr import parse_csr
from ca_server.core.der import SEQUENCE, assemble, children, encode, encode_integer, encode_oid, whole
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType, dns_identifier, email_identifier, ip_identifier

A, B = dns_identifier("a.test"), dns_identifier("b.test")


def refused(der: bytes, rule: str, kind: ErrorKind = ErrorKind.BAD_CSR) -> CaError:
    with pytest.raises(CaError) as caught:
        parse_csr(der)
    assert (caught.value.kind, caught.value.rule) == (kind, rule)
    return caught.value


def self_signed(support, info: bytes) -> bytes:
    key = support.make_key(KeyAlgorithm.P256)
    return assemble(info, KeyAlgorithm.P256, support.sign(key, info))


def info_of(support, *, version=0, subject=b"", attributes=b"") -> bytes:
    spki = support.spki(support.make_key(KeyAlgorithm.P256))
    return encode(SEQUENCE, encode_integer(version), encode(SEQUENCE, subject), spki, encode(0xA0, attributes))


def common_name(text: bytes, tag: int = 0x0C) -> bytes:
    return encode(0x31, encode(SEQUENCE, encode_oid("2.5.4.3"), encode(tag, text)))


def extension_request(*extensions: bytes, oid: str = "1.2.840.113549.1.9.14") -> bytes:
    return encode(SEQUENCE, encode_oid(oid), encode(0x31, encode(SEQUENCE, *extensions)))


def san(*names: bytes) -> bytes:
    return encode(SEQUENCE, encode_oid("2.5.29.17"), encode(0x04, encode(SEQUENCE, *names)))


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_every_key_algorithm_parses(support, algorithm):
    key = support.make_key(algorithm)
    parsed = parse_csr(support.make_csr(key, (A,)))
    assert parsed.key_algorithm is algorithm
    assert parsed.spki_der == support.spki(key)
    assert parsed.identifiers == (A,)


def test_names_of_all_kinds_canonical_and_without_duplicates(support):
    key = support.make_key(KeyAlgorithm.P256)
    names = (Identifier(IdentifierType.DNS, "A.TEST"), A, ip_identifier("10.0.0.1"), email_identifier("u@A.test"))
    uri = Identifier(IdentifierType.URI, "spiffe://a.test/x")
    parsed = parse_csr(support.make_csr(key, (*names, uri), common_name="B.test"))
    assert parsed.alternative_names == (A, ip_identifier("10.0.0.1"), email_identifier("u@a.test"), uri)
    assert parsed.identifiers[0] == B
    assert parsed.common_name == "B.test"


@pytest.mark.parametrize(
    ("text", "identifier"),
    [("10.0.0.1", ip_identifier("10.0.0.1")), ("A.test", A), ("printer 7", None), ("no_name.test", None)],
)
def test_common_name_counts_where_it_is_a_name(support, text, identifier):
    parsed = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (), common_name=text))
    assert parsed.identifiers == ((identifier,) if identifier else ())


def test_subject_attributes_are_read(support):
    parsed = parse_csr(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,), ORGANIZATION_NAME="Ünïcode AG"))
    assert parsed.subject == ((NameOID.ORGANIZATION_NAME.dotted_string, "Ünïcode AG"),)


def test_signature_must_verify(support):
    der = bytearray(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,)))
    der[der.index(b"a.test")] ^= 1
    refused(bytes(der), "csr.signature")


def test_a_key_of_another_is_no_possession(support):
    info = info_of(support)
    stolen = assemble(info, KeyAlgorithm.P256, support.sign(support.make_key(KeyAlgorithm.P256, 9), info))
    refused(stolen, "csr.signature")


@pytest.mark.parametrize(
    "oid",
    ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5", "1.2.840.10045.4.1", "1.3.101.112", "1.2.3.4"],
    ids=["md5WithRSA", "sha1WithRSA", "ecdsa-with-SHA1", "another key's", "unknown"],
)
def test_signature_algorithms_that_prove_nothing(support, oid):
    info = info_of(support)
    refused(encode(SEQUENCE, info, encode(SEQUENCE, encode_oid(oid)), b"\x03\x02\x00\x01"), "csr.signature_algorithm")


@pytest.mark.parametrize("make", [ed448.Ed448PrivateKey.generate, lambda: dsa.generate_private_key(2048)])
def test_other_kinds_of_keys(make):
    key = make()
    digest = None if isinstance(key, ed448.Ed448PrivateKey) else hashes.SHA256()
    der = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    refused(der.public_bytes(Encoding.DER), "keys.type", ErrorKind.BAD_PUBLIC_KEY)


def test_curves_without_a_name_here_are_left_to_the_key_check(support):
    key = ec.generate_private_key(ec.SECP256K1())
    der = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    assert parse_csr(der.public_bytes(Encoding.DER)).key_algorithm is None


def test_point_off_the_curve(support):
    der = bytearray(info_of(support))
    der[-3] ^= 1
    refused(self_signed(support, bytes(der)), "keys.invalid", ErrorKind.BAD_PUBLIC_KEY)


def test_huge_rsa_key_is_refused_before_anything_is_computed_with_it(support):
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n | 1 << 8300
    public = encode(SEQUENCE, encode_integer(modulus), encode_integer(65537))
    spki = encode(SEQUENCE, bytes.fromhex("300d06092a864886f70d0101010500"), encode(0x03, b"\x00", public))
    info = encode(SEQUENCE, encode_integer(0), encode(SEQUENCE), spki, encode(0xA0))
    der = assemble(info, KeyAlgorithm.RSA2048, b"\x01" * 1038)
    refused(der, "keys.size", ErrorKind.BAD_PUBLIC_KEY)


MALFORMED = {
    "empty": lambda _der: b"",
    "truncated": lambda der: der[:-1],
    "trailing": lambda der: der + b"\x00",
    "indefinite": lambda der: b"\x30\x80" + der[3:] + b"\x00\x00",
    "PEM": lambda _der: b"-----BEGIN CERTIFICATE REQUEST-----",
    "not minimal": lambda der: b"\x30\x82\x00" + der[2:],
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(support, change):
    refused(change(support.make_csr(support.make_key(KeyAlgorithm.P256), (A,))), "csr.der")


def test_too_large(support):
    refused(b"\x30" * 65_537, "csr.size")


@pytest.mark.parametrize("version", [1, 3, 512])
def test_version(support, version):
    refused(self_signed(support, info_of(support, version=version)), "csr.der")


def test_the_version_that_some_clients_mistake_is_taken(support):
    """The gem acme-client writes 2, as in a certificate; the signature covers what was written."""
    info = info_of(support, version=2, attributes=extension_request(san(encode(0x82, b"a.test"))))
    csr = self_signed(support, info)
    assert parse_csr(csr).identifiers == (A,)
    assert parse_csr(csr).der == csr
    refused(csr[: len(csr) - 1] + bytes([csr[-1] ^ 1]), "csr.signature")
    correct = info_of(support, attributes=extension_request(san(encode(0x82, b"a.test"))))
    signature = csr[csr.index(info) + len(info) :]
    refused(encode(SEQUENCE, correct, signature), "csr.signature")


DUPLICATES = {
    "attribute": (extension_request(san(encode(0x82, b"a.test"))) * 2, "csr.attributes"),
    "microsoft's beside": (
        extension_request(san(encode(0x82, b"a.test")))
        + extension_request(san(encode(0x82, b"b.test")), oid="1.3.6.1.4.1.311.2.1.14"),
        "csr.attributes",
    ),
    "extension": (extension_request(san(encode(0x82, b"a.test")), san(encode(0x82, b"b.test"))), "csr.extensions"),
}


@pytest.mark.parametrize(("attributes", "rule"), DUPLICATES.values(), ids=DUPLICATES.keys())
def test_duplicates(support, attributes, rule):
    refused(self_signed(support, info_of(support, attributes=attributes)), rule)


NAMES = {
    "underscore": encode(0x82, b"a_b.test"),
    "trailing dot": encode(0x82, b"a.test."),
    "inner wildcard": encode(0x82, b"a.*.test"),
    "empty": encode(0x82, b""),
    "NUL": encode(0x82, b"a.test\x00.b.test"),
    "directory name": encode(0xA4, encode(SEQUENCE)),
    "registered id": encode(0x88, b"\x2a\x03"),
    "mailbox": encode(0x81, b"nobody"),
    "relative URI": encode(0x86, b"/x"),
    "too many": b"".join(encode(0x82, f"h{n}.test".encode()) for n in range(101)),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_that_no_certificate_here_carries(support, name):
    refused(self_signed(support, info_of(support, attributes=extension_request(san(name)))), "csr.names")


def test_address_of_five_octets(support):
    attributes = extension_request(san(encode(0x87, b"\x0a\x00\x00\x01\x02")))
    refused(self_signed(support, info_of(support, attributes=attributes)), "csr.extensions")


SUBJECTS = {
    "two common names": (common_name(b"a.test") + common_name(b"b.test"), "csr.common_name"),
    "two in one RDN": (
        encode(0x31, common_name(b"a.test")[2:] + common_name(b"b.test")[2:]),
        "csr.common_name",
    ),
    "not text": (common_name(b"\x01", tag=0x02), "csr.subject"),
    "not UTF-8": (common_name(b"\xff\xfe"), "csr.subject"),
    "33 attributes": (common_name(b"a") * 33, "csr.subject"),
}


@pytest.mark.parametrize(("subject", "rule"), SUBJECTS.values(), ids=SUBJECTS.keys())
@pytest.mark.filterwarnings("error")
def test_subjects(support, subject, rule):
    refused(self_signed(support, info_of(support, subject=subject)), rule)


@pytest.mark.filterwarnings("error")
def test_a_long_attribute_is_no_warning(support):
    parsed = parse_csr(self_signed(support, info_of(support, subject=common_name(b"x" * 4000))))
    assert len(parsed.common_name) == 4000


def test_bmp_string(support):
    parsed = parse_csr(self_signed(support, info_of(support, subject=common_name("a.test".encode("utf-16-be"), 0x1E))))
    assert parsed.identifiers == (A,)


def test_bad_names_are_told_of_without_echo_of_bytes(support):
    attributes = extension_request(san(encode(0x82, b"evil\x1b[31m")))
    error = refused(self_signed(support, info_of(support, attributes=attributes)), "csr.names")
    assert "\x1b" not in error.detail


def test_children_reads_what_encode_wrote():
    data = encode(SEQUENCE, encode_integer(1), encode(0x04, b"x" * 300))
    start, end = whole(data, SEQUENCE)
    assert [(tag, stop - content) for tag, _, content, stop in children(data, start, end)] == [(2, 1), (4, 300)]
