"""A migrated database of either kind, with what makes its content."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.domain.audit import AuditEvent, EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, Issuer, IssuerKey, IssuerKind
from ca_server.domain.enrollment import EnrollmentKey, Fence, IssuanceIntent, Protocol
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore

NOW = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


def der(content: bytes) -> bytes:
    """A DER SEQUENCE of anything."""
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


@dataclass
class World:
    """A migrated database with a booted node, a root and an issuing CA, and makers of what goes in."""

    database: Database
    fence: Fence
    root: Issuer
    issuing: Issuer
    now: datetime = NOW
    count: int = field(default=0)

    def next(self) -> int:
        self.count += 1
        return self.count

    def key(self, transaction: str = "order-1", **changes: object) -> EnrollmentKey:
        return replace(EnrollmentKey(Protocol.ACME, "default", "account-1", transaction), **changes)

    def intent(self, transaction: str = "order-1", **changes: object) -> IssuanceIntent:
        number = self.next()
        intent = IssuanceIntent(
            id=f"intent-{number}",
            enrollment=self.key(transaction),
            issuer="issuing",
            issuer_key_id=self.issuing.key.id,
            serial=f"{0xA000 + number:06x}",
            tbs_sha256=bytes([number % 256]) * 32,
            profile="default",
            profile_hash="hash",
            fence=self.fence,
            reserved_at=self.now,
        )
        return replace(intent, **changes)

    def record(self, intent: IssuanceIntent, **changes: object) -> CertificateRecord:
        record = CertificateRecord(
            serial=intent.serial,
            issuer=intent.issuer,
            issuer_key_id=intent.issuer_key_id,
            certificate_der=der(intent.serial.encode()),
            profile=intent.profile,
            profile_hash=intent.profile_hash,
            subject="CN=a.example.test",
            names=("dns:a.example.test", "ip:2001:db8::1"),
            spki_sha256=b"k" * 32,
            not_before=self.now - timedelta(hours=1),
            not_after=self.now + timedelta(days=90),
            issued_at=self.now,
            requester_protocol="acme",
            requester_id="account-1",
            transaction_key=intent.enrollment.transaction_key,
        )
        return replace(record, **changes)

    def event(self, kind: EventType = EventType.ISSUANCE_RESERVED) -> AuditEvent:
        number = self.next()
        return AuditEvent(
            id=f"event-{number:06}",
            type=kind,
            outcome=Outcome.SUCCESS,
            time=self.now,
            node="node",
            process="node/core/1",
            sequence=number,
            software="test",
            configuration="test",
        )

    async def issue(self, transaction: str, **changes: object) -> CertificateRecord:
        """Reserve and complete a certificate."""
        store = SqlIssuanceStore(self.database)
        intent = self.intent(transaction)
        record = self.record(intent, **changes)
        await store.reserve(intent, b"c" * 32, [])
        await store.complete(intent.id, intent.fence, record, [])
        return record


def issuer(name: str, kind: IssuerKind, parent: str | None = None, chain: tuple[bytes, ...] = ()) -> Issuer:
    key = IssuerKey(
        id=0,
        issuer=name,
        generation=1,
        label=f"{name}-1",
        algorithm=KeyAlgorithm.P256,
        spki_der=der(b"spki " + name.encode()),
        certificate_der=der(b"ca " + name.encode()),
        chain=chain,
    )
    return Issuer(name, kind, key, parent)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = await Database.open(url)
    yield opened
    await opened.close()


@pytest.fixture
async def world(database: Database) -> World:
    fence = await SqlCoordinationStore(database).begin_boot("node", "home", NOW, timedelta(seconds=30))
    store = SqlIssuerStore(database)
    root = await store.create_issuer(issuer("root", IssuerKind.ROOT), None, [])
    below = issuer("issuing", IssuerKind.ISSUING, "root", (root.key.certificate_der,))
    issuing = await store.create_issuer(below, None, [])
    return World(database, fence, root, issuing)
