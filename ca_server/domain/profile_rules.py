"""The rules of a certificate profile, and how they are made from its text: every limit cites what it comes from."""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, InvalidNameError, dns_identifier
from ca_server.domain.profile_schema import MAX_NAMES, ExtensionsFile, NamesFile, ProfileFile, SubjectFile

EXTENDED_KEY_USAGES: Final = {
    "server_auth": "1.3.6.1.5.5.7.3.1",
    "client_auth": "1.3.6.1.5.5.7.3.2",
    "code_signing": "1.3.6.1.5.5.7.3.3",
    "email_protection": "1.3.6.1.5.5.7.3.4",
    "time_stamping": "1.3.6.1.5.5.7.3.8",
    "ocsp_signing": "1.3.6.1.5.5.7.3.9",
}
_TLS: Final = {EXTENDED_KEY_USAGES["server_auth"], EXTENDED_KEY_USAGES["client_auth"]}
_TRUSTED_FRONTENDS: Final = {"internal", "admin"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_VALIDITY: Final = timedelta(days=36_525)
_MAX_BACKDATE: Final = timedelta(days=2)
_MAX_EXTRA_DER: Final = 4096
_MAX_LIST: Final = 10_000
_MAX_DEVICE_GLOB: Final = 400
_OID = re.compile(r"(?:[01]\.(?:[0-9]|[1-3][0-9])|2\.(?:0|[1-9][0-9]{0,8}))(?:\.(?:0|[1-9][0-9]{0,18})){1,20}")
_GLOB_LABEL = re.compile(r"[a-z0-9*?]([a-z0-9*?-]{0,61}[a-z0-9*?])?")
_OWN_EXTENSIONS: Final = frozenset(
    {
        "2.5.29.14",
        "2.5.29.15",
        "2.5.29.17",
        "2.5.29.19",
        "2.5.29.31",
        "2.5.29.35",
        "2.5.29.37",
        "1.3.6.1.5.5.7.1.1",
        "1.3.6.1.5.5.7.1.24",
        "1.3.6.1.5.5.7.48.1.5",
    }
)


class Approval(StrEnum):
    """Whether a person must approve each request."""

    NONE = "none"
    HOLD = "hold"


class PkilintMode(StrEnum):
    """When pkilint looks at a certificate: for each new shape, or each time."""

    SHAPE = "shape"
    EVERY = "every"


class CaaMode(StrEnum):
    """What CAA records (RFC 8659) mean for ACME's requests; the later, the stricter."""

    OFF = "off"
    LOG = "log"
    """Looked at and on record, and nothing is refused."""
    ENFORCE = "enforce"

    def stricter(self, other: "CaaMode") -> "CaaMode":
        """The stricter of two."""
        return max(self, other, key=list(CaaMode).index)


class CommonName(StrEnum):
    """Where the subject's common name comes from."""

    NONE = "none"
    FIRST_DNS = "first-dns"
    CSR = "csr"


@dataclass(frozen=True, slots=True)
class NameRules:
    """Names that are allowed, ready for look-up; DNS names are canonical."""

    dns: frozenset[str]
    dns_suffixes: frozenset[str]
    dns_patterns: tuple[tuple[str, ...], ...]
    """Globs by label."""
    ip_networks: tuple[IPv4Network | IPv6Network, ...]
    email_domains: frozenset[str]
    uri_prefixes: tuple[str, ...]
    permanent_identifiers: tuple[str, ...]
    hardware_modules: tuple[str, ...]
    omits_devices: bool
    """Devices are validated, and their names not written into certificates."""
    any: bool
    allow_wildcard: bool
    allow_subdomain_authorization: bool
    allow_empty: bool
    max: int

    def writes(self, name: Identifier) -> bool:
        """Whether a certificate says this name that its request was authorized for."""
        return not (self.omits_devices and name.is_device)


@dataclass(frozen=True, slots=True)
class SubjectRules:
    """The subject's template; `fixed` and `from_csr` are attribute names of the profile's text form."""

    common_name: CommonName
    fixed: tuple[tuple[str, str], ...]
    from_csr: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ValidityRules:
    """Periods from notBefore to notAfter (RFC 5280 section 4.1.2.5)."""

    default: timedelta
    maximum: timedelta
    backdate: timedelta


@dataclass(frozen=True, slots=True)
class ExtraExtension:
    """An extension that the profile adds as it is."""

    oid: str
    critical: bool
    der: bytes


@dataclass(frozen=True, slots=True)
class ExtensionRules:
    """Extensions of an end-entity certificate; usages are names as in the profile's text form, EKUs are OIDs."""

    key_usage: frozenset[str]
    key_usage_rsa: frozenset[str]
    key_usage_ec: frozenset[str]
    extended_key_usage: tuple[str, ...]
    subject_key_identifier: bool
    crl_distribution_points: bool
    ocsp: bool
    ca_issuers: bool
    must_staple: bool
    ocsp_nocheck: bool
    extra: tuple[ExtraExtension, ...]

    def key_usage_for(self, algorithm: KeyAlgorithm) -> frozenset[str]:
        """The key usages of a certificate for a key of this algorithm."""
        if algorithm.is_rsa:
            return self.key_usage | self.key_usage_rsa
        if algorithm is KeyAlgorithm.ED25519:
            return self.key_usage
        return self.key_usage | self.key_usage_ec


def parse_duration(text: str) -> timedelta:
    """Read `90d`, `12h`, `30m`, `10s`, `2w`."""
    return timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])


class ProfileChecks:
    """Makes rules of a profile's text. Each method raises ConfigurationError at the first thing that can't be."""

    def __init__(self, where: str, file: ProfileFile) -> None:
        self._where = where
        self._file = file

    def _fail(self, key: str, value: object, remedy: str) -> ConfigurationError:
        return ConfigurationError(self._where, key, value, remedy)

    def caa(self) -> CaaMode:
        """What CAA means; for ACME alone."""
        mode = CaaMode(self._file.caa)
        if mode is not CaaMode.OFF and "acme" not in self._file.frontends:
            raise self._fail("caa", mode.value, "only with frontend acme: nothing else looks at CAA records")
        return mode

    def domain(self, text: str, key: str) -> str:
        """Check a domain under setting `key`; a dot before it means nothing."""
        try:
            return dns_identifier(text.removeprefix("."), wildcard=False).value
        except InvalidNameError as error:
            raise self._fail(key, text, f"write a domain such as example.com ({error})") from None

    def names(self, names: NamesFile) -> NameRules:
        """Names that are allowed."""
        lists = (
            names.dns,
            names.dns_suffixes,
            names.dns_patterns,
            names.ip_networks,
            names.email_domains,
            names.uri_prefixes,
            names.permanent_identifiers,
            names.hardware_modules,
        )
        if sum(map(len, lists)) > _MAX_LIST:
            raise self._fail("names", None, f"at most {_MAX_LIST} entries in all")
        if names.any and not set(self._file.frontends) <= _TRUSTED_FRONTENDS:
            raise self._fail(
                "names.any", True, "only with frontends internal and admin; elsewhere list what is allowed"
            )
        if not names.any and not names.allow_empty and not any(lists) and not names.include_extra_domains:
            raise self._fail("names", None, "allow some names (dns_suffixes, ip_networks, ...) or set allow_empty")
        return NameRules(
            dns=frozenset(self._dns(text) for text in names.dns),
            dns_suffixes=frozenset(self.domain(text, "names.dns_suffixes") for text in names.dns_suffixes),
            dns_patterns=tuple(self._pattern(text) for text in names.dns_patterns),
            ip_networks=tuple(self._network(text) for text in names.ip_networks),
            email_domains=frozenset(
                text[: text.startswith(".")] + self.domain(text, "names.email_domains") for text in names.email_domains
            ),
            uri_prefixes=tuple(self._uri_prefix(text) for text in names.uri_prefixes),
            permanent_identifiers=self._device_globs(names.permanent_identifiers, "names.permanent_identifiers"),
            hardware_modules=self._device_globs(names.hardware_modules, "names.hardware_modules"),
            omits_devices=names.device_identifiers == "omit",
            any=names.any,
            allow_wildcard=names.allow_wildcard,
            allow_subdomain_authorization=names.allow_subdomain_authorization,
            allow_empty=names.allow_empty,
            max=min(names.max, MAX_NAMES),
        )

    def _dns(self, text: str) -> str:
        try:
            return dns_identifier(text).value
        except InvalidNameError as error:
            raise self._fail("names.dns", text, f"write a DNS name ({error})") from None

    def _pattern(self, text: str) -> tuple[str, ...]:
        labels = tuple(text.split("."))
        if not all(_GLOB_LABEL.fullmatch(label) for label in labels):
            raise self._fail("names.dns_patterns", text, "labels of a-z, 0-9, '-', '*' and '?' with dots between them")
        if any(set(label) <= {"*", "?"} for label in labels[-2:]):
            raise self._fail("names.dns_patterns", text, "the last two labels need a fixed character each")
        return labels

    def _network(self, text: str) -> IPv4Network | IPv6Network:
        try:
            return ip_network(text)
        except ValueError as error:
            raise self._fail("names.ip_networks", text, f"write a network such as 10.0.0.0/8 ({error})") from None

    def _uri_prefix(self, text: str) -> str:
        scheme, colon, rest = text.partition(":")
        hierarchical = rest.startswith("//") and rest.endswith("/") and len(rest.strip("/")) > 0
        if not colon or not text.isascii() or not (hierarchical or (scheme == "urn" and rest.endswith(":"))):
            raise self._fail("names.uri_prefixes", text, "write scheme://host/ with a slash at the end, or urn:NAME:")
        return text

    def _device_globs(self, globs: tuple[str, ...], key: str) -> tuple[str, ...]:
        for glob in globs:
            if not 0 < len(glob) <= _MAX_DEVICE_GLOB or not glob.isprintable():
                raise self._fail(key, glob, f"1 to {_MAX_DEVICE_GLOB} printable characters; `*` and `?` are wild")
        return globs

    def subject(self, subject: SubjectFile) -> SubjectRules:
        """The subject's template."""
        attributes = ("country", "state", "locality", "organization", "organizational_unit")
        fixed = tuple((name, getattr(subject, name)) for name in attributes if getattr(subject, name))
        for name, value in fixed:
            if name in subject.from_csr:
                raise self._fail("subject.from_csr", name, f"{name} is fixed in this profile; keep one of the two")
            if not value.isprintable() or value != value.strip():
                raise self._fail(f"subject.{name}", value, "printable text without space at its ends")
        if self._file.names.allow_empty and subject.common_name != "csr" and not fixed:
            raise self._fail(
                "names.allow_empty",
                True,
                "a certificate needs a subject where it has no names (RFC 5280 section 4.1.2.6); "
                "set subject.common_name = 'csr' or fixed attributes",
            )
        if self._file.names.device_identifiers == "omit" and (
            subject.common_name == "csr" or "serial_number" in subject.from_csr or not fixed
        ):
            raise self._fail(
                "names.device_identifiers",
                "omit",
                "only with a fixed attribute in [subject], and without common_name = 'csr' and serial_number from the "
                "CSR, which would say what is left out",
            )
        return SubjectRules(CommonName(subject.common_name), fixed, tuple(dict.fromkeys(subject.from_csr)))

    def validity(self) -> ValidityRules:
        """Validity periods."""
        raw = self._file.validity
        default, maximum, backdate = map(parse_duration, (raw.default, raw.maximum, raw.backdate))
        if default > maximum:
            raise self._fail("validity.default", raw.default, f"at most validity.maximum, {raw.maximum}")
        if maximum > _MAX_VALIDITY:
            raise self._fail("validity.maximum", raw.maximum, f"at most {_MAX_VALIDITY.days}d")
        if backdate > _MAX_BACKDATE or backdate >= default:
            raise self._fail("validity.backdate", raw.backdate, "at most 2d, and less than validity.default")
        return ValidityRules(default, maximum, backdate)

    def extensions(self, extensions: ExtensionsFile) -> ExtensionRules:
        """Extensions and usages."""
        self._key_usages(extensions)
        usages = tuple(dict.fromkeys(self._extended_key_usage(text) for text in extensions.extended_key_usage))
        self._responder(extensions, usages)
        base = set(extensions.key_usage)
        every = base | set(extensions.key_usage_rsa) | set(extensions.key_usage_ec)
        if _TLS & set(usages) and not every & {"digital_signature", "key_encipherment", "key_agreement"}:
            raise self._fail(
                "extensions.key_usage",
                list(extensions.key_usage),
                "TLS needs digital_signature, key_encipherment or key_agreement (RFC 5280 section 4.2.1.12)",
            )
        return ExtensionRules(
            key_usage=frozenset(base),
            key_usage_rsa=frozenset(extensions.key_usage_rsa),
            key_usage_ec=frozenset(extensions.key_usage_ec),
            extended_key_usage=usages,
            subject_key_identifier=extensions.subject_key_identifier,
            crl_distribution_points=extensions.crl_distribution_points,
            ocsp=extensions.ocsp,
            ca_issuers=extensions.ca_issuers,
            must_staple=extensions.must_staple,
            ocsp_nocheck=extensions.ocsp_nocheck,
            extra=self._extra(extensions),
        )

    def _key_usages(self, extensions: ExtensionsFile) -> None:
        allowed = self._file.keys.allowed
        has_ec = any(key.value.startswith("ec-") for key in allowed)
        has_ed25519 = KeyAlgorithm.ED25519 in allowed
        rules: tuple[tuple[str, tuple[str, ...], set[str], str], ...] = (
            ("key_usage", extensions.key_usage, {"key_cert_sign", "crl_sign"}, "CAs alone (RFC 5280 section 4.2.1.3)"),
            ("key_usage_rsa", extensions.key_usage_rsa, {"key_cert_sign", "crl_sign"}, "CAs alone (RFC 5280 4.2.1.3)"),
            ("key_usage_ec", extensions.key_usage_ec, {"key_cert_sign", "crl_sign"}, "CAs alone (RFC 5280 4.2.1.3)"),
            (
                "key_usage",
                extensions.key_usage if has_ec or has_ed25519 else (),
                {"key_encipherment", "data_encipherment"},
                "RSA keys alone (RFC 8813 section 3, RFC 9295); put it into key_usage_rsa",
            ),
            (
                "key_usage",
                extensions.key_usage if has_ed25519 or any(key.is_rsa for key in allowed) else (),
                {"key_agreement", "encipher_only", "decipher_only"},
                "keys on NIST curves alone (RFC 4055 section 1.2, RFC 9295); put it into key_usage_ec",
            ),
            (
                "key_usage_rsa",
                extensions.key_usage_rsa,
                {"key_agreement", "encipher_only", "decipher_only"},
                "keys that agree on keys, not RSA (RFC 4055 section 1.2)",
            ),
            (
                "key_usage_ec",
                extensions.key_usage_ec,
                {"key_encipherment", "data_encipherment"},
                "RSA keys alone (RFC 8813 section 3)",
            ),
        )
        for key, usages, refused, reason in rules:
            for usage in usages:
                if usage in refused:
                    raise self._fail(f"extensions.{key}", usage, f"is for {reason}")
        for usage in ("encipher_only", "decipher_only"):
            both = {*extensions.key_usage, *extensions.key_usage_ec}
            if usage in both and "key_agreement" not in both:
                raise self._fail(
                    "extensions.key_usage", usage, "has a meaning with key_agreement only (RFC 5280 4.2.1.3)"
                )

    def _extended_key_usage(self, text: str) -> str:
        oid = EXTENDED_KEY_USAGES.get(text, text)
        if not _OID.fullmatch(oid):
            known = ", ".join(EXTENDED_KEY_USAGES)
            raise self._fail("extensions.extended_key_usage", text, f"write one of {known}, or an OID")
        return oid

    def _responder(self, extensions: ExtensionsFile, usages: tuple[str, ...]) -> None:
        signs_ocsp = EXTENDED_KEY_USAGES["ocsp_signing"] in usages
        if signs_ocsp and self._file.frontends != ("internal",):
            raise self._fail(
                "extensions.extended_key_usage",
                "ocsp_signing",
                "its holder speaks for the CA (RFC 6960 section 4.2.2.2): frontends = ['internal'] alone",
            )
        if extensions.ocsp_nocheck and not signs_ocsp:
            raise self._fail(
                "extensions.ocsp_nocheck", True, "is for ocsp_signing certificates (RFC 6960 section 4.2.2.2.1)"
            )

    def _extra(self, extensions: ExtensionsFile) -> tuple[ExtraExtension, ...]:
        found: dict[str, ExtraExtension] = {}
        for item in extensions.extra:
            if not _OID.fullmatch(item.oid) or item.oid in _OWN_EXTENSIONS or item.oid in found:
                raise self._fail(
                    "extensions.extra.oid", item.oid, "an OID, once, of an extension that the profile does not set else"
                )
            try:
                der = bytes.fromhex(item.der)
            except ValueError:
                der = b""
            if len(der) > _MAX_EXTRA_DER or not _is_one_element(der):
                raise self._fail(
                    "extensions.extra.der",
                    item.der,
                    f"one DER element of at most {_MAX_EXTRA_DER} octets in hexadecimal",
                )
            found[item.oid] = ExtraExtension(item.oid, item.critical, der)
        return tuple(found.values())


def _is_one_element(der: bytes) -> bool:
    """Whether these octets are one DER element, by its own length (X.690 section 8.1.3, 10.1)."""
    if len(der) < 2 or der[0] & 0x1F == 0x1F:  # noqa: PLR2004
        return False
    size = len(der) - 2
    if size < 0x80:  # noqa: PLR2004
        return der[1] == size
    count = der[1] & 0x7F
    length = int.from_bytes(der[2 : 2 + count], "big")
    return der[1] > 0x80 and der[2] != 0 and length >= 0x80 and length == size - count  # noqa: PLR2004
