"""What a profile lets pass: pure decisions, each denial with the stable name of its rule.

Rules: `profile.frontends`, `profile.requesters`, `names.*`, `csr.*`, `subject.*`, `validity.*`; `approval` holds.
The pipeline adds `profile.unknown`, `profile.pinned`, `profile.issuer`, `names.evidence`, `names.caa`,
`csr.attested_key` and `lint`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from ca_server.core.csr import ParsedCsr
from ca_server.domain.enrollment import Allow, Decision, Deny, EnrollmentRequest, Hold, Protocol, Requester
from ca_server.domain.errors import CaError, ErrorKind, SubError
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profile_rules import Approval, CommonName, NameRules
from ca_server.domain.profiles import Profile

MAX_COMMON_NAME: Final = 64
"""ub-common-name (RFC 5280 appendix A.1)."""
MAX_DELAY: Final = timedelta(days=1)
"""How far in the future a certificate may begin: what was validated today says little about later."""
CLOCK_TOLERANCE: Final = timedelta(seconds=5)
SERIAL_NUMBER: Final = "2.5.4.5"
DEVICE_ATTEST: Final = "device-attest-01"
"""The one challenge that shows a device."""


def decide(profile: Profile, request: EnrollmentRequest, csr: ParsedCsr, *, now: datetime | None = None) -> Decision:
    """Decide on a request whose CSR and key were checked: the first denial, else hold, else allow."""
    moment = now if now is not None else datetime.now(UTC)
    denials = (
        *decide_identifiers(profile, request.identifiers, request.requester),
        *_csr_names(profile, request, csr),
        *_subject(profile, request, csr),
        *decide_validity(profile, request.not_before, request.not_after, moment),
    )
    if denials:
        return denials[0]
    return Hold("approval") if profile.approval is Approval.HOLD else Allow()


def decide_identifiers(profile: Profile, identifiers: Sequence[Identifier], requester: Requester) -> tuple[Deny, ...]:
    """Every reason why this requester can't have a certificate of this profile for these names; empty: it can."""
    if requester.protocol not in profile.frontends:
        detail = f"profile {profile.name!r} is not for requests by {requester.protocol.value}"
        return (Deny("profile.frontends", detail),)
    if not any(glob_matches(pattern, requester.id) for pattern in profile.requesters):
        return (Deny("profile.requesters", f"profile {profile.name!r} is not for this requester"),)
    if not identifiers and not profile.names.allow_empty:
        return (Deny("names.empty", f"profile {profile.name!r} wants at least one name"),)
    if len(identifiers) > profile.names.max:
        return (Deny("names.max", f"profile {profile.name!r} allows at most {profile.names.max} names"),)
    found = (_identifier(profile, identifier) for identifier in identifiers)
    return tuple(denial for denial in found if denial is not None)


def decide_validity(profile: Profile, begin: datetime | None, end: datetime | None, now: datetime) -> tuple[Deny, ...]:
    """Every reason why a certificate of this profile can't be valid from `begin` to `end`; None: its own."""
    rules = profile.validity
    if begin is not None and begin < now - rules.backdate - MAX_DELAY:
        return (Deny("validity.not_before", "notBefore lies too far in the past"),)
    if begin is not None and begin > now + MAX_DELAY:
        return (Deny("validity.not_before", "notBefore lies more than a day in the future"),)
    if end is None:
        return ()
    # Without a notBefore, the plan moves it up to fit a notAfter that a slow clock of ours puts just out of reach.
    first, tolerance = (begin, timedelta(0)) if begin is not None else (now, CLOCK_TOLERANCE)
    if end <= first or end <= now:
        return (Deny("validity.not_after", "notAfter lies before notBefore or in the past"),)
    if end - first > rules.maximum + tolerance:
        days = rules.maximum / timedelta(days=1)
        return (Deny("validity.maximum", f"profile {profile.name!r} allows at most {days:g} days"),)
    return ()


def unproven_identifier(profile: Profile, request: EnrollmentRequest, not_before: datetime) -> Deny | None:
    """The denial of an ACME request with a name that no evidence covers: names checked are the names that are signed.

    A wildcard is shown by a DNS challenge alone (RFC 8555 section 7.1.3), and so are the names below a domain by the
    domain, where the profile lets them (RFC 9444). Evidence is what the front-end claims, not
    older than `not_before`; other protocols authorize names with the requester.
    """
    if request.requester.protocol is not Protocol.ACME:
        return None
    proven = [item for item in request.evidence if item.validated_at >= not_before]
    by_any = {item.identifier for item in proven}
    by_dns = {item.identifier for item in proven if item.method.startswith("dns-")}
    domains = {
        item.identifier
        for item in proven
        if item.subdomains and item.method.startswith("dns-") and profile.names.allow_subdomain_authorization
    }
    for identifier in request.identifiers:
        if identifier.is_device:
            shown = any(item.identifier == identifier and item.method == DEVICE_ATTEST for item in proven)
        elif identifier.is_wildcard:
            shown = identifier.base in by_dns
        else:
            shown = identifier in by_any or not domains.isdisjoint(identifier.domains_above)
        if not shown:
            return Deny("names.evidence", f"control of {identifier.value!r} was not shown, or long ago", identifier)
    return None


def unchecked_caa(request: EnrollmentRequest, names: Sequence[Identifier], not_before: datetime) -> Deny | None:
    """The denial of an ACME request where one of the names to be signed was not checked for CAA since `not_before`.

    What was checked is what the front-end claims, name by name: a wildcard is another name than its base (RFC 8659
    section 4.3). Names that are no DNS names have no CAA records.
    """
    if request.requester.protocol is not Protocol.ACME:
        return None
    checked = {item.identifier for item in request.caa if item.checked_at >= not_before}
    for name in names:
        if name.type is IdentifierType.DNS and name not in checked:
            return Deny("names.caa", f"CAA records of {name.value!r} were not checked, or too long ago", name)
    return None


def unattested_key(request: EnrollmentRequest, csr: ParsedCsr) -> Deny | None:
    """The denial of a CSR for another key than a device attested (draft-ietf-acme-device-attest section 9)."""
    for item in request.evidence:
        if item.identifier.is_device and item.spki_sha256 != csr.spki_sha256:
            return Deny("csr.attested_key", f"the CSR's key is not the one that {item.identifier.value!r} attested")
    return None


def refusal(denials: Sequence[Deny]) -> CaError:
    """The error for one or more denials: about names REJECTED_IDENTIFIER, about the CSR BAD_CSR, else POLICY_DENIED.

    Several denials become suberrors, each with its identifier (RFC 8555 section 6.7.1).
    """
    first = denials[0]
    if len(denials) == 1:
        return CaError(_kind(first), first.detail, rule=first.rule)
    kinds = {_kind(denial) for denial in denials}
    return CaError(
        kinds.pop() if len(kinds) == 1 else ErrorKind.POLICY_DENIED,
        f"{len(denials)} parts of the request are refused",
        rule=first.rule,
        suberrors=tuple(SubError(_kind(item), item.detail, item.identifier, item.rule) for item in denials),
    )


def csr_identifiers(profile: Profile, csr: ParsedCsr) -> frozenset[Identifier]:
    """The names that a CSR asks for under a profile.

    Where the profile copies the CSR's common name, one of a single label (`printer7`) is a title and no DNS name.
    """
    common_name = csr.common_name_identifier
    if (
        common_name is not None
        and profile.subject.common_name is CommonName.CSR
        and common_name.type is IdentifierType.DNS
        and "." not in common_name.value
    ):
        return frozenset(csr.alternative_names)
    return frozenset(csr.identifiers)


def glob_matches(pattern: str, text: str) -> bool:
    """Match `*` (any run) and `?` (any one character) against the whole text, in bounded time."""
    at = position = 0
    star = mark = -1
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[position]}:
            at += 1
            position += 1
        elif star >= 0:
            mark += 1
            at, position = star + 1, mark
        else:
            return False
    return pattern[at:].strip("*") == ""


def _kind(denial: Deny) -> ErrorKind:
    if denial.identifier is not None:
        return ErrorKind.REJECTED_IDENTIFIER
    return ErrorKind.BAD_CSR if denial.rule.startswith("csr.") else ErrorKind.POLICY_DENIED


def _identifier(profile: Profile, identifier: Identifier) -> Deny | None:
    rules = profile.names
    if f".{identifier.value}".endswith(".onion") and identifier.type is IdentifierType.DNS:
        detail = (
            f"{identifier.value!r}: names below .onion (RFC 7686) are not in the DNS, and this server has none of the "
            "means by which control of them is shown (RFC 9799)"
        )
        return Deny("names.onion", detail, identifier)
    if identifier.is_wildcard and not rules.allow_wildcard:
        detail = f"{identifier.value!r}: profile {profile.name!r} allows no wildcards"
        return Deny("names.wildcard", detail, identifier)
    if rules.any or _ALLOWED[identifier.type](rules, identifier.value):
        return None
    detail = f"{identifier.value!r} is not among the names that profile {profile.name!r} allows"
    return Deny(f"names.{identifier.type.value}", detail, identifier)


def _dns_allowed(rules: NameRules, value: str) -> bool:
    if value in rules.dns:
        return True
    suffix = value.removeprefix("*.")
    while suffix:
        if suffix in rules.dns_suffixes:
            return True
        suffix = suffix.partition(".")[2]
    labels = value.split(".")
    return any(_pattern_matches(pattern, labels) for pattern in rules.dns_patterns)


def _pattern_matches(pattern: tuple[str, ...], labels: list[str]) -> bool:
    """Label by label; a wildcard label of the name stands for any, so that only `*` covers it."""
    if len(pattern) != len(labels):
        return False
    return all(
        glob == "*" if label == "*" else glob_matches(glob, label) for glob, label in zip(pattern, labels, strict=True)
    )


def _ip_allowed(rules: NameRules, value: str) -> bool:
    address = ip_address(value)
    return any(address in network for network in rules.ip_networks)


def _email_allowed(rules: NameRules, value: str) -> bool:
    host = value.rpartition("@")[2]
    if host in rules.email_domains:
        return True
    while host:
        host = host.partition(".")[2]
        if f".{host}" in rules.email_domains:
            return True
    return False


def _uri_allowed(rules: NameRules, value: str) -> bool:
    """Prefixes end where a segment does; dots and escapes that could leave the prefix again are refused."""
    path = value.partition("?")[0].partition("#")[0].lower().replace("%2e", ".").replace("%2f", "/")
    if "\\" in value or "%5c" in path or any(segment in {".", ".."} for segment in path.split("/")):
        return False
    return any(value.startswith(prefix) for prefix in rules.uri_prefixes)


def _permanent_identifier_allowed(rules: NameRules, value: str) -> bool:
    return any(glob_matches(glob, value) for glob in rules.permanent_identifiers)


def _hardware_module_allowed(rules: NameRules, value: str) -> bool:
    return any(glob_matches(glob, value) for glob in rules.hardware_modules)


_ALLOWED: Final = {
    IdentifierType.DNS: _dns_allowed,
    IdentifierType.IP: _ip_allowed,
    IdentifierType.EMAIL: _email_allowed,
    IdentifierType.URI: _uri_allowed,
    IdentifierType.PERMANENT_IDENTIFIER: _permanent_identifier_allowed,
    IdentifierType.HARDWARE_MODULE: _hardware_module_allowed,
}


def _csr_names(profile: Profile, request: EnrollmentRequest, csr: ParsedCsr) -> tuple[Deny, ...]:
    asked = csr_identifiers(profile, csr)
    authorized = frozenset(request.identifiers)
    if asked == authorized:
        return ()
    devices = frozenset(name for name in authorized if name.is_device)
    if devices:
        asked = _with_devices(asked, devices, csr)
        if asked == authorized:
            return ()
    extra = ", ".join(sorted(map(str, asked - authorized))[:3])
    missing = ", ".join(sorted(map(str, authorized - asked))[:3])
    parts = [f"not authorized: {extra}" if extra else "", f"missing: {missing}" if missing else ""]
    return (Deny("csr.names", f"the CSR's names are not the request's ({'; '.join(filter(None, parts))})"),)


def _with_devices(
    asked: frozenset[Identifier], devices: frozenset[Identifier], csr: ParsedCsr
) -> frozenset[Identifier]:
    """The names of a CSR that may leave the devices out, or say one in its common name.

    draft-ietf-acme-device-attest sections 3.2 and 4.2: the other names are there as RFC 8555 section 7.4 wants them.
    """
    title = csr.common_name_identifier
    if title is not None and title not in csr.alternative_names and csr.common_name in _values(devices):
        asked -= {title}
    return asked | devices


def _values(devices: Iterable[Identifier]) -> frozenset[str]:
    return frozenset(name.device_value for name in devices)


def _subject(profile: Profile, request: EnrollmentRequest, csr: ParsedCsr) -> tuple[Deny, ...]:
    devices = _values(name for name in request.identifiers if name.is_device)
    if devices and "serial_number" in profile.subject.from_csr:
        numbers = [text for oid, text in csr.subject if oid == SERIAL_NUMBER]
        if not devices.issuperset(numbers):
            return (Deny("subject.device", "the CSR's serial number is none of the devices of the request"),)
    if profile.subject.common_name is not CommonName.CSR:
        return ()
    common_name = csr.common_name
    if common_name is None:
        return (Deny("subject.common_name", f"profile {profile.name!r} wants a common name in the CSR"),)
    if not 0 < len(common_name) <= MAX_COMMON_NAME or not common_name.isprintable():
        return (Deny("subject.common_name", f"a common name has 1 to {MAX_COMMON_NAME} printable characters"),)
    if devices and common_name not in devices:
        return (Deny("subject.device", "the CSR's common name is none of the devices of the request"),)
    is_title = csr.common_name_identifier is None and not devices
    if is_title and " " not in common_name.strip() and any(mark in common_name for mark in ".:*@/"):
        return (Deny("subject.common_name", "the common name looks like a name and is not a valid one"),)
    return ()
