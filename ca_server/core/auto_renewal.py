"""What the core knows of the renewals of an ACME order (RFC 8739), whatever a front-end says of them.

An order's first certificate has epoch 0, each renewal the next. A renewal is of the same CSR, and its names count as
proven when the first certificate was issued: authorizations may have expired since.
"""

from datetime import timedelta
from hashlib import sha256
from typing import Final

from ca_server.core.policy import MAX_DELAY
from ca_server.core.ports import EnrollmentState
from ca_server.domain.enrollment import Deny, EnrollmentRequest

_RULE: Final = "acme.auto_renewal"
_SLACK: Final = 2 * MAX_DELAY
"""What lies between the beginning of an order's time and that of its first certificate: backdating, a delayed start."""


def decide_renewal(request: EnrollmentRequest, first: EnrollmentState, max_duration: timedelta) -> Deny | None:
    """Why a certificate after an order's first is refused: `first` is where the enrollment of epoch 0 stands.

    Orders of a profile whose orders are not renewed last for no time.
    """
    if not max_duration:
        return Deny(_RULE, f"orders of profile {request.profile!r} are not renewed automatically (any more)")
    if first.certificate is None or first.csr_sha256 != sha256(request.csr_der).digest():
        return Deny(_RULE, "the order has no first certificate for this CSR that could be renewed")
    last = first.certificate.not_before + max_duration + _SLACK
    if request.not_after is None or request.not_after > last:
        return Deny(_RULE, f"certificates of the order may be valid until {last:%Y-%m-%dT%H:%M:%SZ}, no longer")
    return None
