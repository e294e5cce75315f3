"""Accounts and orders of the ACME front-end as operators look at them: reads alone, in pages of a bounded size."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select

from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.names import Identifier
from ca_server.store.acme_accounts import SELECT_ACCOUNTS, account_by_id, account_of
from ca_server.store.acme_attempts import attempts_of
from ca_server.store.acme_authorizations import authorizations
from ca_server.store.acme_orders import has_certificate, order_by_id, order_of
from ca_server.store.acme_tables import acme_accounts, acme_orders
from ca_server.store.database import Database
from protocols.acme.model import Attempt, Authorization, Order, OrderStatus

_PAGE: Final = 500
MOST_LOOKED_AT: Final = 50_000
"""Orders that one search looks at: it goes on from where it ended."""


@dataclass(frozen=True, slots=True)
class OrderSearch:
    """Which orders: None is any. `name` is exact, or with a leading dot every name under it; wildcards by their base.

    `since` is the earliest creation.
    """

    account_id: str | None = None
    name: str | None = None
    status: OrderStatus | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class OrderLine:
    """An order in a list, with its state at the moment of the search."""

    order: Order
    status: OrderStatus


@dataclass(frozen=True, slots=True)
class OrderPage:
    """Orders, newest first; where `more`, the search goes on after the order `last`."""

    lines: tuple[OrderLine, ...]
    last: str | None
    more: bool


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """An order with its account, and all that its authorizations went through."""

    order: Order
    account: Account
    authorizations: tuple[Authorization, ...]
    attempts: Mapping[str, tuple[Attempt, ...]]
    """By the id of the challenge."""


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """An account and how many orders it has, those that expired long ago aside."""

    account: Account
    orders: int


class SqlAcmeRecords:
    """Reads what the ACME front-end keeps; changes nothing."""

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    async def order(self, order_id: str) -> OrderRecord | None:
        """An order by id, as seen at one moment."""

        def query(connection: Connection) -> OrderRecord | None:
            order = order_by_id(connection, order_id, self._tenant)
            if order is None:
                return None
            account = account_by_id(connection, order.account_id)
            if account is None or account.tenant != self._tenant:
                return None
            found = authorizations(connection, order.authorization_ids)
            challenges = [challenge.id for each in found for challenge in each.challenges]
            return OrderRecord(order, account, found, attempts_of(connection, challenges))

        return await self._database.read(query)

    async def orders(self, search: OrderSearch, now: datetime, limit: int, after: str | None) -> OrderPage:
        """A page of orders, newest first, after the order given; it looks at 50,000 orders at most."""
        statement = self._candidates(search)
        number = None if after is None else await self._number_of(after)
        lines: list[OrderLine] = []
        last = after
        for _ in range(MOST_LOOKED_AT // _PAGE):
            rows = await self._page(statement, number)
            for row in rows:
                line = OrderLine(order_of(row, None), OrderStatus.VALID)
                if not row.issued:
                    line = OrderLine(line.order, line.order.status_at(now))
                number, last = row.number, row.id
                if _matches(line, search):
                    lines.append(line)
                    if len(lines) > limit:
                        return OrderPage(tuple(lines[:limit]), lines[limit - 1].order.id, more=True)
            if len(rows) < _PAGE:
                return OrderPage(tuple(lines), last, more=False)
        return OrderPage(tuple(lines), last, more=True)

    def _candidates(self, search: OrderSearch) -> Select[Any]:
        statement = (
            select(acme_orders, has_certificate(self._tenant).label("issued"))
            .join(acme_accounts, acme_accounts.c.id == acme_orders.c.account_id)
            .where(acme_accounts.c.tenant == self._tenant)
            .order_by(acme_orders.c.number.desc())
            .limit(_PAGE)
        )
        if search.account_id is not None:
            statement = statement.where(acme_orders.c.account_id == search.account_id)
        if search.since is not None:
            statement = statement.where(acme_orders.c.created_at >= search.since)
        return statement

    async def _page(self, statement: Select[Any], before: int | None) -> list[Any]:
        wanted = statement if before is None else statement.where(acme_orders.c.number < before)
        return await self._database.read(lambda connection: list(connection.execute(wanted).all()))

    async def _number_of(self, order_id: str) -> int | None:
        query = select(acme_orders.c.number).where(acme_orders.c.id == order_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    async def account(self, account_id: str) -> AccountRecord | None:
        """An account by id."""
        count = select(func.count()).select_from(acme_orders).where(acme_orders.c.account_id == bindparam("of_account"))

        def query(connection: Connection) -> AccountRecord | None:
            account = account_by_id(connection, account_id)
            if account is None or account.tenant != self._tenant:
                return None
            return AccountRecord(account, connection.execute(count, {"of_account": account_id}).scalar_one())

        return await self._database.read(query)

    async def accounts(
        self,
        *,
        contact: str | None = None,
        status: AccountStatus | None = None,
        eab_kid: str | None = None,
        limit: int,
        after: str | None = None,
    ) -> tuple[Account, ...]:
        """Accounts, newest first, after the account given; `contact` is a part of one of its contacts."""
        table = acme_accounts
        statement = SELECT_ACCOUNTS.where(table.c.tenant == self._tenant)
        if contact is not None:
            statement = statement.where(table.c.contacts.contains(contact, autoescape=True))
        if status is not None:
            statement = statement.where(table.c.status == status.value)
        if eab_kid is not None:
            statement = statement.where(table.c.eab_kid == eab_kid)
        if after is not None:
            moment = select(table.c.created_at).where(table.c.id == after).scalar_subquery()
            earlier = and_(table.c.created_at == moment, table.c.id < after)
            statement = statement.where(or_(table.c.created_at < moment, earlier))
        statement = statement.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
        return await self._database.read(
            lambda connection: tuple(account_of(row) for row in connection.execute(statement))
        )


def _matches(line: OrderLine, search: OrderSearch) -> bool:
    if search.status is not None and line.status is not search.status:
        return False
    return search.name is None or any(_is_named(item.identifier, search.name) for item in line.order.identifiers)


def _is_named(identifier: Identifier, name: str) -> bool:
    if name.startswith("."):
        return identifier.value.endswith(name)
    return name in {identifier.value, identifier.base.value}
