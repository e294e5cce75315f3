"""The ACME front-end's store in SQL: each method one transaction, the nonce used up in it."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from sqlalchemy import Connection, select

from ca_server.domain.accounts import Account, AccountRegistered
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import CaCertificate, CertificateRecord, serial_text
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.incidents import Incident
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.rates import Draw
from ca_server.store.acme_accounts import (
    USED_NONCES,
    account_by_id,
    account_by_thumbprint,
    account_lock,
    change_account,
    change_account_key,
    close_account,
    insert_account,
    key_lock,
    prune_nonces,
)
from ca_server.store.acme_authorizations import authorizations, move_authorization, preauthorize
from ca_server.store.acme_caa import caa_locks, caa_lookups, prune_caa, save_caa
from ca_server.store.acme_chains import issuer_certificate
from ca_server.store.acme_challenges import (
    begin_challenge,
    challenge_by_id,
    challenge_work,
    claim_challenges,
    finish_challenge,
    keep_challenges,
    record_attempt,
)
from ca_server.store.acme_limits import count, draw, limit_locks, prune_limits
from ca_server.store.acme_orders import (
    begin_finalize,
    claim_orders,
    fail_orders,
    fail_processing,
    insert_order,
    of_authorization,
    order_by_id,
    order_ids,
    order_work,
    prolong_order,
)
from ca_server.store.acme_retention import expired_orders, forget_orders, forget_preauthorizations
from ca_server.store.acme_star import begin_renewals
from ca_server.store.acme_star_store import SqlStarStore
from ca_server.store.acme_tables import acme_authorizations
from ca_server.store.audit_insert import RECORD, insert_events
from ca_server.store.certificates import SELECT_RECORDS, records_of
from ca_server.store.claims import Once
from ca_server.store.database import Along
from ca_server.store.eab_quota import look
from ca_server.store.eab_rows import read_key
from ca_server.store.incidents import incident_of
from ca_server.store.issuance import read_spki_blocked
from ca_server.store.issuers import ca_certificates_of
from ca_server.store.tables import certificates
from protocols.acme.caa.evaluation import CaaLookup
from protocols.acme.model import Attempt, Authorization, AuthorizationStatus, Challenge, Order
from protocols.acme.ports import (
    ANY_VALID,
    Agreement,
    Binding,
    ChallengeWork,
    KeyHolder,
    Lessee,
    NonceUse,
    OpenBounds,
    OrderWork,
    Reuse,
    Work,
)
from protocols.acme.star.terms import Begun

__all__ = ["SqlAcmeStore", "account_by_thumbprint", "account_lock", "insert_account", "key_lock"]

T = TypeVar("T")


class SqlAcmeStore(SqlStarStore):
    """`protocols.acme.star.ports.FrontStore` in SQL."""

    async def _write(
        self,
        work: Callable[[Connection], T],
        *,
        account_id: str | None = None,
        events: Sequence[AuditEvent] = (),
        nonce: NonceUse | None = None,
        draws: Sequence[Draw] = (),
    ) -> T:
        """Do the work for the account and use the nonce up; record the events where its value is not false.

        `draws` are those that the work takes.
        """
        return await self._database.write(
            work,
            locks=(*(() if account_id is None else (account_lock(account_id),)), *limit_locks(draws)),
            once=None if nonce is None else Once(USED_NONCES, nonce.nonce, nonce.expires_at),
            along=Along(RECORD, events) if events else None,
        )

    # --- Nonces and records ---------------------------------------------------------------------------------------

    async def consume_nonce(self, nonce: NonceUse) -> None:
        await self._write(lambda _connection: None, nonce=nonce)

    async def record(self, events: Sequence[AuditEvent], nonce: NonceUse | None) -> None:
        await self._write(lambda _connection: None, events=events, nonce=nonce)

    async def prune(self, before: datetime, limit: int) -> int:
        return await self._write(lambda connection: prune_nonces(connection, before, limit))

    async def prune_limits(self, before: datetime, limit: int) -> int:
        return await self._write(lambda connection: prune_limits(connection, before, limit))

    # --- Accounts -------------------------------------------------------------------------------------------------

    async def account(self, account_id: str) -> Account | None:
        return await self._database.glance(lambda connection: account_by_id(connection, account_id), one_moment=False)

    async def binding(self, account: Account, names: Sequence[Identifier], now: datetime) -> Binding | None:
        kid = account.eab_kid
        if kid is None:
            return None

        def query(connection: Connection) -> Binding | None:
            key = read_key(connection, kid)
            if key is None:
                return None
            no_room = look(connection, key, account.id, tuple(map(str, names)), now) if names else None
            return Binding(key, no_room)

        return await self._database.glance(query, one_moment=False)

    async def account_by_key(self, tenant: str, thumbprint: str) -> Account | None:
        return await self._database.read(lambda connection: account_by_thumbprint(connection, tenant, thumbprint))

    async def create_account(
        self, account: Account, events: Sequence[AuditEvent], nonce: NonceUse | None, draws: Sequence[Draw] = ()
    ) -> AccountRegistered:
        def work(connection: Connection) -> AccountRegistered:
            standing = account_by_thumbprint(connection, account.tenant, account.key_thumbprint)
            if standing is not None:
                return AccountRegistered(standing, created=False)
            draw(connection, draws, account.created_at)
            insert_account(connection, account)
            insert_events(connection, events)
            return AccountRegistered(account, created=True)

        once = None if nonce is None else Once(USED_NONCES, nonce.nonce, nonce.expires_at)
        return await self._database.write(work, locks=(key_lock(account), *limit_locks(draws)), once=once)

    async def update_account(
        self,
        account_id: str,
        contacts: tuple[str, ...] | None,
        agreement: Agreement | None,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Account:
        values: dict[str, object] = {}
        if contacts is not None:
            values["contacts"] = json.dumps(contacts)
        if agreement is not None:
            values |= {"terms_agreed_at": agreement.at, "terms_of_service": agreement.terms_of_service}
        return await self._write(
            lambda connection: change_account(connection, account_id, values),
            account_id=account_id,
            events=events,
            nonce=nonce,
        )

    async def change_account_key(
        self, account: Account, new: Account, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> KeyHolder:
        def work(connection: Connection) -> KeyHolder:
            holder = change_account_key(connection, account, new)
            if holder.changed:
                insert_events(connection, events)
            return holder

        return await self._database.write(
            work,
            locks=(account_lock(account.id), key_lock(new)),
            once=None if nonce is None else Once(USED_NONCES, nonce.nonce, nonce.expires_at),
        )

    async def deactivate_account(
        self, account_id: str, error: bytes, events: Sequence[AuditEvent], nonce: NonceUse | None
    ) -> Account:
        return await self._write(
            lambda connection: close_account(connection, account_id, error, self._tenant),
            account_id=account_id,
            events=events,
            nonce=nonce,
        )

    # --- Orders ---------------------------------------------------------------------------------------------------

    async def create_order(
        self,
        order: Order,
        candidates: Sequence[Authorization],
        bounds: OpenBounds,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
        reuse: Reuse | None = ANY_VALID,
        afresh: Collection[str] = (),
    ) -> Order:
        return await self._write(
            lambda connection: insert_order(connection, order, candidates, bounds, self._tenant, reuse, afresh),
            account_id=order.account_id,
            events=events,
            nonce=nonce,
            draws=bounds.draws,
        )

    async def order(self, order_id: str) -> Order | None:
        return await self._database.glance(lambda connection: order_by_id(connection, order_id, self._tenant))

    async def order_work(self, order_id: str) -> OrderWork | None:
        return await self._database.glance(lambda connection: order_work(connection, order_id, self._tenant))

    async def orders_of(self, account_id: str, after: str | None, limit: int) -> tuple[str, ...]:
        return await self._database.read(lambda connection: order_ids(connection, account_id, after, limit))

    async def begin_finalize(
        self,
        account_id: str,
        order_id: str,
        csr_der: bytes,
        lessee: Lessee,
        nonce: NonceUse | None,
        draws: Sequence[Draw] = (),
        begun: Begun | None = None,
    ) -> bool:
        def work(connection: Connection) -> bool:
            if not begin_finalize(connection, order_id, csr_der, lessee):
                return False
            draw(connection, draws, lessee.now)
            if begun is not None:
                begin_renewals(connection, account_id, order_id, begun)
            return True

        return await self._write(work, account_id=account_id, nonce=nonce, draws=draws)

    async def claim_orders(self, lessee: Lessee, limit: int, *, restarted: bool = False) -> tuple[Work, ...]:
        return await self._write(
            lambda connection: claim_orders(connection, lessee, limit, self._tenant, restarted=restarted)
        )

    async def prolong_order(self, account_id: str, order_id: str, lessee: Lessee) -> bool:
        return await self._write(lambda connection: prolong_order(connection, order_id, lessee), account_id=account_id)

    async def fail_order(self, account_id: str, order_id: str, error: bytes, events: Sequence[AuditEvent]) -> bool:
        return await self._write(
            lambda connection: fail_processing(connection, order_id, error, self._tenant),
            account_id=account_id,
            events=events,
        )

    async def caa_lookups(self, names: Sequence[str], since: datetime) -> Mapping[str, CaaLookup]:
        return await self._database.read(lambda connection: caa_lookups(connection, self._tenant, names, since))

    async def save_caa(self, lookups: Sequence[CaaLookup], events: Sequence[AuditEvent]) -> None:
        await self._database.write(
            lambda connection: save_caa(connection, self._tenant, lookups),
            locks=tuple(caa_locks(lookups)),
            along=Along(RECORD, events),
        )

    async def prune_caa(self, before: datetime, limit: int) -> int:
        return await self._write(lambda connection: prune_caa(connection, before, limit))

    async def expired_orders(self, before: datetime, limit: int) -> tuple[str, ...]:
        return await self._database.read(lambda connection: expired_orders(connection, before, self._tenant, limit))

    async def forget_orders(self, order_ids: Sequence[str]) -> None:
        await self._database.write(lambda connection: forget_orders(connection, order_ids), locks=("acme-retention",))

    async def forget_preauthorizations(self, before: datetime, limit: int) -> int:
        return await self._database.write(
            lambda connection: forget_preauthorizations(connection, before, limit), locks=("acme-retention",)
        )

    # --- Authorizations and challenges ----------------------------------------------------------------------------

    async def create_authorization(
        self,
        candidate: Authorization,
        max_open: int,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
        reuse: Reuse = ANY_VALID,
        draws: Sequence[Draw] = (),
    ) -> Authorization:
        def work(connection: Connection) -> Authorization:
            found, created = preauthorize(connection, candidate, max_open, reuse)
            if created:
                draw(connection, draws, candidate.created_at)
                insert_events(connection, events)
            return found

        return await self._write(work, account_id=candidate.account_id, nonce=nonce, draws=draws)

    async def authorization(self, authorization_id: str) -> Authorization | None:
        found = await self._database.glance(lambda connection: authorizations(connection, [authorization_id]))
        return found[0] if found else None

    async def challenge(self, challenge_id: str) -> tuple[Challenge, Authorization] | None:
        return await self._database.glance(lambda connection: challenge_by_id(connection, challenge_id))

    async def challenge_work(self, challenge_id: str) -> ChallengeWork | None:
        return await self._database.read(lambda connection: challenge_work(connection, challenge_id))

    async def deactivate_authorization(
        self,
        account_id: str,
        authorization_id: str,
        error: bytes,
        events: Sequence[AuditEvent],
        nonce: NonceUse | None,
    ) -> Authorization:
        def work(connection: Connection) -> Authorization:
            if move_authorization(connection, authorization_id, AuthorizationStatus.DEACTIVATED):
                fail_orders(connection, of_authorization(authorization_id), error, self._tenant)
                insert_events(connection, events)
            found = authorizations(connection, [authorization_id])
            if not found:
                raise CaError(ErrorKind.NOT_FOUND, "there is no such authorization")
            return found[0]

        return await self._write(work, account_id=account_id, nonce=nonce)

    async def begin_challenge(
        self,
        account_id: str,
        challenge_id: str,
        lessee: Lessee,
        max_processing: int,
        nonce: NonceUse | None,
        draws: Sequence[Draw] = (),
        response: bytes | None = None,
    ) -> bool:
        def work(connection: Connection) -> bool:
            if not begin_challenge(connection, account_id, challenge_id, lessee, max_processing, response):
                return False
            draw(connection, draws, lessee.now)
            return True

        return await self._write(work, account_id=account_id, nonce=nonce, draws=draws)

    async def claim_challenges(
        self, lessee: Lessee, limit: int, error: bytes, *, restarted: bool = False
    ) -> tuple[Work, ...]:
        return await self._write(
            lambda connection: claim_challenges(connection, lessee, limit, error, restarted=restarted)
        )

    async def keep_challenges(self, lessee: Lessee, works: Sequence[Work]) -> frozenset[str]:
        return await self._database.write(
            lambda connection: keep_challenges(connection, lessee, [work.id for work in works]),
            locks=[account_lock(work.account_id) for work in works],
        )

    async def record_attempt(
        self, account_id: str, challenge_id: str, lessee: Lessee, error: bytes, attempt: Attempt | None = None
    ) -> bool:
        return await self._write(
            lambda connection: record_attempt(connection, challenge_id, lessee, error, attempt), account_id=account_id
        )

    async def finish_challenge(
        self,
        work: ChallengeWork,
        holder: str,
        error: bytes | None,
        now: datetime,
        valid_until: datetime,
        events: Sequence[AuditEvent],
        draws: Sequence[Draw] = (),
        evidence: bytes | None = None,
        attempt: Attempt | None = None,
    ) -> bool:
        def finish(connection: Connection) -> bool:
            if not finish_challenge(connection, work, holder, error, now, valid_until, self._tenant, evidence, attempt):
                return False
            count(connection, draws, now)
            return True

        account_id = work.authorization.account_id
        return await self._write(finish, account_id=account_id, events=events, draws=draws)

    async def valid_identifiers(self, account_id: str, now: datetime) -> frozenset[tuple[Identifier, bool, bool]]:
        table = acme_authorizations
        query = select(table.c.type, table.c.value, table.c.wildcard, table.c.subdomains).where(
            table.c.account_id == account_id,
            table.c.status == AuthorizationStatus.VALID.value,
            table.c.expires_at > now,
        )
        return await self._database.read(
            lambda connection: frozenset(
                (Identifier(IdentifierType(row.type), row.value), bool(row.wildcard), bool(row.subdomains))
                for row in connection.execute(query)
            )
        )

    # --- Certificates and keys ------------------------------------------------------------------------------------

    async def issuer_certificate(self, issuer: str) -> bytes | None:
        return await self._database.glance(
            lambda connection: issuer_certificate(connection, self._tenant, issuer), one_moment=False
        )

    async def ca_certificates(self) -> tuple[CaCertificate, ...]:
        return await self._database.glance(ca_certificates_of, one_moment=False)

    async def certificate_by_der(self, der: bytes) -> CertificateRecord | None:
        try:
            serial = serial_text(x509.load_der_x509_certificate(der).serial_number)
        except ValueError:
            return None
        query = SELECT_RECORDS.where(certificates.c.serial == serial, certificates.c.der == der)
        return await self._database.read(
            lambda connection: next(iter(records_of(connection, connection.execute(query).all())), None)
        )

    async def certificates_by_serial(self, serial: str) -> tuple[CertificateRecord, ...]:
        query = SELECT_RECORDS.where(certificates.c.serial == serial)
        return await self._database.read(lambda connection: records_of(connection, connection.execute(query).all()))

    async def incident_of(self, record: CertificateRecord) -> Incident | None:
        return await self._database.read(lambda connection: incident_of(connection, record))

    async def spki_blocked(self, spki_sha256: bytes) -> bool:
        return await self._database.glance(
            lambda connection: read_spki_blocked(connection, spki_sha256), one_moment=False
        )
