"""The pipeline's first step: what decides whether a request is signed, asked in one place."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ca_server.core.auto_renewal import decide_renewal
from ca_server.core.bindings import decide_binding
from ca_server.core.csr import ParsedCsr, parse_csr
from ca_server.core.issuers import ActiveIssuer, IssuerRegistry
from ca_server.core.keycheck import check_key
from ca_server.core.policy import decide, refusal, unattested_key, unchecked_caa, unproven_identifier
from ca_server.core.ports import NO_CLAIM, EabClaim, IssuanceStore
from ca_server.core.profiles import ProfileBook
from ca_server.core.tbs import TbsPlan
from ca_server.domain.bindings import EabKey
from ca_server.domain.certificates import IssuerKind
from ca_server.domain.enrollment import Deny, EnrollmentRequest, Hold, Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profile_rules import CaaMode
from ca_server.domain.profiles import Profile

BoundKey = Callable[[str], Awaitable[EabKey | None]]
"""Finds the external account key that an account is said to be bound by."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that policy let pass, with all that signing it needs."""

    request: EnrollmentRequest
    csr: ParsedCsr
    profile: Profile
    issuer: ActiveIssuer
    needs_caa: bool
    """Whether the profile, as it was pinned or as it now stands, signs no DNS name without a check of CAA."""
    eab_key: EabKey | None

    @property
    def claim(self) -> EabClaim:
        """What the reservation is to hold against what is known of the account."""
        key = self.eab_key
        if key is None:
            return NO_CLAIM
        return EabClaim(key.kid, tuple(map(str, self.request.identifiers)))


async def _no_key(_kid: str) -> EabKey | None:
    return None


@dataclass(frozen=True, slots=True)
class Ages:
    """How old what a front-end claims may be: the validation of a name, its check of CAA records.

    `auto_renewal` is how long after its first certificate an order of ACME may get others (RFC 8739), where its profile
    is one of `renewed`.
    """

    evidence: timedelta = timedelta(days=37)
    caa: timedelta = timedelta(hours=9)
    auto_renewal: timedelta = timedelta(0)
    renewed: frozenset[str] = frozenset()


class Admission:
    """Decides on requests; changes nothing."""

    def __init__(
        self,
        *,
        store: IssuanceStore,
        issuers: IssuerRegistry,
        profiles: ProfileBook,
        bound_key: BoundKey = _no_key,
        ages: Ages,
    ) -> None:
        self._store = store
        self._issuers = issuers
        self._profiles = profiles
        self._bound_key = bound_key
        self._ages = ages

    async def decide(self, request: EnrollmentRequest, now: datetime) -> Admitted:
        """Decide under the profile that the request began with and, where that was replaced, under today's too.

        CaError where policy refuses or holds.
        """
        pinned = await self._profiles.pinned(request.profile, request.profile_hash)
        current = self._profiles.current(request.profile)
        csr = parse_csr(request.csr_der)
        proven_since = now - self._ages.evidence
        if request.epoch and request.requester.protocol is Protocol.ACME:
            proven_since = await self._decide_renewal(request)
        decisions = []
        for profile in (pinned,) if pinned.hash == current.hash else (pinned, current):
            check_key(csr.public_key, profile)
            decisions.append(decide(profile, request, csr, now=now))
            unproven = unproven_identifier(profile, request, proven_since)
            if unproven is not None:
                decisions.append(unproven)
        issuer = self._issuer_of(pinned, request)
        unattested = unattested_key(request, csr)
        if unattested is not None:
            decisions.append(unattested)
        eab_key = await self._decide_binding(request)
        for decision in decisions:
            if isinstance(decision, Deny):
                raise refusal([decision])
        for decision in decisions:
            if isinstance(decision, Hold):
                raise CaError(
                    ErrorKind.PENDING_APPROVAL, "the request waits for approval", rule=decision.rule, retry_after=60
                )
        needs_caa = CaaMode.ENFORCE in {pinned.caa, current.caa}
        return Admitted(request, csr, pinned, issuer, needs_caa, eab_key)

    def assert_caa(self, admitted: Admitted, plan: TbsPlan, now: datetime) -> None:
        """The names that were checked are those of the TBSCertificate: the linter holds it to `plan.names`."""
        if admitted.needs_caa:
            unchecked = unchecked_caa(admitted.request, plan.names, now - self._ages.caa)
            if unchecked is not None:
                raise refusal([unchecked])

    async def _decide_renewal(self, request: EnrollmentRequest) -> datetime:
        """Since when the names of a renewal must have been proven: as long before the order's first certificate."""
        first = await self._store.enrollment(replace(request.key, epoch=0))
        longest = self._ages.auto_renewal if request.profile in self._ages.renewed else timedelta(0)
        denial = decide_renewal(request, first, longest)
        if denial is not None or first.certificate is None:
            raise refusal([denial or Deny("acme.auto_renewal", "there is nothing to renew")])
        return first.certificate.not_before - self._ages.evidence

    async def _decide_binding(self, request: EnrollmentRequest) -> EabKey | None:
        """Decide under what is bound to the account's external account key now; None where it is said to have none."""
        if not request.eab_kid:
            return None
        key = await self._bound_key(request.eab_kid)
        if key is None:
            raise CaError(ErrorKind.UNAUTHORIZED, "the account's external account key is not known", rule="eab.binding")
        denials = decide_binding(key, request.profile, request.identifiers)
        if denials:
            raise refusal(denials)
        return key

    def _issuer_of(self, profile: Profile, request: EnrollmentRequest) -> ActiveIssuer:
        """The issuer of a profile, or of the server's own request. A root signs CA certificates and its CRL alone."""
        internal = request.requester.protocol is Protocol.INTERNAL
        issuer = self._issuers.get(request.issuer if internal and request.issuer else profile.issuer)
        if issuer.issuer.kind is not IssuerKind.ISSUING:
            raise CaError(ErrorKind.POLICY_DENIED, "a root issues to nobody but CAs", rule="profile.issuer")
        return issuer
