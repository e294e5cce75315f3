"""What is told of ACME accounts and orders: in a list, and when one is shown by itself with its life."""

import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from ca_server.cli.certificates import status_of
from ca_server.core.audit import leaf_members
from ca_server.core.csr import parse_csr
from ca_server.domain.accounts import Account
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.errors import CaError
from ca_server.store.acme_records import OrderRecord
from ca_server.store.audit import SqlAuditStore
from protocols.acme.model import Attempt, Authorization, Challenge, Order

_MOST_EVENTS = 1000
_EVENT_MEMBERS = (
    *("time", "type", "outcome", "rule", "reason", "actor"),
    *("source", "request_id", "object", "serial", "node", "process", "extra"),
)


def account_summary(account: Account) -> dict[str, Any]:
    """What a list of accounts tells, and each order."""
    return {
        "id": account.id,
        "status": account.status.value,
        "contacts": account.contacts,
        "key_thumbprint": account.key_thumbprint,
        "key_blocked": account.key_blocked,
        "eab_kid": account.eab_kid,
        "created_at": account.created_at,
        "terms_agreed_at": account.terms_agreed_at,
        "terms_of_service": account.terms_of_service,
    }


def order_summary(order: Order, status: str) -> dict[str, Any]:
    """What a list of orders tells."""
    return {
        "id": order.id,
        "status": status,
        "names": [str(item.identifier) for item in order.identifiers],
        "account": order.account_id,
        "profile": order.profile,
        "created_at": order.created_at,
        "expires_at": order.expires_at,
        "source": order.source,
        "request_id": order.request_id,
    }


def order_description(
    record: OrderRecord, certificate: CertificateRecord | None, events: Sequence[dict[str, object]], now: datetime
) -> dict[str, Any]:
    """All that is known of an order."""
    order = record.order
    return {
        **order_summary(order, order.status_at(now).value),
        "profile_hash": order.profile_hash,
        "not_before": order.not_before,
        "not_after": order.not_after,
        "replaces": order.replaces,
        "error": _document(order.error),
        "account": account_summary(record.account),
        "authorizations": [_authorization(each, record, now) for each in record.authorizations],
        "csr": None if order.csr_der is None else _csr(order.csr_der),
        "certificate": None if certificate is None else _certificate(certificate),
        "events": events,
    }


async def events_of(
    audit: SqlAuditStore, objects: Sequence[str], serials: Sequence[str] = ()
) -> list[dict[str, object]]:
    """What the audit log has of objects and serials, oldest first; each with its index in the log once it has one."""
    events = []
    for event in await audit.about(objects, serials, _MOST_EVENTS):
        members = leaf_members(event.leaf)
        told = {name: members[name] for name in _EVENT_MEMBERS if name in members}
        events.append({"leaf": event.index, **told})
    return sorted(events, key=lambda each: str(each.get("time")))


def objects_of(order: Order) -> list[str]:
    """How events name an order, its enrollment and its authorizations."""
    authorizations = [f"acme-authorization:{each}" for each in order.authorization_ids]
    return [f"acme-order:{order.id}", f"enrollment:{order.id}", *authorizations]


def _authorization(authorization: Authorization, record: OrderRecord, now: datetime) -> dict[str, Any]:
    return {
        "id": authorization.id,
        "name": str(authorization.identifier),
        "wildcard": authorization.wildcard,
        "status": authorization.status_at(now).value,
        "created_at": authorization.created_at,
        "expires_at": authorization.expires_at,
        "reused": authorization.created_at < record.order.created_at,
        "challenges": [_challenge(each, record.attempts.get(each.id, ())) for each in authorization.challenges],
    }


def _challenge(challenge: Challenge, attempts: Sequence[Attempt]) -> dict[str, Any]:
    return {
        "id": challenge.id,
        "type": challenge.type,
        "status": challenge.status.value,
        "validated_at": challenge.validated_at,
        "error": _document(challenge.error),
        "evidence": _document(challenge.evidence),
        "attempts": [
            {
                "number": each.number,
                "started_at": each.started_at,
                "seconds": round(each.duration.total_seconds(), 3),
                "front": each.front,
                "outcome": each.outcome,
                "problem": each.detail or None,
                "seen": each.seen,
            }
            for each in attempts
        ],
    }


def _document(document: bytes | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None if document is None else json.loads(document)
    return found


def _csr(csr_der: bytes) -> dict[str, Any]:
    shown: dict[str, Any] = {"sha256": sha256(csr_der).hexdigest(), "octets": len(csr_der)}
    try:
        csr = parse_csr(csr_der)
    except CaError as error:
        return {**shown, "error": error.detail}
    return {
        **shown,
        "key": None if csr.key_algorithm is None else csr.key_algorithm.value,
        "spki_sha256": csr.spki_sha256.hex(),
        "common_name": csr.common_name,
        "names": [str(each) for each in csr.identifiers],
        "requested_extensions": csr.requested_extensions,
    }


def _certificate(record: CertificateRecord) -> dict[str, Any]:
    return {
        "serial": record.serial,
        "issuer": record.issuer,
        "status": status_of(record),
        "not_before": record.not_before,
        "not_after": record.not_after,
        "issued_at": record.issued_at,
        "revoked_at": record.revoked_at,
        "revocation_reason": record.revocation_reason.label if record.revocation_reason else None,
    }
