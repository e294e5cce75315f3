"""The text form of a certificate profile: what keys it has, of which types. Meaning is checked in `profiles`."""

import re
import tomllib
from enum import EnumType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm

MAX_NAMES: Final = 100

Text64 = Annotated[str, Meta(max_length=64)]
Text128 = Annotated[str, Meta(max_length=128)]
Duration = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,6}[smhdw]$")]
KeyUsageName = Literal[
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]
SubjectAttribute = Literal[
    "country", "state", "locality", "organization", "organizational_unit", "serial_number", "given_name", "surname"
]


class NamesFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names that certificates may carry; nothing is allowed that nothing here allows."""

    dns: tuple[str, ...] = ()
    """Exact DNS names."""
    dns_suffixes: tuple[str, ...] = ()
    """Domains: the name itself and every name under it."""
    dns_patterns: tuple[str, ...] = ()
    """Names whose labels are globs: `*` and `?` never pass a dot."""
    ip_networks: tuple[str, ...] = ()
    email_domains: tuple[str, ...] = ()
    """Hosts of mailboxes; with a leading dot, every host under it."""
    uri_prefixes: tuple[str, ...] = ()
    """URIs that begin so; a prefix ends in `/`, or is `urn:...:`."""
    permanent_identifiers: tuple[str, ...] = ()
    """Globs on the identifiers of devices (draft-ietf-acme-device-attest), case and all."""
    hardware_modules: tuple[str, ...] = ()
    """Globs on `SERIAL/TYPE` of hardware modules."""
    device_identifiers: Literal["include", "omit"] = "include"
    """Whether certificates carry the identifiers of the devices, or keep them to the CA."""
    any: bool = False
    """Every name; for front-ends `internal` and `admin` alone."""
    allow_wildcard: bool = False
    allow_subdomain_authorization: bool = False
    """Control of a domain, shown in the DNS, is control of the names below it where a client asks for that (RFC 9444).
    """
    allow_empty: bool = False
    """Certificates without a subjectAltName."""
    max: Annotated[int, Meta(ge=1, le=MAX_NAMES)] = MAX_NAMES
    include_extra_domains: bool = False
    """Add the domains of the setting policy.extra_domains to `dns_suffixes`."""


class SubjectFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The subject: fixed attributes, and what is taken from elsewhere."""

    common_name: Literal["none", "first-dns", "csr"] = "none"
    country: Annotated[str, Meta(pattern=r"^([A-Z]{2})?$")] = ""
    state: Text128 = ""
    locality: Text128 = ""
    organization: Text64 = ""
    organizational_unit: Text64 = ""
    from_csr: tuple[SubjectAttribute, ...] = ()
    """Attributes copied from the CSR's subject where it has them."""


class KeysFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Public keys that certificates may be for."""

    allowed: Annotated[tuple[KeyAlgorithm, ...], Meta(min_length=1)]


class ValidityFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Validity periods, from notBefore to notAfter; `90d`, `12h`, `30m`."""

    default: Duration
    maximum: Duration
    backdate: Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,6})[smhdw]$")] = "1h"
    """How far notBefore lies in the past, against clocks that are slow."""


class ExtraExtensionFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An extension by OID with its value's DER in hexadecimal."""

    oid: str
    der: str
    critical: bool = False


class ExtensionsFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Extensions of the certificate."""

    key_usage: Annotated[tuple[KeyUsageName, ...], Meta(min_length=1)]
    key_usage_rsa: tuple[KeyUsageName, ...] = ()
    """Added for RSA keys."""
    key_usage_ec: tuple[KeyUsageName, ...] = ()
    """Added for keys on NIST curves."""
    extended_key_usage: tuple[str, ...] = ()
    """Names such as `server_auth`, or OIDs."""
    subject_key_identifier: bool = True
    crl_distribution_points: bool = True
    ocsp: bool = True
    ca_issuers: bool = True
    must_staple: bool = False
    """TLS feature status_request (RFC 7633)."""
    ocsp_nocheck: bool = False
    extra: tuple[ExtraExtensionFile, ...] = ()


class ProfileFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One profile file."""

    description: Annotated[str, Meta(max_length=400)] = ""
    issuer: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "issuing"
    frontends: Annotated[tuple[Literal["acme", "est", "scep", "admin", "internal"], ...], Meta(min_length=1)]
    requesters: tuple[str, ...] = ("*",)
    """Globs on the requester's id."""
    approval: Literal["none", "hold"] = "none"
    allow_hold: bool = False
    """Whether certificates may be revoked with certificateHold."""
    pkilint: Literal["shape", "every"] = "shape"
    caa: Literal["off", "log", "enforce"] = "off"
    """Whether DNS records must allow this CA the names that ACME asks for (RFC 8659)."""
    names: NamesFile = NamesFile()
    subject: SubjectFile = SubjectFile()
    keys: KeysFile
    validity: ValidityFile
    extensions: ExtensionsFile


class ProfileBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is stored by content hash: the profile with all that was merged into it."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    format: Literal[1] = 1
    profile: ProfileFile = field()


_AT = re.compile(r" - at `(?:key in )?\$?\.?(?P<path>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")


def parse_profile(text: str, where: str) -> ProfileFile:
    """Read a profile's TOML. ConfigurationError names the key, its value and the remedy."""
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits, brackets in too many brackets
        raise ConfigurationError(where, "syntax", None, f"not TOML: {error}") from None
    try:
        return msgspec.convert(tree, ProfileFile)
    except msgspec.ValidationError as error:
        raise _explain(tree, where, str(error)) from None


def _explain(tree: dict[str, Any], where: str, message: str) -> ConfigurationError:
    found = _AT.search(message)
    path = found["path"] if found else ""
    spec = _spec_at(path)
    unknown = _UNKNOWN.search(message)
    if unknown:
        key = f"{path}.{unknown['field']}".strip(".")
        known = ", ".join(item.name for item in msgspec.structs.fields(spec))
        return ConfigurationError(where, key, None, f"unknown key; known here: {known}")
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit():
            value = value[int(part)]
    if "Invalid enum value" in message:
        choices = list(spec) if isinstance(spec, EnumType) else get_args(spec)
        return ConfigurationError(where, path, value, f"write one of {', '.join(map(str, choices))}")
    remedy = _AT.sub("", message)
    return ConfigurationError(where, path or "file", value, remedy[:1].lower() + remedy[1:])


def _spec_at(path: str) -> Any:
    """The type that stands at a path such as `names.dns[0]`."""
    spec: Any = ProfileFile
    for part in re.findall(r"[^.\[\]]+", path):
        while get_origin(spec) is Annotated:
            spec = get_args(spec)[0]
        if isinstance(spec, type) and issubclass(spec, Struct):
            spec = {item.name: item.type for item in msgspec.structs.fields(spec)}[part]
        else:
            spec = get_args(spec)[0]
    while get_origin(spec) is Annotated:
        spec = get_args(spec)[0]
    return spec
