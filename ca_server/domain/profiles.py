"""Certificate profiles: who may have which certificate. Raw text becomes a Profile only when every limit holds.

A Profile is content-addressed: its hash is over a canonical body that it can be made from again, so that a request
keeps the profile with which it began, whatever the files say by then.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import msgspec

from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.profile_rules import (
    Approval,
    CaaMode,
    ExtensionRules,
    NameRules,
    PkilintMode,
    ProfileChecks,
    SubjectRules,
    ValidityRules,
)
from ca_server.domain.profile_schema import ProfileBody, parse_profile


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A validated profile; two with the same hash are the same."""

    name: str
    hash: str
    """SHA-256 of `body` in hexadecimal."""
    body: bytes
    """Canonical JSON, with the extra domains merged in."""
    description: str
    issuer: str
    frontends: frozenset[Protocol]
    requesters: tuple[str, ...]
    approval: Approval
    allow_hold: bool
    pkilint: PkilintMode
    caa: CaaMode
    names: NameRules
    subject: SubjectRules
    keys: frozenset[KeyAlgorithm]
    validity: ValidityRules
    extensions: ExtensionRules

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Make a profile from a stored body. ConfigurationError where it is none."""
        digest = sha256(body).hexdigest()
        where = f"profile body {digest[:16]}"
        try:
            stored = msgspec.json.decode(body, type=ProfileBody)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(where, "body", None, f"not a profile body: {error}") from None
        checks = ProfileChecks(where, stored.profile)
        file = stored.profile
        return cls(
            name=stored.name,
            hash=digest,
            body=body,
            description=file.description,
            issuer=file.issuer,
            frontends=frozenset(Protocol(item) for item in file.frontends),
            requesters=file.requesters,
            approval=Approval(file.approval),
            allow_hold=file.allow_hold,
            pkilint=PkilintMode(file.pkilint),
            caa=checks.caa(),
            names=checks.names(file.names),
            subject=checks.subject(file.subject),
            keys=frozenset(file.keys.allowed),
            validity=checks.validity(),
            extensions=checks.extensions(file.extensions),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


def load_profile(name: str, toml_text: str, *, where: str, extra_domains: tuple[str, ...] = ()) -> Profile:
    """Read and check a profile's TOML. `extra_domains` are merged where the profile includes them.

    ConfigurationError: one line naming file (`where`), key, value and remedy.
    """
    file = parse_profile(toml_text, where)
    checks = ProfileChecks(where, file)
    if file.names.include_extra_domains:
        extra = tuple(checks.domain(text, "policy.extra_domains") for text in extra_domains)
        suffixes = tuple(sorted({*file.names.dns_suffixes, *extra}))
        file = msgspec.structs.replace(file, names=msgspec.structs.replace(file.names, dns_suffixes=suffixes))
    try:
        body = msgspec.json.encode(ProfileBody(name=name, profile=file), order="deterministic")
        return Profile.from_body(body)
    except ConfigurationError as error:
        raise ConfigurationError(where, error.key, error.value, error.remedy) from None
