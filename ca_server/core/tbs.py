"""TBSCertificates: a plan says what a certificate shall hold, `build_tbs` encodes it. Nothing here signs.

The encoding is cryptography's own builder's, with a capturing key (see `capture`). What comes out is unlinted: only
the Linter turns it into something that can be signed.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha1
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID, ObjectIdentifier

from ca_server.core import der
from ca_server.core.capture import capture
from ca_server.core.csr import ParsedCsr
from ca_server.core.der import PublicKey
from ca_server.core.device_names import encode_device_name
from ca_server.domain.certificates import IssuerKey
from ca_server.domain.enrollment import EnrollmentRequest
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profile_rules import CommonName
from ca_server.domain.profiles import Profile

SERIAL_OCTETS: Final = 20
MAX_COMMON_NAME: Final = 64

Extension = tuple[x509.ExtensionType, bool]

ATTRIBUTE_OIDS: Final = {
    "country": NameOID.COUNTRY_NAME,
    "state": NameOID.STATE_OR_PROVINCE_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "common_name": NameOID.COMMON_NAME,
    "given_name": NameOID.GIVEN_NAME,
    "surname": NameOID.SURNAME,
    "serial_number": NameOID.SERIAL_NUMBER,
}
"""Attributes that subjects here may have, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class IssuerUrls:
    """URLs that certificates by one issuer key carry; None leaves one out."""

    crl: str | None
    ocsp: str | None
    ca_issuers: str | None


@dataclass(frozen=True, slots=True)
class CaSubject:
    """The subject of a CA certificate; empty parts are left out."""

    common_name: str
    organization: str = ""
    country: str = ""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs: what a certificate must repeat of its issuer. For a root, of itself."""

    id: int
    algorithm: KeyAlgorithm
    public_key: PublicKey
    key_identifier: bytes
    name: x509.Name
    name_der: bytes
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CaShape:
    """What makes a plan that of a CA certificate."""

    path_length: int | None
    self_signed: bool


@dataclass(frozen=True, slots=True)
class TbsPlan:
    """What a certificate shall hold. `names` are identifiers that were authorized, and nothing else."""

    authority: Authority
    serial: int
    subject: x509.Name
    names: tuple[Identifier, ...]
    public_key: PublicKey
    key_algorithm: KeyAlgorithm
    spki_der: bytes
    not_before: datetime
    not_after: datetime
    urls: IssuerUrls
    extensions: tuple[Extension, ...]
    ca: CaShape | None = None


@dataclass(frozen=True, slots=True)
class UnlintedTbs:
    """An encoded TBSCertificate, and a certificate around it whose signature is a placeholder."""

    tbs_der: bytes
    certificate_der: bytes


def new_serial(random_bytes: bytes) -> int:
    """Make a serial number of 159 random bits from 20 random octets (RFC 5280 section 4.1.2.2: at most 20 octets)."""
    if len(random_bytes) != SERIAL_OCTETS:
        raise ValueError(f"{SERIAL_OCTETS} random octets make a serial number")
    serial = int.from_bytes(random_bytes, "big") >> 1
    if serial.bit_length() < 64:  # noqa: PLR2004
        raise ValueError("this is not random")
    return serial


def build_tbs(plan: TbsPlan) -> UnlintedTbs:
    """Encode a plan."""
    builder = x509.CertificateBuilder(
        issuer_name=plan.authority.name,
        subject_name=plan.subject,
        public_key=plan.public_key,
        serial_number=plan.serial,
        not_valid_before=plan.not_before.replace(tzinfo=None),
        not_valid_after=plan.not_after.replace(tzinfo=None),
    )
    for value, critical in plan.extensions:
        builder = builder.add_extension(value, critical)
    tbs_der, placeholder = capture(plan.authority.public_key, builder.sign)
    return UnlintedTbs(tbs_der, placeholder.public_bytes(Encoding.DER))


def leaf_plan(
    profile: Profile,
    csr: ParsedCsr,
    request: EnrollmentRequest,
    issuer: IssuerKey,
    serial: int,
    now: datetime,
    urls: IssuerUrls,
) -> TbsPlan:
    """Plan an end-entity certificate for a request that policy let pass.

    POLICY_DENIED (`validity.issuer`) where the issuer's own certificate does not cover the validity asked for;
    BAD_PUBLIC_KEY for a key that no profile can allow.
    """
    if csr.key_algorithm is None:
        raise CaError(ErrorKind.BAD_PUBLIC_KEY, "this type or size of key can't be certified", rule="keys.allowed")
    authority = authority_of(issuer)
    names = tuple(name for name in dict.fromkeys(request.identifiers) if profile.names.writes(name))
    subject = _subject(profile, csr, names)
    not_before, not_after = _validity(profile, request, authority, now)
    kept = IssuerUrls(
        crl=urls.crl if profile.extensions.crl_distribution_points else None,
        ocsp=urls.ocsp if profile.extensions.ocsp else None,
        ca_issuers=urls.ca_issuers if profile.extensions.ca_issuers else None,
    )
    extensions = [
        _authority_key_identifier(authority.key_identifier),
        *_usages(profile, csr.key_algorithm),
        *_pointers(kept),
    ]
    if profile.extensions.subject_key_identifier:
        extensions.append((x509.SubjectKeyIdentifier(key_identifier(csr.spki_der)), False))
    if names:
        # RFC 5280 section 4.2.1.6: critical where the subject is empty.
        extensions.append((x509.SubjectAlternativeName([_general_name(name) for name in names]), not subject.rdns))
    return TbsPlan(
        authority=authority,
        serial=serial,
        subject=subject,
        names=names,
        public_key=csr.public_key,
        key_algorithm=csr.key_algorithm,
        spki_der=csr.spki_der,
        not_before=not_before,
        not_after=not_after,
        urls=kept,
        extensions=tuple(extensions),
    )


def ca_plan(
    *,
    subject: CaSubject,
    spki_der: bytes,
    issuer: IssuerKey | None,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    path_length: int | None = None,
    urls: IssuerUrls | None = None,
) -> TbsPlan:
    """Plan a CA certificate; `issuer` None for a self-signed root. Clamped into the issuer's validity.

    `urls` are those of the issuer; a root has none. CONFLICT where the issuer has expired or its path length allows
    no CA below it; ValueError for a key that no KeyAlgorithm names.
    """
    public_key = _load_public_key(spki_der)
    algorithm = der.key_algorithm(public_key)
    if algorithm is None:
        raise ValueError("no KeyAlgorithm for this key")
    name = _ca_name(subject)
    begin, end = not_before.replace(microsecond=0), not_after.replace(microsecond=0)
    own_identifier = key_identifier(spki_der)
    extensions: list[Extension] = [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(frozenset({"key_cert_sign", "crl_sign"})), True),
        (x509.SubjectKeyIdentifier(own_identifier), False),
    ]
    kept = urls if issuer is not None and urls is not None else IssuerUrls(None, None, None)
    if issuer is None:
        authority = Authority(0, algorithm, public_key, own_identifier, name, name.public_bytes(), begin, end)
    else:
        authority = authority_of(issuer)
        _check_path_length(issuer, path_length)
        begin, end = max(begin, authority.not_before), min(end, authority.not_after)
        if begin >= end:
            raise CaError(ErrorKind.CONFLICT, "the issuer's certificate has expired")
    extensions += [_authority_key_identifier(authority.key_identifier), *_pointers(kept)]
    return TbsPlan(
        authority=authority,
        serial=serial,
        subject=name,
        names=(),
        public_key=public_key,
        key_algorithm=algorithm,
        spki_der=spki_der,
        not_before=begin,
        not_after=end,
        urls=kept,
        extensions=tuple(extensions),
        ca=CaShape(path_length, self_signed=issuer is None),
    )


@lru_cache(maxsize=256)
def authority_of(issuer: IssuerKey) -> Authority:
    """What certificates repeat of an issuer, read from its CA certificate."""
    certificate = x509.load_der_x509_certificate(issuer.certificate_der)
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.key_identifier
    return Authority(
        id=issuer.id,
        algorithm=issuer.algorithm,
        public_key=_load_public_key(issuer.spki_der),
        key_identifier=identifier,
        name=certificate.subject,
        name_der=_subject_der(issuer.certificate_der),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _subject_der(certificate_der: bytes) -> bytes:
    """The subject as the certificate has it, byte for byte: names are compared so (RFC 5280 section 7.1)."""
    start, end = der.whole(certificate_der, der.SEQUENCE)
    tbs = next(der.children(certificate_der, start, end))
    fields = [item for item in der.children(certificate_der, tbs[2], tbs[3]) if item[0] != 0xA0]  # noqa: PLR2004
    _tag, offset, _content, stop = fields[4]
    return certificate_der[offset:stop]


def key_identifier(spki_der: bytes) -> bytes:
    """SHA-1 over the BIT STRING's contents (RFC 5280 section 4.2.1.2, method 1): an identifier, not a protection."""
    start, end = der.whole(spki_der, der.SEQUENCE)
    _algorithm, (tag, _offset, content, stop) = der.children(spki_der, start, end)
    if tag != der.BIT_STRING:
        raise der.DerError("not a SubjectPublicKeyInfo")
    return sha1(spki_der[content + 1 : stop], usedforsecurity=False).digest()


@lru_cache(maxsize=256)
def _load_public_key(spki_der: bytes) -> PublicKey:
    public_key = load_der_public_key(spki_der)
    if der.key_algorithm(public_key) is None:
        raise ValueError("no KeyAlgorithm for this key")
    return public_key  # type: ignore[return-value]  # key_algorithm knows the three types of PublicKey alone


def _check_path_length(issuer: IssuerKey, path_length: int | None) -> None:
    """RFC 5280 section 4.2.1.9: so many CAs may follow; a CA below needs a smaller number of its own."""
    certificate = x509.load_der_x509_certificate(issuer.certificate_der)
    allowed = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if allowed is not None and (path_length is None or path_length >= allowed):
        raise CaError(ErrorKind.CONFLICT, f"the issuer's path length {allowed} does not allow this CA below it")


def _validity(
    profile: Profile, request: EnrollmentRequest, authority: Authority, now: datetime
) -> tuple[datetime, datetime]:
    rules = profile.validity
    now = now.replace(microsecond=0)
    begin = request.not_before.replace(microsecond=0) if request.not_before else None
    end = request.not_after.replace(microsecond=0) if request.not_after else None
    outside = CaError(
        ErrorKind.POLICY_DENIED, "the issuer's certificate does not cover this validity", rule="validity.issuer"
    )
    if (begin and begin < authority.not_before) or (end and end > authority.not_after):
        raise outside
    if begin is None:
        begin = now - rules.backdate
        if end is not None:
            begin = max(begin, end - rules.maximum)
        begin = max(begin, authority.not_before)
    if end is None:
        end = min(begin + rules.default, authority.not_after)
    if begin >= end or end <= now:
        raise outside
    return begin, end


def _subject(profile: Profile, csr: ParsedCsr, names: tuple[Identifier, ...]) -> x509.Name:
    rules = profile.subject
    values = dict(rules.fixed)
    if rules.common_name is CommonName.FIRST_DNS:
        fitting = (
            name.value for name in names if name.type is IdentifierType.DNS and len(name.value) <= MAX_COMMON_NAME
        )
        if (first := next(fitting, None)) is not None:
            values["common_name"] = first
    elif rules.common_name is CommonName.CSR and csr.common_name is not None:
        values["common_name"] = csr.common_name
    if rules.from_csr:
        asked = dict(reversed(csr.subject))
        for attribute in rules.from_csr:
            text = asked.get(ATTRIBUTE_OIDS[attribute].dotted_string)
            if text is not None:
                values[attribute] = text
    return _name(values)


def _ca_name(subject: CaSubject) -> x509.Name:
    values = {
        "country": subject.country,
        "organization": subject.organization,
        "common_name": subject.common_name,
    }
    return _name({key: value for key, value in values.items() if value})


def _name(values: dict[str, str]) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(oid, values[key]) for key, oid in ATTRIBUTE_OIDS.items() if key in values])
    except ValueError as error:
        raise CaError(ErrorKind.BAD_CSR, "an attribute of the subject is not valid", rule="csr.subject") from error


def _general_name(name: Identifier) -> x509.GeneralName:
    match name.type:
        case IdentifierType.DNS:
            return x509.DNSName(name.value)
        case IdentifierType.IP:
            return x509.IPAddress(ip_address(name.value))
        case IdentifierType.EMAIL:
            return x509.RFC822Name(name.value)
        case IdentifierType.URI:
            return x509.UniformResourceIdentifier(name.value)
        case IdentifierType.PERMANENT_IDENTIFIER | IdentifierType.HARDWARE_MODULE:
            type_id, value = encode_device_name(name)
            return x509.OtherName(ObjectIdentifier(type_id), value)


@lru_cache(maxsize=64)
def _authority_key_identifier(identifier: bytes) -> Extension:
    return x509.AuthorityKeyIdentifier(identifier, None, None), False


@lru_cache(maxsize=64)
def _pointers(urls: IssuerUrls) -> tuple[Extension, ...]:
    found: list[Extension] = []
    methods = AuthorityInformationAccessOID
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in ((methods.OCSP, urls.ocsp), (methods.CA_ISSUERS, urls.ca_issuers))
        if url is not None
    ]
    if access:
        found.append((x509.AuthorityInformationAccess(access), False))
    if urls.crl is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(urls.crl)], None, None, None)
        found.append((x509.CRLDistributionPoints([point]), False))
    return tuple(found)


@lru_cache(maxsize=256)
def _usages(profile: Profile, algorithm: KeyAlgorithm) -> tuple[Extension, ...]:
    rules = profile.extensions
    found: list[Extension] = [(_key_usage(rules.key_usage_for(algorithm)), True)]
    if rules.extended_key_usage:
        found.append((x509.ExtendedKeyUsage([ObjectIdentifier(oid) for oid in rules.extended_key_usage]), False))
    if rules.must_staple:
        found.append((x509.TLSFeature([x509.TLSFeatureType.status_request]), False))
    if rules.ocsp_nocheck:
        found.append((x509.OCSPNoCheck(), False))
    extra = ((x509.UnrecognizedExtension(ObjectIdentifier(item.oid), item.der), item.critical) for item in rules.extra)
    return (*found, *extra)


def _key_usage(names: frozenset[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in names,
        content_commitment="content_commitment" in names,
        key_encipherment="key_encipherment" in names,
        data_encipherment="data_encipherment" in names,
        key_agreement="key_agreement" in names,
        key_cert_sign="key_cert_sign" in names,
        crl_sign="crl_sign" in names,
        encipher_only="encipher_only" in names,
        decipher_only="decipher_only" in names,
    )
