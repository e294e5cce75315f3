"""The ACME front-end's store for rehearsals: it reads what there is, decides as the real one, and writes nothing.

What a rehearsal makes, one order and its authorizations, is in memory, and all that must be validated counts as
validated: by the challenge of the question, or the first that is offered.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NoReturn, cast

from sqlalchemy import Connection

from ca_server.domain.audit import AuditEvent
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.rates import Draw
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.acme_authorizations import authorizations
from ca_server.store.acme_limits import peek
from ca_server.store.acme_orders import plan_order
from ca_server.store.database import Database
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.model import Authorization, AuthorizationStatus, ChallengeStatus, Order, OrderStatus
from protocols.acme.ports import ANY_VALID, Lessee, NonceUse, OpenBounds, OrderWork, Reuse


@dataclass(frozen=True, slots=True)
class Stands:
    """What the rehearsed order stands on: authorizations that it would reuse, and those that it would make."""

    reused: tuple[Authorization, ...]
    made: tuple[Authorization, ...]


class _Readable:
    """A database that takes no writes: whatever part of the store would write is an error, not a trace."""

    def __init__(self, database: Database) -> None:
        self.read = database.read
        self.glance = database.glance

    async def write(self, *_work: object, **_options: object) -> NoReturn:
        raise CaError(ErrorKind.INTERNAL, "a rehearsal writes nothing")

    write_in_bulk = write


class RehearsalStore(SqlAcmeStore):
    """`AcmeStore` for one order that is never made. All fields are owned by the task of the rehearsal.

    `events` are those that would be on record; `asked` tells that an order passed policy and came to the limits.
    """

    def __init__(self, database: Database, tenant: str = "default", challenge: str = "") -> None:
        """`challenge` is the type by which control counts as shown, where it is offered."""
        super().__init__(cast(Database, _Readable(database)), tenant)
        self._challenge = challenge
        self.attested_key = b""
        """SHA-256 of the key that devices count as having attested."""
        self._order: Order | None = None
        self.stands: Stands | None = None
        self.asked = False
        self.events: tuple[AuditEvent, ...] = ()

    async def record(self, events: Sequence[AuditEvent], nonce: NonceUse | None) -> None:  # noqa: ARG002
        self.events += tuple(events)

    async def create_order(
        self,
        order: Order,
        candidates: Sequence[Authorization],
        bounds: OpenBounds,
        events: Sequence[AuditEvent],  # noqa: ARG002
        nonce: NonceUse | None,  # noqa: ARG002
        reuse: Reuse | None = ANY_VALID,
        afresh: Collection[str] = (),
    ) -> Order:
        self.asked = True

        def plan(connection: Connection) -> tuple[Order, Stands]:
            planned = plan_order(connection, order, candidates, bounds, self._tenant, reuse, afresh, take=peek)
            made = {each.id for each in planned.made}
            reused = [each for each in planned.order.authorization_ids if each not in made]
            return planned.order, Stands(authorizations(connection, reused), planned.made)

        planned, self.stands = await self._database.read(plan)
        self._order = replace(planned, status=OrderStatus.READY)
        return self._order

    async def order(self, order_id: str) -> Order | None:
        return self._order if self._order is not None and self._order.id == order_id else await super().order(order_id)

    async def order_work(self, order_id: str) -> OrderWork | None:
        order, stands = self._order, self.stands
        if order is None or stands is None or order.id != order_id:
            return None
        account = await self.account(order.account_id)
        if account is None:
            return None
        return OrderWork(
            order=order,
            account_status=account.status,
            authorizations=(
                *stands.reused,
                *(self._validated(each, order.created_at) for each in stands.made),
            ),
            eab_kid=account.eab_kid,
            key_blocked=account.key_blocked,
            is_live=False,
        )

    async def begin_finalize(
        self,
        account_id: str,  # noqa: ARG002
        order_id: str,  # noqa: ARG002
        csr_der: bytes,
        lessee: Lessee,
        nonce: NonceUse | None,  # noqa: ARG002
        draws: Sequence[Draw] = (),
    ) -> bool:
        if self._order is None:
            return False
        await self._database.read(lambda connection: peek(connection, draws, lessee.now))
        self._order = replace(self._order, status=OrderStatus.PROCESSING, csr_der=csr_der)
        return True

    async def save_caa(self, lookups: Sequence[CaaLookup], events: Sequence[AuditEvent]) -> None:  # noqa: ARG002
        self.events += tuple(events)

    async def prolong_order(self, account_id: str, order_id: str, lessee: Lessee) -> bool:  # noqa: ARG002
        """Nothing is tried twice."""
        return False

    async def fail_order(
        self,
        account_id: str,  # noqa: ARG002
        order_id: str,  # noqa: ARG002
        error: bytes,
        events: Sequence[AuditEvent],
    ) -> bool:
        self.events += tuple(events)
        if self._order is not None:
            self._order = replace(self._order, status=OrderStatus.INVALID, error=error)
        return True

    def _validated(self, authorization: Authorization, now: datetime) -> Authorization:
        challenges = authorization.challenges
        shown = next((each for each in challenges if each.type == self._challenge), challenges[0])
        evidence = json.dumps({"key_sha256": self.attested_key.hex()}).encode() if self.attested_key else None
        done = replace(shown, status=ChallengeStatus.VALID, validated_at=now, evidence=evidence)
        return replace(
            authorization,
            status=AuthorizationStatus.VALID,
            expires_at=now + timedelta(days=1),
            challenges=tuple(done if each is shown else each for each in challenges),
        )
