"""What is told of a certificate: in a list, and when it is shown by itself with its history."""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from ca_server.core.audit import leaf_members
from ca_server.core.der import key_algorithm
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import CertificateRecord, Crl, IssuerKey
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit import SqlAuditStore
from ca_server.store.inventory import SqlInventory

_MOST_EVENTS = 1000
_DIGITS = frozenset("0123456789abcdef")
_EVENT_MEMBERS = (
    *("time", "type", "outcome", "actor", "authenticated_by"),
    *("source", "request_id", "reason", "rule", "extra"),
)


async def found_by_serial(inventory: SqlInventory, serial: str, issuer: str | None) -> CertificateRecord:
    """The one certificate with this serial, or whose serial begins so.

    Written as openssl (`0A:1B`, `0x0a1b`) or as this server writes it. MALFORMED, NOT_FOUND, CONFLICT where several
    match.
    """
    digits = _digits(serial)
    whole = whole_serial(serial)
    for prefix in dict.fromkeys((whole, digits)):
        found = await inventory.search(issuer=issuer, serial_prefix=prefix, limit=10) if prefix else ()
        exact = tuple(record for record in found if record.serial == whole) or found
        if len(exact) > 1:
            raise CaError(ErrorKind.CONFLICT, "more than one certificate matches: give more digits, or --issuer")
        if exact:
            return exact[0]
    raise CaError(ErrorKind.NOT_FOUND, f"there is no certificate with serial {serial}")


def whole_serial(serial: str) -> str:
    """A serial number, written as people do, as this server writes it. MALFORMED."""
    significant = _digits(serial).lstrip("0")
    return "0" * (len(significant) % 2) + significant


def _digits(serial: str) -> str:
    digits = serial.strip().lower().replace(":", "").removeprefix("0x")
    if not digits or not _DIGITS.issuperset(digits):
        raise CaError(ErrorKind.MALFORMED, f"{serial!r} is no serial number in hexadecimal")
    return digits


def status_of(record: CertificateRecord) -> str:
    """`revoked`, `expired` or `valid`, as `cert list --status` has it."""
    if record.is_revoked:
        return "revoked"
    return "expired" if record.not_after <= datetime.now(UTC) else "valid"


def summary(record: CertificateRecord) -> dict[str, Any]:
    """What a list tells."""
    return {
        "serial": record.serial,
        "issuer": record.issuer,
        "status": status_of(record),
        "subject": record.subject,
        "names": record.names,
        "profile": record.profile,
        "profile_hash": record.profile_hash,
        "not_before": record.not_before,
        "not_after": record.not_after,
        "issued_at": record.issued_at,
        "requester": f"{record.requester_protocol}:{record.requester_id}",
        "owner": record.owner,
        "transaction": record.transaction_key,
        "spki_sha256": record.spki_sha256.hex(),
        "revoked_at": record.revoked_at,
        "revocation_reason": record.revocation_reason.label if record.revocation_reason else None,
    }


async def history(audit: SqlAuditStore, record: CertificateRecord) -> list[dict[str, object]]:
    """What the audit log has of a certificate, oldest first."""
    events = []
    for event in await audit.tail(_MOST_EVENTS, None, record.serial, None):
        members = leaf_members(event.leaf)
        if members.get("issuer") in {None, record.issuer}:
            told = {name: members[name] for name in _EVENT_MEMBERS if name in members}
            events.append({"leaf": event.index, **told})
    return events


def description(
    record: CertificateRecord, key: IssuerKey, crl: Crl | None, events: Sequence[dict[str, object]]
) -> dict[str, object]:
    """All that is known of a certificate, its history aside."""
    certificate = x509.load_der_x509_certificate(record.certificate_der)
    stored = _newest(events, EventType.ISSUANCE_STORED, EventType.ISSUER_CREATED)
    fields: dict[str, object] = {
        **summary(record),
        "authenticated_by": stored.get("authenticated_by"),
        "validated_by": _evidence(stored),
        "source": stored.get("source"),
        "request_id": stored.get("request_id"),
        "key": _key_name(certificate.public_key()),
        "sha256": sha256(record.certificate_der).hexdigest(),
        "issuer_generation": key.generation,
        "issuer_key": key.label,
        "extensions": [_extension_name(extension) for extension in certificate.extensions],
    }
    if record.is_revoked:
        revoked = _newest(events, EventType.CERTIFICATE_REVOKED)
        fields |= {
            "revoked_by": revoked.get("actor"),
            "revocation_authenticated_by": revoked.get("authenticated_by"),
            "revocation_source": revoked.get("source"),
            "invalidity_date": record.invalidity_date,
            "on_crl": _crl_number(crl, certificate.serial_number),
        }
    return fields


def _evidence(event: dict[str, object]) -> object:
    """By which challenges the names were validated."""
    extra = event.get("extra")
    return extra.get("validated_by") if isinstance(extra, dict) else None


def _newest(events: Sequence[dict[str, object]], *kinds: EventType) -> dict[str, object]:
    wanted = {kind.value for kind in kinds}
    return next((event for event in reversed(events) if event["type"] in wanted), {})


def _key_name(public_key: PublicKeyTypes) -> str:
    algorithm = key_algorithm(public_key)
    return algorithm.value if algorithm is not None else type(public_key).__name__


def _extension_name(extension: "x509.Extension[Any]") -> str:
    name = extension.oid._name  # noqa: SLF001 - cryptography has no public way to an OID's name
    shown = extension.oid.dotted_string if name == "Unknown OID" else name
    return f"{shown} (critical)" if extension.critical else shown


def _crl_number(crl: Crl | None, serial: int) -> int | None:
    """The number of the newest list where that shows the certificate."""
    if crl is None:
        return None
    entry = x509.load_der_x509_crl(crl.der).get_revoked_certificate_by_serial_number(serial)
    return crl.number if entry is not None else None
