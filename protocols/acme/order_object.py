"""Orders as clients see them (RFC 8555 section 7.1.3; RFC 8739 section 3.1.1; RFC 9773 section 5)."""

import json
from datetime import datetime
from typing import Any

from protocols.acme.model import Order, OrderIdentifier, OrderStatus
from protocols.acme.urls import Urls


def order_object(order: Order, now: datetime, urls: Urls) -> dict[str, Any]:
    """The order object."""
    status = order.status_at(now)
    shown: dict[str, Any] = {
        "status": status.value,
        "expires": rfc3339(order.expires_at),
        "identifiers": [_shown(item) for item in order.identifiers],
        "authorizations": [urls.authorization(each) for each in order.authorization_ids],
        "finalize": urls.finalize(order.id),
        "profile": order.profile,
    }
    if order.auto_renewal is not None:
        shown["auto-renewal"] = order.auto_renewal.shown()
    elif order.not_before is not None:
        shown["notBefore"] = rfc3339(order.not_before)
    if order.auto_renewal is None and order.not_after is not None:
        shown["notAfter"] = rfc3339(order.not_after)
    if order.replaces is not None:
        shown["replaces"] = order.replaces
    if order.error is not None:
        shown["error"] = json.loads(order.error)
    if status is OrderStatus.VALID and order.auto_renewal is not None:
        shown["star-certificate"] = urls.star_certificate(order.id)
    elif status is OrderStatus.VALID:
        shown["certificate"] = urls.certificate(order.id)
    return shown


def _shown(item: OrderIdentifier) -> dict[str, str]:
    shown = {"type": item.identifier.type.value, "value": item.sent}
    if item.ancestor is not None:
        shown["ancestorDomain"] = item.ancestor.value
    return shown


def rfc3339(moment: datetime) -> str:
    """A time as ACME writes it, in UTC and whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
