"""The ACME front-end's store in SQL: each method one transaction, the nonce used up in it."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from ca_server.domain.accounts import Account, AccountRegistered
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CertificateRecord, serial_text
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.store.acme_accounts import (
    account_by_id,
    account_by_thumbprint,
    change_account,
    close_account,
    insert_account,
    prune_nonces,
    use_nonce,
)
from ca_server.store.acme_challenges import (
    begin_challenge,
    challenge_by_id,
    claim_challenges,
    finish_challenge,
    record_attempt,
)
from ca_server.store.acme_orders import (
    authorization_ids_of,
    authorizations,
    begin_finalize,
    claim_orders,
    fail_order,
    insert_order,
    order_by_id,
    order_ids,
    prolong_order,
    refresh_orders,
)
from ca_server.store.acme_tables import acme_authorizations
from ca_server.store.audit import insert_events
from ca_server.store.certificates import SELECT_RECORDS, records_of
from ca_server.store.database import Database
from ca_server.store.issuance import read_spki_blocked
from ca_server.store.tables import certificates, eab_keys
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, Order
from protocols.acme.ports import Lessee, NonceUse

__all__ = ["SqlAcmeStore", "account_by_thumbprint", "insert_account"]

T = TypeVar("T")


class SqlAcmeStore:
    """`protocols.acme.ports.AcmeStore` in SQL."""

    def __init__(self, database: Database, tenant: str = "default") -> None:
        self._database = database
        self._tenant = tenant

    async def _write(self, nonce: NonceUse | None, work: Callable[[Connection], T]) -> T:
        """Do the work and use the nonce up with it; where the work's value is false, nothing was changed, nor is it."""

        def unit(connection: Connection) -> T:
            done = work(connection)
            if done is not False:
                use_nonce(connection, nonce)
            return done

        return await self._database.write(unit)

    async def _change(self, nonce: NonceUse | None, events: Sequence[AuditEvent], work: Callable[[Connection], T]) -> T:
        """Do the work and record the events, where its value is not false."""

        def with_events(connection: Connection) -> T:
            done = work(connection)
            if done is not False:
                insert_events(connection, events)
            return done

        return await self._write(nonce, with_events)

    # --- Nonces and records ---------------------------------------------------------------------------------------

    async def consume_nonce(self, nonce: NonceUse) -> None:
        await self._write(nonce, lambda _connection: None)

    async def record(self, events: Sequence[AuditEvent], nonce: NonceUse | None) -> None:
        await self._write(nonce, lambda connection: insert_events(connection, events))

    async def prune(self, nonces_before: datetime, limit: int) -> int:
        return await self._database.write(lambda connection: prune_nonces(connection, nonces_before, limit))

    # --- Accounts -------------------------------------------------------------------------------------------------

    async def account(self, account_id: str) -> Account | None:
        return await self._database.glance(lambda connection: account_by_id(connection, account_id))

    async def bound_profile(self, account: Account) -> str | None:
        if account.eab_kid is None:
            return None
        query = select(eab_keys.c.profile).where(eab_keys.c.kid == account.eab_kid)
        found: str | None = await self._database.read(lambda connection: connection.execute(query).scalar())
        return found

    async def account_by_key(self, tenant: str, thumbprint: str) -> Account | None:
        return await self._database.read(lambda connection: account_by_thumbprint(connection, tenant, thumbprint))

    async def create_account(
        self, account: Account, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> AccountRegistered:
        def work(connection: Connection) -> AccountRegistered:
            standing = account_by_thumbprint(connection, account.tenant, account.key_thumbprint)
            if standing is not None:
                return AccountRegistered(standing, created=False)
            insert_account(connection, account)
            insert_events(connection, events)
            return AccountRegistered(account, created=True)

        try:
            return await self._write(nonce, work)
        except IntegrityError:
            # Another node created the account at the same moment; now it is there to be found.
            return await self._write(nonce, work)

    async def update_account(
        self,
        account_id: str,
        contacts: tuple[str, ...] | None,
        terms_agreed_at: datetime | None,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Account:
        values: dict[str, object] = {}
        if contacts is not None:
            values["contacts"] = json.dumps(contacts)
        if terms_agreed_at is not None:
            values["terms_agreed_at"] = terms_agreed_at
        return await self._change(nonce, events, lambda connection: change_account(connection, account_id, values))

    async def deactivate_account(
        self,
        account_id: str,
        now: datetime,  # noqa: ARG002 - the port tells when, for stores that keep it
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Account:
        return await self._change(nonce, events, lambda connection: close_account(connection, account_id))

    # --- Orders ---------------------------------------------------------------------------------------------------

    async def create_order(
        self,
        order: Order,
        candidates: Sequence[Authorization],
        max_open: int,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Order:
        return await self._change(
            nonce, events, lambda connection: insert_order(connection, order, candidates, max_open)
        )

    async def order(self, order_id: str) -> Order | None:
        return await self._database.glance(lambda connection: order_by_id(connection, order_id, self._tenant))

    async def orders_of(self, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
        return await self._database.read(lambda connection: order_ids(connection, account_id, after, limit))

    async def begin_finalize(self, order_id: str, csr_der: bytes, lessee: Lessee, nonce: NonceUse | None) -> bool:
        return await self._write(
            nonce,
            lambda connection: begin_finalize(connection, order_id, csr_der, lessee),
        )

    async def claim_orders(self, lessee: Lessee, limit: int, node: str | None = None) -> tuple[str, ...]:
        return await self._database.write(
            lambda connection: claim_orders(connection, lessee, limit, self._tenant, node)
        )

    async def prolong_order(self, order_id: str, lessee: Lessee) -> bool:
        return await self._database.write(lambda connection: prolong_order(connection, order_id, lessee))

    async def fail_order(self, order_id: str, error: bytes, events: Sequence[AuditEvent]) -> bool:
        return await self._change(
            None, events, lambda connection: fail_order(connection, order_id, error, self._tenant)
        )

    # --- Authorizations and challenges ----------------------------------------------------------------------------

    async def authorization(self, authorization_id: str) -> Authorization | None:
        found = await self._database.glance(lambda connection: authorizations(connection, [authorization_id]))
        return found[0] if found else None

    async def authorizations_of_order(self, order_id: str) -> tuple[Authorization, ...]:
        return await self._database.glance(
            lambda connection: authorizations(connection, authorization_ids_of(connection, order_id))
        )

    async def challenge(self, challenge_id: str) -> tuple[Challenge, Authorization] | None:
        return await self._database.glance(lambda connection: challenge_by_id(connection, challenge_id))

    async def deactivate_authorization(
        self,
        authorization_id: str,
        now: datetime,  # noqa: ARG002 - the port tells when, for stores that keep it
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Authorization:
        def work(connection: Connection) -> Authorization:
            done = connection.execute(
                update(acme_authorizations)
                .where(
                    acme_authorizations.c.id == authorization_id,
                    acme_authorizations.c.status.in_(
                        (AuthorizationStatus.PENDING.value, AuthorizationStatus.VALID.value)
                    ),
                )
                .values(status=AuthorizationStatus.DEACTIVATED.value)
            )
            if done.rowcount == 1:
                refresh_orders(connection, authorization_id, failed=True)
                insert_events(connection, events)
            found = authorizations(connection, [authorization_id])
            if not found:
                raise CaError(ErrorKind.NOT_FOUND, "there is no such authorization")
            return found[0]

        return await self._write(nonce, work)

    async def begin_challenge(self, challenge_id: str, lessee: Lessee, nonce: NonceUse | None) -> bool:
        return await self._write(nonce, lambda connection: begin_challenge(connection, challenge_id, lessee))

    async def claim_challenges(self, lessee: Lessee, limit: int, node: str | None = None) -> tuple[str, ...]:
        return await self._database.write(lambda connection: claim_challenges(connection, lessee, limit, node))

    async def record_attempt(self, challenge_id: str, lessee: Lessee, error: bytes) -> bool:
        return await self._database.write(lambda connection: record_attempt(connection, challenge_id, lessee, error))

    async def finish_challenge(
        self,
        challenge_id: str,
        holder: str,
        error: bytes | None,
        now: datetime,
        valid_until: datetime,
        events: Sequence[AuditEvent],
    ) -> bool:
        return await self._change(
            None,
            events,
            lambda connection: finish_challenge(connection, challenge_id, holder, error, now, valid_until),
        )

    async def valid_identifiers(self, account_id: str, now: datetime) -> frozenset[tuple[Identifier, bool]]:
        table = acme_authorizations
        query = select(table.c.type, table.c.value, table.c.wildcard).where(
            table.c.account_id == account_id,
            table.c.status == AuthorizationStatus.VALID.value,
            table.c.expires_at > now,
        )
        return await self._database.read(
            lambda connection: frozenset(
                (Identifier(IdentifierType(row.type), row.value), bool(row.wildcard))
                for row in connection.execute(query)
            )
        )

    # --- Certificates and keys ------------------------------------------------------------------------------------

    async def certificate_by_der(self, der: bytes) -> CertificateRecord | None:
        try:
            serial = serial_text(x509.load_der_x509_certificate(der).serial_number)
        except ValueError:
            return None
        query = SELECT_RECORDS.where(certificates.c.serial == serial, certificates.c.der == der)
        return await self._database.read(
            lambda connection: next(iter(records_of(connection, connection.execute(query).all())), None)
        )

    async def spki_blocked(self, spki_sha256: bytes) -> bool:
        return await self._database.glance(lambda connection: read_spki_blocked(connection, spki_sha256))
