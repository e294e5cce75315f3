"""What clients are told of when to renew a certificate (RFC 9773), and which order renews one."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from ca_server.domain.certificates import CertificateRecord, serial_text
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ErrorKind
from protocols.acme.certid import CertId, certid_of, parse_certid
from protocols.acme.options import AcmeOptions
from protocols.acme.ports import AcmeStore
from protocols.acme.renewal_window import Window, is_due, pause, renewal_window


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """What a client is told of a certificate; `retry_after` is in seconds."""

    window: Window
    retry_after: int
    explanation_url: str = ""
    """A page that tells why it is to be renewed now; empty: none."""


class Renewals:
    """Finds certificates by CertID and tells when to renew them."""

    def __init__(self, options: AcmeOptions, store: AcmeStore) -> None:
        self._options = options
        self._store = store

    async def info(self, text: str, now: datetime) -> RenewalInfo:
        """The renewal information of a certificate. CertIdError; NOT_FOUND where ACME did not issue it here."""
        certid = parse_certid(text)
        record = await self.find(certid)
        if record is None:
            raise CaError(ErrorKind.NOT_FOUND, "this server issued no certificate with that CertID")
        incident = None if record.is_revoked else await self._store.incident_of(record)
        window = renewal_window(certid, record, incident, now)
        moved = incident is not None and window.start == incident.created_at
        lifetime = record.not_after - max(record.not_before, record.issued_at)
        until = pause(certid, lifetime, self._options.renewal_retry_after)
        explanation = incident.explanation_url if incident is not None and moved else ""
        return RenewalInfo(window, int(until.total_seconds()), explanation)

    async def is_due(self, record: CertificateRecord, names: frozenset[str], now: datetime) -> bool:
        """Whether a certificate for these names (as `type:value`) renews that one, inside its window or after it."""
        if frozenset(record.names) != names or record.not_after <= now:
            return False
        return is_due(record, None, now) or is_due(record, await self._store.incident_of(record), now)

    async def find(self, certid: CertId) -> CertificateRecord | None:
        """The certificate that an ACME account was given: the serial number finds it, its issuer's key confirms it."""
        for record in await self._store.certificates_by_serial(serial_text(certid.serial)):
            if (record.requester_protocol, record.tenant) == (Protocol.ACME.value, self._options.tenant):
                certificate = x509.load_der_x509_certificate(record.certificate_der)
                if certid_of(certificate) == certid:
                    return record
        return None
