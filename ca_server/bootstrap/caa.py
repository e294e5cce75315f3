"""What CAA says of a name, as this configuration would look it up: for operators; nothing is signed or recorded."""

from dataclasses import dataclass

from ca_server.domain.names import Identifier
from ca_server.domain.profile_rules import CaaMode
from ca_server.domain.profiles import Profile
from ca_server.settings import Settings
from protocols.acme.caa.checking import look_up
from protocols.acme.caa.climbing import CaaSource
from protocols.acme.caa.evaluation import Applicant, Verdict, evaluate
from protocols.acme.caa.records import IssueValue
from protocols.acme.urls import Urls
from protocols.acme.validation import Dnssec, Resolver, ValidationPolicy, validators
from protocols.acme.validation.resolver import DnsFailure


@dataclass(frozen=True, slots=True)
class MethodVerdict:
    """What CAA says of a name whose control was shown by one challenge type."""

    method: str
    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CaaReport:
    """What CAA says of a name."""

    name: str
    profile: str
    mode: CaaMode
    """What the profile makes of it."""
    identities: tuple[str, ...]
    account: str
    """URL of the account that asks; empty: some account."""
    found_at: str
    records: tuple[str, ...]
    authenticated: bool
    methods: tuple[MethodVerdict, ...]
    lets_pass: tuple[str, ...]
    """Records, as a zone file has them, each of which would let this CA (and this account) pass."""


def system_resolver(settings: Settings) -> Resolver:
    """The resolver of a configuration."""
    return Resolver(settings.dns.nameservers, settings.dns.timeout, Dnssec(settings.dns.dnssec))


def account_url(settings: Settings, account_id: str) -> str:
    """The URL by which `accounturi` names an account."""
    return Urls(settings.https_url, settings.policy.default_profile).account(account_id)


async def caa_report(
    settings: Settings, profile: Profile, name: Identifier, account: str, source: CaaSource
) -> CaaReport:
    """Look a DNS name up, and decide for each challenge that can show control of it."""
    identities = tuple(identity.lower() for identity in settings.acme.caa_identities)
    base = name.base.value
    found = (await look_up(source, [base]))[base]

    def verdict_on(method: str) -> Verdict:
        if isinstance(found, DnsFailure):
            return Verdict(allowed=False, reason=f"not known (RFC 8659 section 3): {found.detail}")
        applicant = Applicant(identities, account, method)
        return evaluate(found, wildcard=name.is_wildcard, applicant=applicant)

    offered = validators(ValidationPolicy(issuer_domain_names=identities), settings.acme.challenges)
    methods = [kind for kind, each in offered.items() if each.applies(name.base, name.is_wildcard)]
    verdicts = [(method, verdict_on(method)) for method in methods]
    tag = "issuewild" if name.is_wildcard else "issue"
    parameters = (("accounturi", account),) if account else ()
    values = (IssueValue(identity, parameters).encode().decode("ascii") for identity in identities)
    return CaaReport(
        name=name.value,
        profile=profile.name,
        mode=profile.caa,
        identities=identities,
        account=account,
        found_at="" if isinstance(found, DnsFailure) else found.found_at,
        records=() if isinstance(found, DnsFailure) else tuple(map(str, found.records)),
        authenticated=not isinstance(found, DnsFailure) and found.authenticated,
        methods=tuple(MethodVerdict(method, each.allowed, each.reason) for method, each in verdicts),
        lets_pass=tuple(f'{base}. CAA 0 {tag} "{value}"' for value in values),
    )
