"""Certificate status under test: real front-end, core and store over SQLite behind HTTP; keys in software."""

import asyncio
import base64
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from sqlalchemy import Connection, text
from yarl import URL

from ca_server.core.admission import Admission, Ages
from ca_server.core.audit import EventFactory
from ca_server.core.crl import CrlPublisher, CrlSchedule
from ca_server.core.der import encode, encode_oid
from ca_server.core.issuance import Issuance
from ca_server.core.issuers import ActiveIssuer, Ceremony, IssuerPlan, IssuerRegistry, UrlPlan
from ca_server.core.lint import Linter
from ca_server.core.ocsp import OcspResponder, UnknownSerial
from ca_server.core.ports import Health, Welcome
from ca_server.core.profiles import ProfileBook
from ca_server.core.responders import Responders
from ca_server.core.revocation import Revocation
from ca_server.core.service import AdminService, CoreService, WriteGate
from ca_server.domain.certificates import CertificateRecord, Crl, RevocationReason, RevocationRequest
from ca_server.domain.enrollment import EnrollmentKey, EnrollmentRequest, IssuanceIntent, Protocol, Requester
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import dns_identifier
from ca_server.domain.profiles import load_profile
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.migrate import migrate
from ca_server.store.profiles import SqlProfileStore
from ca_server.store.revocation import SqlRevocationStore
from ca_server.web.application import create_application
from ca_server.web.options import WebOptions
from protocols.status import views
from protocols.status.views import StatusFrontEnd

LEAF = """
frontends = ["admin"]
allow_hold = true
[names]
dns_suffixes = ["test"]
[keys]
allowed = ["ec-p256"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["server_auth"]
"""
PROFILES = {
    "default": LEAF,
    "brief": LEAF.replace('"90d"', '"2d"'),
    "no-hold": LEAF.replace("allow_hold = true\n", ""),
    "elsewhere": LEAF.replace('frontends = ["admin"]', 'frontends = ["admin"]\nissuer = "other"'),
    "ocsp-responder": (Path(__file__).parents[3] / "config/profiles/ocsp-responder.toml").read_text("utf-8"),
}
LIFETIME = timedelta(hours=1)
SCHEDULE = CrlSchedule(lifetime=timedelta(days=7), interval=timedelta(days=5))
DIGESTS = {"sha1": "1.3.14.3.2.26", "sha256": "2.16.840.1.101.3.4.2.1"}
NONCE = "1.3.6.1.5.5.7.48.1.2"


@dataclass
class SoftKey:
    label: str
    token: "SoftKeys"
    algorithm: KeyAlgorithm = KeyAlgorithm.P256
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def spki_der(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(self, data: bytes) -> bytes:
        self.token.check()
        self.token.uses[self.label] += 1
        await asyncio.sleep(0)
        return self.private.sign(data, ec.ECDSA(hashes.SHA256()))


class SoftKeys:
    """What a token does, without one; `away` takes it out."""

    def __init__(self) -> None:
        self.away = False
        self.uses: Counter[str] = Counter()
        self._keys: dict[str, SoftKey] = {}

    def check(self) -> None:
        if self.away:
            raise CaError(ErrorKind.UNAVAILABLE, "the token is away")

    async def generate(self, label: str, algorithm: KeyAlgorithm) -> SoftKey:
        self.check()
        self._keys[label] = SoftKey(label, self, algorithm)
        return self._keys[label]

    async def find(self, label: str) -> SoftKey:
        self.check()
        if label not in self._keys:
            raise CaError(ErrorKind.NOT_FOUND, "no such key")
        return self._keys[label]

    async def delete(self, label: str) -> bool:
        self.check()
        return self._keys.pop(label, None) is not None

    async def labels(self) -> tuple[str, ...]:
        self.check()
        return tuple(self._keys)

    async def random(self, length: int) -> bytes:
        import secrets

        return secrets.token_bytes(length)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def ocsp(self) -> ocsp.OCSPResponse:
        assert self.headers["Content-Type"] == "application/ocsp-response", (self.status, self.body)
        assert self.status == 200
        return ocsp.load_der_ocsp_response(self.body)

    @property
    def outcome(self) -> str:
        """An OCSP error's name, or the statuses of the answers."""
        response = self.ocsp
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            assert self.headers["Cache-Control"] == "no-store"
            return response.response_status.name
        return " ".join(single.certificate_status.name for single in response.responses)

    @property
    def max_age(self) -> int:
        directives = self.headers["Cache-Control"].split(", ")
        return int(next(item for item in directives if item.startswith("max-age=")).removeprefix("max-age="))


class World:
    """A core with a root and two issuing CAs, and a front that serves their status. `later` moves all clocks."""

    def __init__(self, stack: AsyncExitStack, database: Database) -> None:
        self.stack = stack
        self.database = database
        self.later = timedelta()
        self.front_later = timedelta()
        self.keys = SoftKeys()
        self.observed: list[tuple[str, str]] = []
        self.gate = WriteGate()
        self.stores = SqlRevocationStore(database)
        self.certificates = SqlIssuanceStore(database)
        self._count = 0

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.later

    def events(self) -> EventFactory:
        return EventFactory(node="node", process="core", software="test", configuration="test")

    async def open(self) -> None:
        database, keys, urls = self.database, self.keys, UrlPlan("http://ca.example.test")
        self.issuer_store, self.audit = SqlIssuerStore(database), SqlAuditStore(database)
        self.fence = await SqlCoordinationStore(database).begin_boot(
            "node", "home", datetime.now(UTC), timedelta(days=1)
        )
        linter = Linter(pkilint=False)
        self.ceremony = Ceremony(self.issuer_store, self.audit, keys, linter, self.events(), urls)  # type: ignore[arg-type]
        for name, parent in (("root", None), ("issuing", "root"), ("other", "root")):
            plan = IssuerPlan(
                name, parent, KeyAlgorithm.P256, f"Test {name} CA", "", "", 3650, None if not parent else 0
            )
            await self.ceremony.create(plan)
        self.registry = IssuerRegistry(self.issuer_store, keys, urls)  # type: ignore[arg-type]
        await self.registry.load()
        profiles = ProfileBook(SqlProfileStore(database), {})
        loaded = {name: load_profile(name, body, where=name) for name, body in PROFILES.items()}
        await profiles.put_in_force(loaded, self.events())
        self.profiles = profiles
        self.issuance = Issuance(
            store=self.certificates,
            audit=self.audit,
            admission=Admission(store=self.certificates, issuers=self.registry, profiles=profiles, ages=Ages()),
            linter=linter,
            events=self.events(),
            fence=lambda: self.fence,
            clock=self.clock,
        )
        self.publisher = self.make_publisher()
        self.revocation = Revocation(
            certificates=self.certificates,
            store=self.stores,
            audit=self.audit,
            profiles=profiles,
            events=self.events(),
            revoked=self._revoked,
            clock=self.clock,
        )
        self.responders = self.make_responders()
        await self.publisher.refresh_due()
        await self.responders.ensure()
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession())
        await self.serve()

    def _revoked(self, record: CertificateRecord) -> None:
        self.publisher.mark_dirty(record.issuer)

    def make_publisher(self, **changes: Any) -> CrlPublisher:
        values: dict[str, Any] = {
            "store": self.stores,
            "issuers": self.registry,
            "schedules": dict.fromkeys(("root", "issuing", "other"), SCHEDULE),
            "events": self.events(),
            "coalesce": 0.0,
            "clock": self.clock,
        }
        return CrlPublisher(**(values | changes))

    def make_responders(self) -> Responders:
        return Responders(
            keys=self.keys,  # type: ignore[arg-type]
            ceremony=self.ceremony,
            issuance=self.issuance,
            certificates=self.certificates,
            issuers=self.registry,
            audit=self.audit,
            events=self.events(),
            clock=self.clock,
        )

    async def serve(self, unknown_serial: UnknownSerial = "unknown", max_body: int = 262_144) -> None:
        """Serve, from now on, with a new responder and front."""
        self.responder = OcspResponder(
            store=self.certificates,
            issuers=self.registry,
            responder=self.responders.get,
            lifetime=LIFETIME,
            unknown_serial=unknown_serial,
            clock=self.clock,
            observe=lambda issuer, outcome: self.observed.append((issuer, outcome)),
        )
        self.responder.index()

        async def health() -> Health:
            return Health((), 0.0, token_ok=True, database_ok=True, crls_fresh=True)

        async def reload(_actor: str) -> tuple[str, ...]:
            return ()

        self.core = CoreService(
            welcome=Welcome("node", b"n" * 32, "test"),
            issuance=self.issuance,
            revocation=self.revocation,
            responder=self.responder,
            accounts=None,  # type: ignore[arg-type]
            health=health,
            gate=self.gate,
            listener_names=frozenset(),
            audit=self.audit,
            events=self.events(),
        )
        self.admin = AdminService(
            revocation=self.revocation,
            publisher=self.publisher,
            accounts=None,  # type: ignore[arg-type]
            blocklist=None,  # type: ignore[arg-type]
            incidents=None,  # type: ignore[arg-type]
            limits=None,  # type: ignore[arg-type]
            cross=None,  # type: ignore[arg-type]
            reload=reload,
            health=health,
            gate=self.gate,
            actor=lambda: "uid:0",
        )
        front = StatusFrontEnd(
            core=self.core,
            revocation=self.stores,
            issuers=self.issuer_store,
            clock=lambda: self.clock() + self.front_later,
        )
        self.server = TestServer(create_application("http", WebOptions(max_body=max_body), [front.register]))
        await self.server.start_server()
        self.stack.push_async_callback(self.server.close)

    # --- What the CA does ---------------------------------------------------------------------------------------

    def issuer(self, name: str = "issuing") -> ActiveIssuer:
        return self.registry.get(name)

    async def issue(self, profile: str = "default") -> x509.Certificate:
        self._count += 1
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.test")]), critical=False)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        issued = await self.issuance.issue(
            EnrollmentRequest(
                requester=Requester(Protocol.ADMIN, "uid:0", "operator"),
                profile=profile,
                csr_der=csr.public_bytes(Encoding.DER),
                identifiers=(dns_identifier("a.test"),),
                transaction_key=f"transaction-{self._count}",
            )
        )
        return x509.load_der_x509_certificate(issued.certificate_der)

    async def reserve(self, serial: int) -> str:
        """Reserve a serial as the pipeline does; return the intent's id."""
        self._count += 1
        digits = f"{serial:x}"
        intent = IssuanceIntent(
            id=f"intent-{self._count}",
            enrollment=EnrollmentKey(Protocol.ADMIN, "default", "uid:0", f"transaction-{self._count}"),
            issuer="issuing",
            issuer_key_id=self.issuer().issuer.key.id,
            serial=digits.zfill(len(digits) + len(digits) % 2),
            tbs_sha256=b"t" * 32,
            profile="default",
            profile_hash="hash",
            fence=self.fence,
            reserved_at=self.clock(),
        )
        await self.certificates.reserve(intent, b"c" * 32, [])
        return intent.id

    def revocation_request(
        self, certificate: x509.Certificate, reason: RevocationReason, issuer: str = "issuing", **changes: Any
    ) -> RevocationRequest:
        digits = f"{certificate.serial_number:x}"
        values: dict[str, Any] = {
            "issuer": issuer,
            "serial": digits.zfill(len(digits) + len(digits) % 2),
            "reason": reason,
            "requester_protocol": "acme",
            "requester_id": "account-1",
            "authenticated_by": "certificate-key",
        }
        return RevocationRequest(**(values | changes))

    async def revoke(
        self,
        certificate: x509.Certificate,
        reason: RevocationReason = RevocationReason.UNSPECIFIED,
        issuer: str = "issuing",
        **changes: Any,
    ) -> None:
        await self.core.revoke(self.revocation_request(certificate, reason, issuer, **changes))

    async def revoke_as_operator(self, certificate: x509.Certificate, reason: RevocationReason, issuer: str) -> None:
        await self.admin.revoke(self.revocation_request(certificate, reason, issuer))

    async def release(self, certificate: x509.Certificate) -> None:
        await self.admin.revoke(self.revocation_request(certificate, RevocationReason.REMOVE_FROM_CRL))

    async def latest(self, issuer: str = "issuing") -> Crl:
        found = await self.stores.latest_crl(issuer)
        assert found is not None
        return found

    async def listed(self, issuer: str = "issuing") -> dict[int, x509.RevokedCertificate]:
        """The entries of the list that stands, by serial; its signature is the issuer's."""
        crl = x509.load_der_x509_crl((await self.latest(issuer)).der)
        assert crl.is_signature_valid(self.issuer(issuer).certificate.public_key())  # type: ignore[arg-type]
        return {entry.serial_number: entry for entry in crl}

    async def publish(self, issuer: str = "issuing") -> dict[int, x509.RevokedCertificate]:
        await self.publisher.publish(issuer)
        return await self.listed(issuer)

    async def query(self, sql: str) -> list[Any]:
        def read(connection: Connection) -> list[Any]:
            return list(connection.execute(text(sql)))

        return await self.database.read(read)

    async def audited(self, kind: str) -> int:
        return int((await self.query(f"SELECT count(*) FROM audit_events WHERE type = '{kind}'"))[0][0])

    # --- What relying parties do --------------------------------------------------------------------------------

    def cert_id(
        self, serial: int, issuer: str = "issuing", digest: str = "sha1", *, null: bool = True, oid: str = ""
    ) -> bytes:
        """A DER CertID (RFC 6960 section 4.1.1), with NULL parameters or without."""
        certificate = self.issuer(issuer).certificate
        algorithm = hashes.SHA1() if digest == "sha1" else hashes.SHA256()
        key = certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

        def hashed(data: bytes) -> bytes:
            hasher = hashes.Hash(algorithm)
            hasher.update(data)
            return hasher.finalize()

        return encode(
            0x30,
            encode(0x30, encode_oid(oid or DIGESTS[digest]), encode(0x05) if null else b""),
            encode(0x04, hashed(certificate.subject.public_bytes())),
            encode(0x04, hashed(key)),
            encode(0x02, serial.to_bytes((serial + (serial < 0)).bit_length() // 8 + 1, "big", signed=True)),
        )

    def request(self, *cert_ids: bytes, nonce: bytes | None = None, extensions: Iterable[bytes] = ()) -> bytes:
        """A DER OCSPRequest."""
        items = list(extensions)
        if nonce is not None:
            items.append(encode(0x30, encode_oid(NONCE), encode(0x04, encode(0x04, nonce))))
        listed = encode(0x30, *(encode(0x30, cert_id) for cert_id in cert_ids))
        return encode(0x30, encode(0x30, listed, encode(0xA2, encode(0x30, *items)) if items else b""))

    async def send(self, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send a path as it stands: nothing is escaped, merged or normalised on its way."""
        url = URL(str(self.server.make_url("/")).rstrip("/") + path, encoded=True)
        async with self.session.request(method, url, data=data, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, der: Any) -> Answer:
        return await self.send("POST", "/ocsp", der, {"Content-Type": "application/ocsp-request"})

    async def get(self, der: bytes) -> Answer:
        text = base64.b64encode(der).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        return await self.send("GET", f"/ocsp/{text}")

    async def ask(self, serial: int, issuer: str = "issuing") -> str:
        return (await self.post(self.request(self.cert_id(serial, issuer)))).outcome

    async def single(self, der: bytes) -> ocsp.OCSPSingleResponse:
        (single,) = (await self.post(der)).ocsp.responses
        return single


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("status") / "template.db"
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, migrate(f"sqlite:///{path}")).result()
    return path


@pytest.fixture
async def world(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # A front may show a list for so long after a newer one was published: here it reads each time.
    monkeypatch.setattr(views, "FRESH_SECONDS", 0.0)
    path = tmp_path / "ca.db"
    shutil.copy(template, path)
    async with AsyncExitStack() as stack:
        database = await Database.open(f"sqlite:///{path}")
        stack.push_async_callback(database.close)
        made = World(stack, database)
        await made.open()
        yield made


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait for what another task does."""

    async def wait(condition: Callable[[], Any]) -> None:
        for _ in range(2000):
            if await condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not happen")

    return wait
