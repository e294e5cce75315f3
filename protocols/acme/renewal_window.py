"""Renewal information (RFC 9773): when each certificate is best renewed, so that a fleet does not come all at once.

The window of a certificate follows from its CertID and its lifetime alone: every node and every request tells the same,
and nothing is stored. Serial numbers are random, so windows are spread evenly, however many certificates were issued in
one hour.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography import x509

from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.incidents import Incident
from protocols.acme.certid import CertId, certid_of

EARLIEST = 0.60
"""The part of its lifetime after which the first window of a fleet begins."""
SPREAD = 0.15
"""The part of the lifetime over which the beginnings of the windows are spread."""
LENGTH = 0.02
"""The part of the lifetime that a window is long: the client picks a moment in it at random."""
DRIFT = 0.2
"""The part of the longest pause that the shortest is shorter."""
_LEAST_LENGTH = timedelta(minutes=1)
_LOOKS = 20
"""How often at least a client looks during a lifetime."""
_LEAST_PAUSE = timedelta(minutes=1)
"""What clients take for the least (RFC 9773 section 4.3.2)."""
_OVERDUE = timedelta(hours=1)
_INCIDENT = timedelta(days=1)
"""Within which the certificates of an incident are renewed, so that not all come at once."""
_HASHED = 8
"""Octets of the hash that make one number."""


@dataclass(frozen=True, slots=True)
class Window:
    """When to renew; `end` is after `start` (RFC 9773 section 4.2), also in whole seconds."""

    start: datetime
    end: datetime


def suggested_window(certid: CertId, usable_from: datetime, not_after: datetime) -> Window:
    """The window of a certificate, placed by the hash of its CertID: in [0.60, 0.77] of the time it can be used."""
    lifetime = not_after - usable_from
    start = usable_from + lifetime * (EARLIEST + SPREAD * _place(certid, 0))
    return Window(start, start + max(lifetime * LENGTH, _LEAST_LENGTH))


def renewal_window(certid: CertId, record: CertificateRecord, incident: Incident | None, now: datetime) -> Window:
    """The window of a certificate as it now is: in the past once it is revoked, moved up by an incident of its."""
    if record.revoked_at is not None:
        # In the past, whatever the clock of the node that revoked it: renew at once (RFC 9773 section 4.2).
        end = min(record.revoked_at, now - _LEAST_LENGTH)
        return Window(end - _OVERDUE, end)
    window = suggested_window(certid, max(record.not_before, record.issued_at), record.not_after)
    if incident is None or incident.created_at >= window.start:
        return window
    length = min(_INCIDENT, max(record.not_after - incident.created_at, _LEAST_LENGTH))
    return Window(incident.created_at, incident.created_at + length)


def is_due(record: CertificateRecord, incident: Incident | None, now: datetime) -> bool:
    """Whether the window of a certificate has begun."""
    certid = certid_of(x509.load_der_x509_certificate(record.certificate_der))
    return certid is not None and renewal_window(certid, record, incident, now).start <= now


def pause(certid: CertId, lifetime: timedelta, longest: timedelta) -> timedelta:
    """How long a client waits between two looks at a certificate's renewal information.

    Each certificate has its own, so that the looks of clients that began together drift apart.
    """
    wanted = min(longest, lifetime / _LOOKS) * (1 - DRIFT * _place(certid, 1))
    return max(wanted, _LEAST_PAUSE)


def _place(certid: CertId, which: int) -> float:
    """A number in [0, 1) that follows from the CertID: the first or the second of its hash."""
    octets = sha256(str(certid).encode()).digest()[which * _HASHED : (which + 1) * _HASHED]
    return int.from_bytes(octets, "big") / (1 << 8 * _HASHED)
