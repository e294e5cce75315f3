"""Our own lints, run on every certificate before it is signed, in microseconds.

They read the encoded TBSCertificate with a reader of their own and compare it with what request, profile and issuer
call for, encoded here a second time. So an extension that nobody asked for, a name that was not authorized, or a
mistake of the builder shows as a difference of bytes; and what equals known DER is DER.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NoReturn

from ca_server.core import der
from ca_server.core.der import encode, encode_integer, encode_oid
from ca_server.core.tbs import ATTRIBUTE_OIDS, IssuerUrls, TbsPlan, UnlintedTbs, key_identifier
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profile_rules import CommonName
from ca_server.domain.profiles import Profile

MAX_TBS: Final = 48 * 1024
MIN_SERIAL_BITS: Final = 64
MAX_SERIAL_OCTETS: Final = 20

_VERSION_3: Final = bytes.fromhex("a003020102")
_EXTENSIONS: Final = 0xA3
_UTC_TIME_ENDS: Final = 2050
_KEY_USAGE_BITS: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_SUBJECT_LIMITS: Final = {
    "country": 2,
    "state": 128,
    "locality": 128,
    "organization": 64,
    "organizational_unit": 64,
    "common_name": 64,
    "given_name": 32768,
    "surname": 32768,
    "serial_number": 64,
}
"""Upper bounds of RFC 5280 appendix A.1."""
_SUBJECT_OIDS: Final = {
    encode_oid(oid.dotted_string): (name, _SUBJECT_LIMITS[name]) for name, oid in ATTRIBUTE_OIDS.items()
}
_STRING_TAGS: Final = {0x0C: "utf-8", 0x13: "ascii"}

SUBJECT_KEY_IDENTIFIER: Final = encode_oid("2.5.29.14")
KEY_USAGE: Final = encode_oid("2.5.29.15")
SUBJECT_ALTERNATIVE_NAME: Final = encode_oid("2.5.29.17")
BASIC_CONSTRAINTS: Final = encode_oid("2.5.29.19")
CRL_DISTRIBUTION_POINTS: Final = encode_oid("2.5.29.31")
AUTHORITY_KEY_IDENTIFIER: Final = encode_oid("2.5.29.35")
EXTENDED_KEY_USAGE: Final = encode_oid("2.5.29.37")
AUTHORITY_INFORMATION_ACCESS: Final = encode_oid("1.3.6.1.5.5.7.1.1")
TLS_FEATURE: Final = encode_oid("1.3.6.1.5.5.7.1.24")
OCSP_NO_CHECK: Final = encode_oid("1.3.6.1.5.5.7.48.1.5")
_PERMANENT_IDENTIFIER: Final = encode_oid("1.3.6.1.5.5.7.8.3")
_HARDWARE_MODULE_NAME: Final = encode_oid("1.3.6.1.5.5.7.8.4")
_OCSP: Final = encode_oid("1.3.6.1.5.5.7.48.1")
_CA_ISSUERS: Final = encode_oid("1.3.6.1.5.5.7.48.2")

Extensions = dict[bytes, tuple[bool, bytes]]
"""(critical, value) by encoded OID."""


class LintError(CaError):
    """A certificate failed its lints: a mistake of this server's, never the client's to know more of.

    `findings` say what, for the server's log.
    """

    def __init__(self, findings: Iterable[str]) -> None:
        super().__init__(ErrorKind.INTERNAL, "the certificate did not pass its checks", rule="lint")
        self.findings = tuple(findings)

    def __str__(self) -> str:
        return f"{self.detail}: {'; '.join(self.findings)}"


def check(unlinted: UnlintedTbs, plan: TbsPlan, profile: Profile | None) -> tuple[frozenset[bytes], frozenset[str]]:
    """Lint; return the encoded OIDs of the extensions and the attributes of the subject.

    `profile` None for CA certificates. LintError at the first failure.
    """
    try:
        return _check(unlinted, plan, profile)
    except (der.DerError, UnicodeDecodeError) as error:
        raise LintError([f"der: {error}"]) from error


def _check(unlinted: UnlintedTbs, plan: TbsPlan, profile: Profile | None) -> tuple[frozenset[bytes], frozenset[str]]:
    data = unlinted.tbs_der
    if len(data) > MAX_TBS:
        _fail("size", f"{len(data)} octets")
    start, end = der.whole(data, der.SEQUENCE)
    parts = [(tag, data[offset:stop], content, stop) for tag, offset, content, stop in der.children(data, start, end)]
    if len(parts) != 8 or parts[7][0] != _EXTENSIONS:  # noqa: PLR2004
        _fail("structure", "not the eight fields of a version 3 TBSCertificate")
    version, serial, algorithm, issuer, validity, subject, spki, _ = (part[1] for part in parts)
    if version != _VERSION_3:
        _fail("version", "not version 3 (RFC 5280 section 4.1.2.1)")
    _check_serial(serial, plan)
    _check_algorithms(unlinted, algorithm, plan)
    if issuer != (subject if plan.ca and plan.ca.self_signed else plan.authority.name_der):
        _fail("issuer", "not the bytes of the issuer's subject (RFC 5280 section 4.1.2.4)")
    _check_validity(validity, plan, profile)
    attributes = _check_subject(subject, plan, profile)
    if spki != plan.spki_der:
        _fail("public_key", "not the key of the request")
    found = _read_extensions(data, parts[7][2], parts[7][3])
    _compare(
        found, _expected_ca(plan) if profile is None else _expected_leaf(plan, profile, empty_subject=not attributes)
    )
    return frozenset(found), attributes


def _fail(code: str, detail: str) -> NoReturn:
    raise LintError([f"{code}: {detail}"])


def _check_serial(encoded: bytes, plan: TbsPlan) -> None:
    if plan.serial.bit_length() < MIN_SERIAL_BITS:
        _fail("serial", f"fewer than {MIN_SERIAL_BITS} bits")
    if plan.serial.bit_length() >= MAX_SERIAL_OCTETS * 8:
        _fail("serial", f"longer than {MAX_SERIAL_OCTETS} octets (RFC 5280 section 4.1.2.2)")
    if encoded != encode_integer(plan.serial):
        _fail("serial", "not the serial that was drawn")


def _check_algorithms(unlinted: UnlintedTbs, inner: bytes, plan: TbsPlan) -> None:
    expected = der.signature_algorithm(plan.authority.algorithm)
    data = unlinted.certificate_der
    start, end = der.whole(data, der.SEQUENCE)
    tbs, outer, _signature = (data[offset:stop] for _, offset, _, stop in der.children(data, start, end))
    if inner != expected or outer != expected:
        _fail("signature_algorithm", "inner, outer and the issuer's are not the same (RFC 5280 section 4.1.1.2)")
    if tbs != unlinted.tbs_der:
        _fail("tbs", "the certificate that was looked at has another TBSCertificate")


def _check_validity(encoded: bytes, plan: TbsPlan, profile: Profile | None) -> None:
    begin, end = plan.not_before, plan.not_after
    if encoded != encode(der.SEQUENCE, _time(begin), _time(end)):
        _fail("validity", "not the times that were planned, or not as RFC 5280 section 4.1.2.5 writes them")
    if not plan.authority.not_before <= begin < end <= plan.authority.not_after:
        _fail("validity", "not in order, or not inside the issuer's")
    if profile is not None and end - begin > profile.validity.maximum:
        _fail("validity", "longer than the profile allows")


def _time(moment: datetime) -> bytes:
    """UTCTime through 2049, GeneralizedTime from 2050 on; seconds, and Z (RFC 5280 section 4.1.2.5)."""
    if moment.year < _UTC_TIME_ENDS:
        return encode(der.UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return encode(der.GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _check_subject(encoded: bytes, plan: TbsPlan, profile: Profile | None) -> frozenset[str]:
    """Check the subject's attributes: known, once each, within their bounds, and the common name as authorized."""
    start, end = der.whole(encoded, der.SEQUENCE)
    found: dict[str, str] = {}
    for tag, _, content, stop in der.children(encoded, start, end):
        attribute_start, attribute_end = der.whole(encoded[content:stop], der.SEQUENCE)
        base = content + attribute_start
        kind, value = der.children(encoded, base, content + attribute_end)
        name, limit = _SUBJECT_OIDS.get(encoded[kind[1] : kind[3]], ("", 0))
        codec = _STRING_TAGS.get(value[0])
        if tag != der.SET or not name or codec is None or name in found:
            _fail("subject", "an attribute that is unknown, there twice, or of another string type")
        text = encoded[value[2] : value[3]].decode(codec)
        if not 0 < len(text) <= limit or not text.isprintable():
            _fail("subject", f"{name} is empty, too long or has control characters")
        found[name] = text
    if encoded != plan.subject.public_bytes():
        _fail("subject", "not the subject that was planned")
    if profile is None:
        if "common_name" not in found:
            _fail("subject", "a CA has a name (RFC 5280 section 4.1.2.6)")
    else:
        _check_common_name(found.get("common_name"), plan, profile)
    return frozenset(found)


def _check_common_name(common_name: str | None, plan: TbsPlan, profile: Profile) -> None:
    rule = profile.subject.common_name
    if rule is CommonName.NONE and common_name is not None:
        _fail("common_name", "the profile has none")
    if (
        rule is CommonName.FIRST_DNS
        and common_name is not None
        and Identifier(IdentifierType.DNS, common_name) not in plan.names
    ):
        _fail("common_name", "not one of the authorized names")


def _read_extensions(data: bytes, start: int, end: int) -> Extensions:
    inner_start, inner_end = der.whole(data[start:end], der.SEQUENCE)
    found: Extensions = {}
    for tag, _, content, stop in der.children(data, start + inner_start, start + inner_end):
        parts = [
            (kind, data[offset:last], data[body:last]) for kind, offset, body, last in der.children(data, content, stop)
        ]
        critical = len(parts) == 3 and parts[1][1] == b"\x01\x01\xff"  # noqa: PLR2004
        if tag != der.SEQUENCE or len(parts) != 2 + critical or parts[-1][0] != der.OCTET_STRING:
            _fail("extensions", "not well-formed (RFC 5280 section 4.1)")
        oid = parts[0][1]
        if oid in found:
            _fail("extensions", f"{oid.hex()} is there twice (RFC 5280 section 4.2)")
        found[oid] = (critical, parts[-1][2])
    return found


def _compare(found: Extensions, expected: Extensions) -> None:
    if found == expected:
        return
    differing = [oid for oid in (*expected, *found) if found.get(oid) != expected.get(oid)]
    raise LintError(
        f"extension: {_dotted(oid)} {_difference(found, expected, oid)}" for oid in dict.fromkeys(differing)
    )


def _dotted(oid: bytes) -> str:
    return der.decode_oid(oid[2:])


def _difference(found: Extensions, expected: Extensions, oid: bytes) -> str:
    if oid not in found:
        return "is missing"
    if oid not in expected:
        return "was not called for"
    return "has another criticality" if found[oid][1] == expected[oid][1] else "has another value"


def _expected_leaf(plan: TbsPlan, profile: Profile, *, empty_subject: bool) -> Extensions:
    expected = dict(_static_leaf(profile, plan.key_algorithm, plan.authority.key_identifier, plan.urls))
    if profile.extensions.subject_key_identifier:
        expected[SUBJECT_KEY_IDENTIFIER] = (False, encode(der.OCTET_STRING, key_identifier(plan.spki_der)))
    if plan.names:
        if len(set(plan.names)) != len(plan.names) or len(plan.names) > profile.names.max:
            _fail("names", "a name twice, or more than the profile allows")
        names = encode(der.SEQUENCE, *(_general_name(name) for name in plan.names))
        expected[SUBJECT_ALTERNATIVE_NAME] = (empty_subject, names)
        if profile.names.omits_devices and any(name.is_device for name in plan.names):
            _fail("names", "a device that the profile leaves out")
    elif empty_subject or not (profile.names.allow_empty or profile.names.omits_devices):
        _fail("names", "neither subject nor names")
    return expected


@lru_cache(maxsize=256)
def _static_leaf(
    profile: Profile, algorithm: KeyAlgorithm, issuer_key_identifier: bytes, urls: IssuerUrls
) -> tuple[tuple[bytes, tuple[bool, bytes]], ...]:
    """What does not change from one certificate to the next."""
    rules = profile.extensions
    expected: Extensions = {
        AUTHORITY_KEY_IDENTIFIER: (False, encode(der.SEQUENCE, encode(0x80, issuer_key_identifier))),
        KEY_USAGE: (True, _key_usage(rules.key_usage_for(algorithm))),
        **_pointers(urls),
    }
    if rules.extended_key_usage:
        expected[EXTENDED_KEY_USAGE] = (False, encode(der.SEQUENCE, *map(encode_oid, rules.extended_key_usage)))
    if rules.must_staple:
        expected[TLS_FEATURE] = (False, encode(der.SEQUENCE, encode_integer(5)))
    if rules.ocsp_nocheck:
        expected[OCSP_NO_CHECK] = (False, encode(der.NULL))
    for extra in rules.extra:
        expected[encode_oid(extra.oid)] = (extra.critical, extra.der)
    return tuple(expected.items())


def _expected_ca(plan: TbsPlan) -> Extensions:
    if plan.ca is None:
        _fail("profile", "an end-entity certificate needs its profile")
    length = b"" if plan.ca.path_length is None else encode_integer(plan.ca.path_length)
    expected: Extensions = {
        BASIC_CONSTRAINTS: (True, encode(der.SEQUENCE, b"\x01\x01\xff", length)),
        KEY_USAGE: (True, _key_usage(frozenset({"key_cert_sign", "crl_sign"}))),
        SUBJECT_KEY_IDENTIFIER: (False, encode(der.OCTET_STRING, key_identifier(plan.spki_der))),
        AUTHORITY_KEY_IDENTIFIER: (False, encode(der.SEQUENCE, encode(0x80, plan.authority.key_identifier))),
        **_pointers(plan.urls),
    }
    return expected


def _pointers(urls: IssuerUrls) -> Extensions:
    expected: Extensions = {}
    access = [
        encode(der.SEQUENCE, method, encode(0x86, url.encode("ascii")))
        for method, url in ((_OCSP, urls.ocsp), (_CA_ISSUERS, urls.ca_issuers))
        if url is not None
    ]
    if access:
        expected[AUTHORITY_INFORMATION_ACCESS] = (False, encode(der.SEQUENCE, *access))
    if urls.crl is not None:
        full_name = encode(0xA0, encode(0xA0, encode(0x86, urls.crl.encode("ascii"))))
        expected[CRL_DISTRIBUTION_POINTS] = (False, encode(der.SEQUENCE, encode(der.SEQUENCE, full_name)))
    return expected


def _key_usage(names: frozenset[str]) -> bytes:
    """A named bit list: no trailing zero bits (X.690 section 11.2.2)."""
    bits = [index for index, name in enumerate(_KEY_USAGE_BITS) if name in names]
    length = bits[-1] + 1
    octets = (length + 7) // 8
    value = sum(1 << (octets * 8 - 1 - index) for index in bits)
    return encode(der.BIT_STRING, bytes((octets * 8 - length,)), value.to_bytes(octets, "big"))


def _general_name(name: Identifier) -> bytes:
    match name.type:
        case IdentifierType.DNS:
            return encode(0x82, name.value.encode("ascii"))
        case IdentifierType.IP:
            return encode(0x87, ip_address(name.value).packed)
        case IdentifierType.EMAIL:
            return encode(0x81, name.value.encode("ascii"))
        case IdentifierType.URI:
            return encode(0x86, name.value.encode("ascii"))
        case IdentifierType.PERMANENT_IDENTIFIER:
            number, _, assigner = name.value.partition("/")
            optional = encode_oid(assigner) if assigner else b""
            value = encode(der.SEQUENCE, encode(der.UTF8_STRING, number.encode()), optional)
            return encode(0xA0, _PERMANENT_IDENTIFIER, encode(0xA0, value))
        case IdentifierType.HARDWARE_MODULE:
            serial, _, hardware = name.value.partition("/")
            value = encode(der.SEQUENCE, encode_oid(hardware), encode(der.OCTET_STRING, serial.encode()))
            return encode(0xA0, _HARDWARE_MODULE_NAME, encode(0xA0, value))
