"""What the renewal of auto-renewal orders needs from a store. Each method is one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca_server.domain.accounts import AccountStatus
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import IssuedCertificate
from protocols.acme.model import Order
from protocols.acme.ports import AcmeStore, Lessee, NonceUse, OrderWork, Work


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest certificate of an order; `number` counts from 0."""

    number: int
    certificate: IssuedCertificate
    revoked: bool
    held: bool = False
    """It is revoked for as long as an operator wants to look into it (certificateHold, RFC 5280 section 5.3.1)."""


@dataclass(frozen=True, slots=True)
class RenewalState:
    """Where the renewals of an order stand."""

    first: datetime
    """The nominal date of the first certificate (RFC 8739 section 3.5)."""
    ready_at: datetime | None
    """When somebody may look at it next; None: there is nothing more to do."""
    failures: int
    """Attempts since the newest certificate that came to nothing."""


@dataclass(frozen=True, slots=True)
class RenewalWork:
    """An order to be renewed with what decides whether it may be, as seen at one moment."""

    found: OrderWork
    state: RenewalState
    newest: Newest | None


@dataclass(frozen=True, slots=True)
class Served:
    """What decides whether the newest certificate of an order is given out, as seen at one moment."""

    order: Order
    account_status: AccountStatus
    first: datetime | None
    """None: the order is not finalized."""
    newest: Newest | None


class StarStore(Protocol):
    """Auto-renewal orders that were finalized."""

    async def claim_renewals(self, lessee: Lessee, limit: int) -> tuple[Work, ...]:
        """Take orders whose time has come, the longest waiting first: nobody else does until the lease runs out."""

    async def renewal_work(self, order_id: str) -> RenewalWork | None:
        """An order with what decides whether it may be renewed; None where it was not finalized."""

    async def finish_renewal(self, work: Work, holder: str, ready_at: datetime | None) -> bool:
        """Give an order back that has the newest certificate due: when the next is; false where the lease was lost.

        What an earlier attempt left as the order's error is gone.
        """

    async def postpone_renewal(self, work: Work, holder: str, ready_at: datetime, error: bytes | None) -> bool:
        """Give an order back that got no certificate; with an error, that is counted and the order's error."""

    async def cancel_order(
        self, account_id: str, order_id: str, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> bool:
        """End the renewals of a valid auto-renewal order for good; false (and no events) where it is none."""

    async def served(self, order_id: str) -> Served | None:
        """What there is of an auto-renewal order to be given out; None where it is none."""


class FrontStore(AcmeStore, StarStore, Protocol):
    """All that the front-end needs."""
