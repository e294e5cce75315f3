"""A CA's database with its log, filled as a CA does, and an attacker's way into it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, text

from ca_server.core.audit import (
    EventFactory,
    FindingKind,
    Sequencer,
    VerificationReport,
    verify,
)
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import (
    CertificateRecord,
    Issuer,
    IssuerKey,
    IssuerKind,
    RevocationReason,
    RevokedEntry,
)
from ca_server.domain.enrollment import EnrollmentKey, Fence, IssuanceIntent, Protocol
from ca_server.domain.keys import KeyAlgorithm
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.revocation import SqlRevocationStore

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ORIGIN = "log.example.test"


class MemoryKey:
    """A SigningKey without a token."""

    label = "log"
    algorithm = KeyAlgorithm.P256

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.spki_der = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(SHA256()))


@dataclass
class Victim:
    """A CA's database with its log, and the attacker's way into it."""

    database: Database
    store: SqlAuditStore
    anchor: FileAnchor
    key: MemoryKey
    events: tuple[EventFactory, EventFactory]
    fence: Fence
    issuer: Issuer

    def sequencer(self, **changes: Any) -> Sequencer:
        arguments: dict[str, Any] = {
            "store": self.store,
            "coordination": SqlCoordinationStore(self.database),
            "key": self.key,
            "anchor": self.anchor,
            "origin": ORIGIN,
            "holder": "node/1",
        }
        return Sequencer(**(arguments | changes))

    async def fill(self, until: int) -> None:
        """Add events of both processes in turn until that many wait, and seal them under one checkpoint."""
        while (waiting := len(await self.store.pending(100))) < until:
            await self.store.append([self.events[waiting % 2].make(EventType.ORDER_CREATED, object=f"o{waiting}")])
        assert await self.sequencer().run_once() == until

    async def issue(self, serial: str) -> None:
        store = SqlIssuanceStore(self.database)
        enrollment = EnrollmentKey(Protocol.ACME, "default", "account", serial)
        tbs, der = sha256(serial.encode()).digest(), b"\x30\x02" + bytes.fromhex(serial)
        intent = IssuanceIntent(
            serial, enrollment, "ca", self.issuer.key.id, serial, tbs, "default", "hash", self.fence, NOW
        )
        about = {"issuer": "ca", "serial": serial}
        make = self.events[0].make
        await store.reserve(
            intent, bytes(32), [make(EventType.ISSUANCE_RESERVED, extra={"tbs_sha256": tbs.hex()}, **about)]
        )
        digest = sha256(der).hexdigest()
        record = CertificateRecord(
            serial,
            "ca",
            self.issuer.key.id,
            der,
            "default",
            "hash",
            "CN=a",
            (),
            bytes(32),
            NOW,
            NOW,
            NOW,
            "acme",
            "a",
            serial,
        )
        stored = make(EventType.ISSUANCE_STORED, extra={"certificate_sha256": digest}, **about)
        await store.complete(serial, self.fence, record, [stored])

    async def revoke(self, serial: str, reason: RevocationReason) -> None:
        event = self.events[0].make(EventType.CERTIFICATE_REVOKED, issuer="ca", serial=serial, reason=reason.label)
        entry = RevokedEntry(serial, NOW, reason)
        assert await SqlRevocationStore(self.database).revoke(entry, "ca", [event]) is None

    async def attack(self, *statements: str, **parameters: Any) -> None:
        def unit(connection: Connection) -> None:
            for statement in statements:
                used = {name: value for name, value in parameters.items() if f":{name}" in statement}
                connection.execute(text(statement), used)

        await self.database.write(unit)

    async def disarm(self) -> None:
        """Drop what refuses."""
        if self.database.dialect == "postgresql":
            await self.attack(
                "DROP FUNCTION audit_refuse() CASCADE",
                "ALTER TABLE audit_leaves DROP CONSTRAINT fk_audit_leaves_event_id_audit_events",
            )
            return

        def drop(connection: Connection) -> None:
            for (name,) in connection.execute(
                text("SELECT name FROM sqlite_master WHERE name LIKE 'audit%/_no/_%' ESCAPE '/'")
            ).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
            # No foreign keys: rebuild the table without them.
            connection.execute(text("CREATE TABLE copied (leaf_index INTEGER, event_id TEXT, leaf_hash BLOB)"))
            connection.execute(text("INSERT INTO copied SELECT * FROM audit_leaves"))
            connection.execute(text("DROP TABLE audit_leaves"))
            connection.execute(text("ALTER TABLE copied RENAME TO audit_leaves"))

        await self.database.write(drop)

    async def leaf(self, index: int) -> tuple[str, bytes]:
        row = (await self.store.leaves(index, 1))[0]
        assert row.index == index
        return row.event_id, row.event.leaf

    async def rewrite(self, index: int, leaf: bytes, **columns: str) -> None:
        """Replace an event's leaf; columns follow, so that only hashes can tell."""
        event_id, _ = await self.leaf(index)
        changes = "".join(f", {name} = :{name}" for name in columns)
        await self.attack(
            f"UPDATE audit_events SET leaf = :leaf{changes} WHERE id = :id", leaf=leaf, id=event_id, **columns
        )

    async def verify(self, **changes: Any) -> VerificationReport:
        arguments: dict[str, Any] = {"anchor": self.anchor, "grace": timedelta(0)}
        return await verify(self.store, [self.key.spki_der], **(arguments | changes))


async def make_victim(database: Database, folder: Path) -> Victim:
    """A CA that issued three certificates and revoked one: 24 leaves under checkpoints of 8, 16 and 24."""
    coordination = SqlCoordinationStore(database)
    fence = await coordination.begin_boot("node", "home", NOW, timedelta(seconds=30))
    ca_key = IssuerKey(0, "ca", 1, "ca-1", KeyAlgorithm.P256, b"\x30\x00", b"\x30\x00", ())
    issuer = await SqlIssuerStore(database).create_issuer(Issuer("ca", IssuerKind.ROOT, ca_key), None, [])
    factories = [
        EventFactory(node="node", process=name, software="test", configuration="0", instance="1")
        for name in ("core", "front")
    ]
    made = Victim(
        database,
        SqlAuditStore(database),
        FileAnchor(folder / "anchor"),
        MemoryKey(),
        (factories[0], factories[1]),
        fence,
        issuer,
    )
    await made.issue("0a")
    await made.issue("0b")
    await made.fill(8)
    await made.issue("0c")
    await made.revoke("0b", RevocationReason.KEY_COMPROMISE)
    await made.fill(8)
    await made.fill(8)
    return made


def found(report: VerificationReport) -> set[tuple[str, str]]:
    return {(finding.kind.value, finding.where) for finding in report.findings}


def kinds(report: VerificationReport) -> set[FindingKind]:
    return {finding.kind for finding in report.findings}
