"""How control of a certificate's names was shown: method, time, and what was seen, name by name."""

import json
from collections.abc import Iterator
from typing import Any

from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.store.acme_records import OrderRecord
from protocols.acme.model import Authorization, Challenge, ChallengeStatus


def validations(record: CertificateRecord, order: OrderRecord | None) -> list[dict[str, Any]]:
    """For each name of a certificate, the validations that its order stood on; none where the order is forgotten.

    `domain` is there where control of a domain above the name was shown instead (RFC 9444).
    """
    if order is None:
        return []
    return [told for name in record.names for told in _of_name(_identifier(name), order)]


def _of_name(name: Identifier, order: OrderRecord) -> Iterator[dict[str, Any]]:
    for authorization in order.authorizations:
        if not authorization.covers(name):
            continue
        for challenge in authorization.challenges:
            if challenge.status is ChallengeStatus.VALID:
                yield {"name": str(name)} | _domain(authorization, name) | _shown(challenge)


def _domain(authorization: Authorization, name: Identifier) -> dict[str, str]:
    return {} if authorization.identifier == name.base else {"domain": authorization.identifier.value}


def _shown(challenge: Challenge) -> dict[str, Any]:
    evidence: dict[str, str] = json.loads(challenge.evidence or b"{}")
    return {"method": challenge.type, "validated_at": challenge.validated_at, "evidence": evidence}


def _identifier(name: str) -> Identifier:
    kind, _, value = name.partition(":")
    return Identifier(IdentifierType(kind), value)
