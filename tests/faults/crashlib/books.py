"""What the database says, read as an auditor reads it, and reconciled with token and clients."""

import hashlib
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from databases import run_apart
from interoplib.server import Server
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_server.store.backends import normalise_url
from crashlib.customers import Ledger
from crashlib.trap import Signatures

DATABASE_URL = "CA_SERVER__DATABASE__URL"
"""Environment variable that overrides the configuration, for every command."""
_PATIENCE = 60.0


def rows(url: str, statement: str) -> list[Any]:
    """All rows of a query, on a connection of its own."""
    found: list[Any] = []

    async def read() -> None:
        engine = create_async_engine(normalise_url(url))
        try:
            async with engine.connect() as connection:
                found.extend((await connection.execute(text(statement))).all())
        finally:
            await engine.dispose()

    run_apart(read())
    return found


def database_url(server: Server) -> str:
    """The database of a server under test."""
    return server.environment.get(DATABASE_URL) or f"sqlite+aiosqlite:///{server.home}/data/ca.db"


@dataclass
class Books:
    """What was counted, and every difference that was found."""

    intents: Counter[str] = field(default_factory=Counter)
    certificates: int = 0
    held: int = 0
    refused: int = 0
    signatures: int = 0
    signed_and_abandoned: int = 0
    revoked: int = 0
    leaves: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.certificates} certificates ({self.revoked} revoked), {self.intents['abandoned']} intents abandoned"
            f" ({self.signed_and_abandoned} of them signed), {self.signatures} signatures of certificates in the token,"
            f" {self.held} held by clients, {self.refused} orders refused, {self.leaves} leaves,"
            f" {len(self.differences)} differences"
        )

    def check(self, good: object, difference: str) -> None:
        if not good:
            self.differences.append(difference)


def serials_known(server: Server) -> frozenset[str]:
    """What was reserved so far, such as by `init`, before signatures were counted."""
    return frozenset(row.serial for row in rows(database_url(server), "SELECT serial FROM intents"))


def reconcile(server: Server, ledger: Ledger, signatures: Signatures, before: frozenset[str]) -> Books:
    """Hold everything against everything. The server is at work, and its clients are not."""
    books = Books()
    url = database_url(server)
    _wait_for_the_tree(url, books)
    intents = rows(url, "SELECT serial, state, tbs_sha256, enrollment_id FROM intents")
    certificates = rows(
        url,
        "SELECT serial, der, enrollment_id, transaction_key, requester_protocol, revoked_at FROM certificates"
        " WHERE enrollment_id IS NOT NULL",
    )
    _intents_and_certificates(books, intents, certificates)
    _signatures(books, intents, signatures, before)
    _clients(books, certificates, ledger)
    _events(books, url, intents, certificates)
    _status(books, server, intents, certificates)
    done = server.cli("audit", "verify", expect=None)
    books.check(done.returncode == 0, f"audit verify: {done.stdout}{done.stderr}")
    books.differences += ledger.complaints
    return books


def _wait_for_the_tree(url: str, books: Books) -> None:
    deadline = time.monotonic() + _PATIENCE
    while rows(url, "SELECT 1 FROM audit_pending") and time.monotonic() < deadline:
        time.sleep(0.2)
    events = rows(url, "SELECT count(*) FROM audit_events")[0][0]
    books.leaves = rows(url, "SELECT count(*) FROM audit_leaves")[0][0]
    # Between the two counts an event may have come that is no business of any client.
    books.check(abs(events - books.leaves) <= 3, f"{events} events, {books.leaves} leaves")


def _intents_and_certificates(books: Books, intents: list[Any], certificates: list[Any]) -> None:
    books.intents = Counter(row.state for row in intents)
    books.certificates = len(certificates)
    by_serial = {row.serial: row for row in certificates}
    books.check(len(by_serial) == len(certificates), "a serial stands twice")
    for row in intents:
        certificate = by_serial.pop(row.serial, None)
        books.check(row.state != "reserved", f"intent {row.serial} is live")
        if row.state == "issued":
            books.check(certificate is not None, f"{row.serial} is issued without a certificate")
        else:
            books.check(certificate is None, f"{row.serial} is {row.state} and has a certificate")
        if certificate is not None:
            tbs = x509.load_der_x509_certificate(certificate.der).tbs_certificate_bytes
            books.check(hashlib.sha256(tbs).digest() == row.tbs_sha256, f"{row.serial} is not what was reserved")
    books.check(not by_serial, f"certificates without an intent: {sorted(by_serial)}")
    doubled = [key for key, count in Counter(row.enrollment_id for row in certificates).items() if count > 1]
    books.check(not doubled, f"enrollments with two certificates: {doubled}")


def _signatures(books: Books, intents: list[Any], signatures: Signatures, before: frozenset[str]) -> None:
    counted = {row.tbs_sha256.hex(): row for row in intents if row.serial not in before}
    books.signatures = signatures.made.total()
    for digest, count in signatures.asked.items():
        books.check(digest in counted, f"a signature was asked for that nobody reserved: {digest}")
        books.check(count == 1, f"{digest} was signed {count} times")
    for digest, row in counted.items():
        if row.state == "issued":
            books.check(signatures.made[digest] == 1, f"{row.serial} was stored, and signed {signatures.made[digest]}")
        else:
            books.signed_and_abandoned += signatures.made[digest]


def _clients(books: Books, certificates: list[Any], ledger: Ledger) -> None:
    by_order: dict[str, list[Any]] = {}
    for row in certificates:
        if row.requester_protocol == "acme":
            by_order.setdefault(row.transaction_key, []).append(row)
    for holding in ledger.holdings:
        found = by_order.pop(holding.order_id, [])
        what = f"order {holding.order_id} for {holding.name}"
        if holding.certificate is None:
            books.refused += 1
            books.check(holding.refused, f"{what} has neither certificate nor error")
            books.check(not found, f"{what} was refused ({holding.refused}) and has {len(found)} certificates")
            continue
        books.held += 1
        held = x509.load_der_x509_certificate(holding.certificate)
        spki = held.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        books.check(spki == holding.spki, f"{what}: the certificate has another key")
        books.check([row.der for row in found] == [holding.certificate], f"{what}: held, and {len(found)} stored")
        if holding.revoked:
            books.check(any(row.revoked_at for row in found), f"{what} was revoked, and the table says not")
    books.check(not by_order, f"certificates of orders that no client knows: {sorted(by_order)}")


def _events(books: Books, url: str, intents: list[Any], certificates: list[Any]) -> None:
    found = dict(rows(url, "SELECT type, count(*) FROM audit_events WHERE serial IS NOT NULL GROUP BY type"))
    of_enrollments = {"issuance.reserved": len(intents), "issuance.abandoned": books.intents["abandoned"]}
    for kind, count in of_enrollments.items():
        books.check(found.get(kind, 0) == count, f"{found.get(kind, 0)} {kind} events for {count} rows")
    # CA certificates are on record too, and belong to no enrollment.
    of_cas = rows(url, "SELECT count(*) FROM certificates WHERE enrollment_id IS NULL")[0][0]
    expected, stored = len(certificates) + of_cas, found.get("issuance.stored", 0)
    books.check(stored == expected, f"{stored} issuance.stored events for {expected} certificates")


def _status(books: Books, server: Server, intents: list[Any], certificates: list[Any]) -> None:
    issuing = x509.load_pem_x509_certificate(server.issuing.read_bytes())
    revoked = {int(row.serial, 16) for row in certificates if row.revoked_at is not None}
    books.revoked = len(revoked)
    for row in intents:
        serial = int(row.serial, 16)
        answer = _ask_ocsp(server, issuing, serial)
        expected = "REVOKED" if row.state == "abandoned" or serial in revoked else "GOOD"
        books.check(answer == expected, f"OCSP says {answer} of {row.serial}, which is {expected}")
    deadline = time.monotonic() + _PATIENCE
    while (listed := _on_crl(server)) != revoked and time.monotonic() < deadline:
        time.sleep(0.5)
    books.check(listed == revoked, f"the CRL differs from the table in {listed ^ revoked}")


def _ask_ocsp(server: Server, issuing: x509.Certificate, serial: int) -> str:
    key = issuing.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key_hash = hashlib.sha256(key[-65:]).digest()
    name_hash = hashlib.sha256(issuing.subject.public_bytes()).digest()
    request = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name_hash, key_hash, serial, SHA256()).build()
    sent = urllib.request.Request(
        f"{server.http_url}/ocsp",
        request.public_bytes(Encoding.DER),
        {"Content-Type": "application/ocsp-request"},
    )
    with urllib.request.urlopen(sent, timeout=30) as response:
        answer = ocsp.load_der_ocsp_response(response.read())
    if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return answer.response_status.name
    return answer.certificate_status.name


def _on_crl(server: Server) -> set[int]:
    with urllib.request.urlopen(f"{server.http_url}/crl/issuing.crl", timeout=30) as response:
        return {entry.serial_number for entry in x509.load_der_x509_crl(response.read())}
