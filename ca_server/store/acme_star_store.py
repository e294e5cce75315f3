"""Auto-renewal orders (RFC 8739): each method one transaction."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, select, update

from ca_server.domain.accounts import AccountStatus
from ca_server.domain.audit import AuditEvent
from ca_server.store.acme_accounts import USED_NONCES, account_lock
from ca_server.store.acme_orders import order_by_id, order_work
from ca_server.store.acme_star import cancel_orders, claim_renewals, give_back, newest_of, renewal_state
from ca_server.store.acme_tables import acme_accounts, acme_orders, acme_star
from ca_server.store.audit_insert import RECORD
from ca_server.store.claims import Once
from ca_server.store.database import Along, Database
from ca_server.store.statements import Prepared
from protocols.acme.ports import Lessee, NonceUse, Work
from protocols.acme.star.ports import RenewalWork, Served

_ACCOUNT_STATUS = Prepared(select(acme_accounts.c.status).where(acme_accounts.c.id == bindparam("of_account")))


class SqlStarStore:
    """`protocols.acme.star.ports.StarStore` in SQL."""

    def __init__(self, database: Database, tenant: str = "default") -> None:
        self._database = database
        self._tenant = tenant

    async def claim_renewals(self, lessee: Lessee, limit: int) -> tuple[Work, ...]:
        ready = select(acme_star.c.order_id).where(acme_star.c.ready_at <= lessee.now).limit(1)
        if await self._database.glance(lambda connection: connection.execute(ready).first()) is None:
            # Every front asks every few seconds: where nothing is due, no writer waits for that.
            return ()
        return await self._database.write(lambda connection: claim_renewals(connection, lessee, limit))

    async def renewal_work(self, order_id: str) -> RenewalWork | None:
        def query(connection: Connection) -> RenewalWork | None:
            state = renewal_state(connection, order_id)
            found = None if state is None else order_work(connection, order_id, self._tenant)
            if state is None or found is None:
                return None
            return RenewalWork(found, state, newest_of(connection, found.order, self._tenant))

        return await self._database.glance(query)

    async def finish_renewal(self, work: Work, holder: str, ready_at: datetime | None) -> bool:
        def unit(connection: Connection) -> bool:
            values = {"ready_at": ready_at, "lease_holder": None, "failures": 0}
            if not give_back(connection, work.id, holder, values):
                return False
            failed = and_(acme_orders.c.id == work.id, acme_orders.c.error.is_not(None))
            connection.execute(update(acme_orders).where(failed).values(error=None))
            return True

        return await self._database.write(unit, locks=(account_lock(work.account_id),))

    async def postpone_renewal(self, work: Work, holder: str, ready_at: datetime, error: bytes | None) -> bool:
        def unit(connection: Connection) -> bool:
            counted = acme_star.c.failures + (0 if error is None else 1)
            values = {"ready_at": ready_at, "lease_holder": None, "failures": counted}
            if not give_back(connection, work.id, holder, values):
                return False
            if error is not None:
                connection.execute(update(acme_orders).where(acme_orders.c.id == work.id).values(error=error))
            return True

        return await self._database.write(unit, locks=(account_lock(work.account_id),))

    async def cancel_order(
        self, account_id: str, order_id: str, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> bool:
        which = and_(acme_orders.c.id == order_id, acme_orders.c.account_id == account_id)
        return await self._database.write(
            lambda connection: cancel_orders(connection, which, self._tenant) == 1,
            locks=(account_lock(account_id),),
            once=None if nonce is None else Once(USED_NONCES, nonce.nonce, nonce.expires_at),
            along=Along(RECORD, events),
        )

    async def served(self, order_id: str) -> Served | None:
        def query(connection: Connection) -> Served | None:
            order = order_by_id(connection, order_id, self._tenant)
            if order is None or order.auto_renewal is None:
                return None
            state = renewal_state(connection, order_id)
            (status,) = _ACCOUNT_STATUS.execute(connection, {"of_account": order.account_id}).one()
            newest = None if state is None else newest_of(connection, order, self._tenant)
            return Served(order, AccountStatus(status), None if state is None else state.first, newest)

        return await self._database.glance(query)
