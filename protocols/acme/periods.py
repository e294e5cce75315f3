"""When a certificate may be valid: what newOrder says of notBefore and notAfter (RFC 8555 section 7.4)."""

from datetime import datetime

from cryptography import x509

from ca_server.core.policy import decide_cover, decide_validity
from ca_server.domain.enrollment import Deny
from ca_server.domain.profiles import Profile
from protocols.acme.ports import AcmeStore


class Periods:
    """Holds what orders ask for against the profile and the certificate of its issuer."""

    def __init__(self, store: AcmeStore) -> None:
        self._store = store

    async def denials(
        self, profile: Profile, begin: datetime | None, end: datetime | None, now: datetime
    ) -> tuple[Deny, ...]:
        """Why no certificate of the profile is valid so; empty: one can be. Nothing is read where nothing is asked."""
        if begin is None and end is None:
            return ()
        denials = decide_validity(profile, begin, end, now)
        if denials:
            return denials
        return await self.uncovered(profile, begin, end)

    async def uncovered(self, profile: Profile, begin: datetime | None, end: datetime | None) -> tuple[Deny, ...]:
        """Why the issuer of a profile signs nothing that is valid so; the certificate under which it signs says.

        The core refuses it too, but an order that came so far would be lost.
        """
        der = await self._store.issuer_certificate(profile.issuer)
        if der is None:
            return ()
        certificate = x509.load_der_x509_certificate(der)
        return decide_cover(certificate.not_valid_before_utc, certificate.not_valid_after_utc, begin, end)
