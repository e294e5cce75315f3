"""An ACME server under test: the real front-end, store and issuing core over SQLite, keys in software."""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import acme_errors
import aiohttp
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection, text

from ca_server.core.admission import Admission, Ages
from ca_server.core.audit import EventFactory
from ca_server.core.eab import ExternalAccounts
from ca_server.core.issuance import Issuance
from ca_server.core.issuers import Ceremony, IssuerPlan, IssuerRegistry, UrlPlan
from ca_server.core.lint import Linter
from ca_server.core.ports import CreateEab, Health, Ping
from ca_server.core.profiles import ProfileBook
from ca_server.core.revocation import Revocation
from ca_server.domain.accounts import AccountRegistered, AccountRegistration
from ca_server.domain.bindings import EabPolicy
from ca_server.domain.certificates import BlockedKey, IssuedCertificate, RevocationRequest, RevokedCertificate
from ca_server.domain.enrollment import EnrollmentRequest
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.profiles import load_profile
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.eab import SqlEabStore
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.profiles import SqlProfileStore
from ca_server.store.revocation import SqlRevocationStore
from ca_server.web.application import create_application
from ca_server.web.options import WebOptions
from protocols.acme.options import AcmeOptions
from protocols.acme.validation import ValidationPolicy
from protocols.acme.views import AcmeFrontEnd

EXTERNAL = "https://ca.example.test:8443"
PROFILE = """
frontends = ["acme"]
[names]
dns_suffixes = ["test"]
ip_networks = ["127.0.0.0/8", "::1/128"]
allow_wildcard = true
[keys]
allowed = ["ec-p256", "rsa-2048"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["server_auth"]
"""
PROFILES = {
    "default": PROFILE,
    "short": PROFILE.replace('"90d"', '"1d"').replace('["test"]', '["short.test"]'),
    "holdable": "allow_hold = true\n" + PROFILE,
    "held": PROFILE.replace('["acme"]', '["acme"]\napproval = "hold"'),
    "inside": PROFILE.replace('["acme"]', '["internal"]'),
}


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


# --- The core: real issuance over keys in software ---------------------------------------------------------------


@dataclass
class SoftKey:
    label: str
    algorithm: KeyAlgorithm = KeyAlgorithm.P256
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def spki_der(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, ec.ECDSA(hashes.SHA256()))


class SoftKeys:
    """What a token does, without one."""

    def __init__(self) -> None:
        self._keys: dict[str, SoftKey] = {}

    async def generate(self, label: str, algorithm: KeyAlgorithm) -> SoftKey:
        return self._keys.setdefault(label, SoftKey(label, algorithm))

    async def find(self, label: str) -> SoftKey:
        return self._keys[label]

    async def labels(self) -> tuple[str, ...]:
        return tuple(self._keys)

    async def encrypt(self, label: str, plaintext: bytes, context: bytes) -> bytes:
        return plaintext[::-1]

    async def decrypt(self, label: str, ciphertext: bytes, context: bytes) -> bytes:
        return ciphertext[::-1]

    async def random(self, length: int) -> bytes:
        import secrets

        return secrets.token_bytes(length)


@dataclass
class Core:
    """The front's port to the core; faults are switched on by tests."""

    issuance: Issuance
    revocation: Revocation
    accounts: ExternalAccounts
    lost_answers: int = 0
    """So many certificates are issued whose answer is lost."""
    outages: int = 0
    """So many calls find the core away."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[EnrollmentRequest] = field(default_factory=list)
    read_only: bool = False
    hung: bool = False

    async def ping(self, _ping: Ping) -> Health:
        if self.hung:
            raise CaError(ErrorKind.UNAVAILABLE, "the core is away")
        return Health((), 0.0, token_ok=True, database_ok=True, crls_fresh=True, read_only=self.read_only)

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        self.asked.append(request)
        await self.gate.wait()
        if self.outages:
            self.outages -= 1
            raise CaError(ErrorKind.UNAVAILABLE, "the core is away")
        issued = await self.issuance.issue(request)
        if self.lost_answers:
            self.lost_answers -= 1
            raise CaError(ErrorKind.UNAVAILABLE, "the answer was lost")
        return issued

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        return await self.revocation.revoke(request)

    async def register_account(self, registration: AccountRegistration) -> AccountRegistered:
        return await self.accounts.register(registration)


# --- The network that validation looks at ------------------------------------------------------------------------


class Nameserver(asyncio.DatagramProtocol):
    """An authoritative server for whatever is in `records`: (name, type) -> texts.

    Questions in `failing` get SERVFAIL, those in `silent` nothing; what it says is `authenticated` where it is asked.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.failing: set[tuple[str, str]] = set()
        self.silent: set[tuple[str, str]] = set()
        self.authenticated = False
        self.asked: list[tuple[str, str]] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if (name, kind) in self.silent:
            return
        if self.authenticated and query.flags & dns.flags.AD:
            answer.flags |= dns.flags.AD
        found = self.records.get((name, kind))
        alias = self.records.get((name, "CNAME"))
        if (name, kind) in self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif found is not None:
            answer.answer.append(dns.rrset.from_text(question.name, 1, "IN", kind, *found))
        elif alias is not None:
            answer.answer.append(dns.rrset.from_text(question.name, 1, "IN", "CNAME", *alias))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        assert self._transport is not None
        self._transport.sendto(answer.to_wire(), addr)


@dataclass
class WebServer:
    """The applicant's web server: answers of paths, and what was asked."""

    port: int = 0
    answers: dict[str, Callable[[], web.Response]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.host, request.path))
        answer = self.answers.get(request.path)
        return answer() if answer is not None else web.Response(status=404, text="nothing here")

    def put(self, token: str, key_authorization: str) -> None:
        self.answers[f"/.well-known/acme-challenge/{token}"] = lambda: web.Response(text=key_authorization)


# --- The client --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The problem's type without its URN."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self.body
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:ietf:params:acme:error:")

    def links(self, relation: str) -> list[str]:
        return [
            value.partition(">")[0].strip("<")
            for value in self.headers.getall("Link", [])
            if f'rel="{relation}"' in value
        ]


class Key:
    """A key with its JWK and JWS algorithm."""

    def __init__(self, algorithm: str = "ES256") -> None:
        self.algorithm = algorithm
        if algorithm in {"ES256", "ES384", "ES512"}:
            curve, name, self.size = {
                "ES256": (ec.SECP256R1(), "P-256", 32),
                "ES384": (ec.SECP384R1(), "P-384", 48),
                "ES512": (ec.SECP521R1(), "P-521", 66),
            }[algorithm]
            self.private: Any = ec.generate_private_key(curve)
            point = self.private.public_key().public_numbers()
            self.jwk = {"crv": name, "kty": "EC", "x": number(point.x, self.size), "y": number(point.y, self.size)}
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
            self.jwk = {"crv": "Ed25519", "kty": "OKP", "x": b64url(self.private.public_key().public_bytes_raw())}
        else:
            self.private = rsa.generate_private_key(65537, 2048)
            public = self.private.public_key().public_numbers()
            self.jwk = {"e": number(public.e), "kty": "RSA", "n": number(public.n)}

    @property
    def thumbprint(self) -> str:
        return b64url(hashlib.sha256(json.dumps(self.jwk, separators=(",", ":"), sort_keys=True).encode()).digest())

    @property
    def spki_sha256(self) -> bytes:
        """What the blocklist has of it."""
        spki = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    def sign(self, data: bytes) -> bytes:
        match self.algorithm:
            case "ES256" | "ES384" | "ES512":
                digest = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}
                r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(digest[self.algorithm])))
                return bytes(r.to_bytes(self.size, "big") + s.to_bytes(self.size, "big"))
            case "EdDSA":
                return bytes(self.private.sign(data))
            case "PS256":
                pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
                return bytes(self.private.sign(data, pss, hashes.SHA256()))
            case _:
                return bytes(self.private.sign(data, padding.PKCS1v15(), hashes.SHA256()))


class Client:
    """An ACME client that can also be wrong in every detail."""

    def __init__(self, world: "World", key: Key | None = None, profile: str = "") -> None:
        self.world = world
        self.key = key or Key()
        self.kid = ""
        self.base = f"{EXTERNAL}/acme/{profile}".rstrip("/")
        self.spare: list[str] = []

    async def nonce(self) -> str:
        if self.spare:
            return self.spare.pop()
        answer = await self.world.send("HEAD", f"{self.base}/new-nonce")
        return str(answer.headers["Replay-Nonce"])

    async def jws(self, to: str, payload: object, /, **changes: Any) -> dict[str, Any]:
        """Sign; `changes` replace members of the protected header, and None leaves one out."""
        header: dict[str, Any] = {"alg": self.key.algorithm, "url": to}
        header |= {"kid": self.kid} if self.kid else {"jwk": self.key.jwk}
        if "nonce" not in changes:
            header["nonce"] = await self.nonce()
        header = {name: value for name, value in (header | changes).items() if value is not None}
        protected = b64url(json.dumps(header).encode())
        body = "" if payload is None else b64url(json.dumps(payload).encode())
        signature = self.key.sign(f"{protected}.{body}".encode())
        return {"protected": protected, "payload": body, "signature": b64url(signature)}

    async def post(self, to: str, payload: object = None, /, **changes: Any) -> Answer:
        """POST, or POST-as-GET without a payload."""
        return await self.send(to, await self.jws(to, payload, **changes))

    async def send(self, url: str, jws: object, content_type: str = "application/jose+json") -> Answer:
        data = jws if isinstance(jws, bytes) else json.dumps(jws).encode()
        answer = await self.world.send("POST", url, data, {"Content-Type": content_type})
        if "Replay-Nonce" in answer.headers:
            self.spare.append(answer.headers["Replay-Nonce"])
        return answer

    async def register(self, **payload: Any) -> Answer:
        answer = await self.post(
            f"{self.base}/new-account", {"termsOfServiceAgreed": True} | payload, kid=None, jwk=self.key.jwk
        )
        if answer.status < 300:
            self.kid = answer.headers["Location"]
        return answer

    async def order(self, *names: str, **members: Any) -> Answer:
        identifiers = [{"type": "ip" if is_address(name) else "dns", "value": name} for name in names]
        return await self.post(f"{self.base}/new-order", {"identifiers": identifiers} | members)

    async def challenge(self, authorization: str, kind: str) -> dict[str, Any]:
        """A challenge, with what answers it put where the server will look."""
        found = (await self.post(authorization)).json
        challenge = next(item for item in found["challenges"] if item["type"] == kind)
        key_authorization = f"{challenge['token']}.{self.key.thumbprint}"
        self.world.web.put(challenge["token"], key_authorization)
        digest = b64url(hashlib.sha256(key_authorization.encode()).digest())
        if found["identifier"]["type"] == "dns":
            name = found["identifier"]["value"]
            self.world.dns.records.setdefault((f"_acme-challenge.{name}", "TXT"), []).append(f'"{digest}"')
        return dict(challenge)

    async def authorize(self, order: Answer, kind: str = "http-01") -> None:
        for url in order.json["authorizations"]:
            if (await self.post(url)).json["status"] == "pending":
                challenge = await self.challenge(url, kind)
                await self.post(challenge["url"], {})
                assert (await self.poll(url, "pending"))["status"] == "valid"

    async def poll(self, url: str, *unfinished: str) -> Any:
        for _ in range(300):
            found = (await self.post(url)).json
            if found["status"] not in unfinished:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"still {found}")

    async def ready(self, *names: str, kind: str = "http-01") -> Answer:
        order = await self.order(*names)
        assert order.status == 201, order.body
        await self.authorize(order, kind)
        return order

    async def finalize(self, order: Answer, csr: bytes) -> Answer:
        return await self.post(order.json["finalize"], {"csr": b64url(csr)})

    async def issue(self, *names: str, csr: bytes | None = None, kind: str = "http-01") -> list[x509.Certificate]:
        order = await self.ready(*names, kind=kind)
        await self.finalize(order, csr or make_csr(*names))
        done = await self.poll(order.headers["Location"], "processing")
        assert done["status"] == "valid", done
        return x509.load_pem_x509_certificates((await self.post(done["certificate"])).body)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def make_csr(*names: str, key: Any = None, common_name: str | None = None) -> bytes:
    subject = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    alternative = [
        x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name) for name in names
    ]
    private = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER)


def mac_binding(jwk: object, url: str, kid: str, hmac_key: str, alg: str = "HS256", **changes: Any) -> dict[str, str]:
    """An externalAccountBinding (RFC 8555 section 7.3.4)."""
    header = {"alg": alg, "kid": kid, "url": url} | changes
    protected, payload = b64url(json.dumps(header).encode()), b64url(json.dumps(jwk).encode())
    secret = base64.urlsafe_b64decode(hmac_key + "=" * (-len(hmac_key) % 4))
    mac = hmac.digest(secret, f"{protected}.{payload}".encode(), f"sha{alg[2:]}")
    return {"protected": protected, "payload": payload, "signature": b64url(mac)}


# --- The world ---------------------------------------------------------------------------------------------------


class World:
    """One server with its database, core, applicant's network and clients."""

    def __init__(self, stack: AsyncExitStack, database: Database) -> None:
        self.stack = stack
        self.database = database
        self.nonce_key = b"n" * 32
        self.dns = Nameserver()
        self.web = WebServer()
        self.core: Core
        self.options: AcmeOptions
        self.profiles: ProfileBook
        self.bodies: dict[str, str]
        self.server: TestServer
        self.front: AcmeFrontEnd
        self.session: aiohttp.ClientSession
        self.observed: list[tuple[str, str]] = []
        self.limited: list[str] = []
        self.caa: list[tuple[str, str]] = []
        self.renewals: list[str] = []
        self.later = timedelta(0)

    def clock(self) -> datetime:
        """The time of the core, and of renewals: `later` than it is."""
        return datetime.now(UTC) + self.later

    def events(self, process: str) -> EventFactory:
        return EventFactory(node="node", process=process, software="test", configuration="test")

    async def open(self) -> None:
        await self._network()
        await self._core()
        self.options = AcmeOptions(
            external_url=EXTERNAL,
            validation=ValidationPolicy(
                http_01_port=self.web.port,
                denied_networks=(ipaddress.ip_network("127.0.0.66/32"),),
                redirect_ports=(80,),
                timeout=2.0,
                nameservers=(f"127.0.0.1:{self.dns_port}",),
                dns_timeout=1.0,
            ),
            finalize_wait=5.0,
            validation_attempts=2,
        )
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession())
        await self.serve()

    async def _network(self) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self.dns, local_addr=("127.0.0.1", 0))
        self.stack.callback(transport.close)
        self.dns_port = transport.get_extra_info("sockname")[1]
        application = web.Application()
        application.router.add_route("*", "/{any:.*}", self.web.handle)
        server = TestServer(application)
        await server.start_server()
        self.stack.push_async_callback(server.close)
        assert server.port is not None
        self.web.port = server.port

    async def _core(self) -> None:
        database, keys, urls = self.database, SoftKeys(), UrlPlan("http://ca.example.test")
        self.token, self.keys = keys, keys._keys
        events = self.events("core")
        issuer_store, issuance_store, audit = (
            SqlIssuerStore(database),
            SqlIssuanceStore(database),
            SqlAuditStore(database),
        )
        fence = await SqlCoordinationStore(database).begin_boot("node", "home", datetime.now(UTC), timedelta(days=1))
        linter = Linter(pkilint=False)
        ceremony = Ceremony(issuer_store, audit, keys, linter, events, urls)  # type: ignore[arg-type]
        for name, parent in (("root", None), ("issuing", "root")):
            await ceremony.create(
                IssuerPlan(
                    name, parent, KeyAlgorithm.P256, f"Test {name} CA", "", "", 365, None if parent is None else 0
                )
            )
        registry = IssuerRegistry(issuer_store, keys, urls)  # type: ignore[arg-type]
        await registry.load()
        self.profiles = ProfileBook(SqlProfileStore(database), {})
        await self.put_in_force(PROFILES)
        self.core = Core(
            issuance=Issuance(
                store=issuance_store,
                audit=audit,
                admission=Admission(
                    store=issuance_store,
                    issuers=registry,
                    profiles=self.profiles,
                    bound_key=SqlEabStore(database).bound_key,
                    ages=Ages(auto_renewal=timedelta(days=365), renewed=frozenset({"default"})),
                ),
                linter=linter,
                events=events,
                fence=lambda: fence,
                clock=self.clock,
            ),
            revocation=Revocation(
                certificates=issuance_store,
                store=SqlRevocationStore(database),
                audit=audit,
                profiles=self.profiles,
                events=events,
                revoked=lambda _record: None,
            ),
            accounts=ExternalAccounts(
                store=SqlEabStore(database),
                keys=keys,  # type: ignore[arg-type]
                secret_key="secrets",
                profiles=self.profiles,
                audit=audit,
                events=events,
            ),
        )
        self.core.gate.set()
        self.issuing = registry.get("issuing")

    async def put_in_force(self, bodies: dict[str, str]) -> None:
        self.bodies = bodies
        profiles = {name: load_profile(name, body, where=name) for name, body in bodies.items()}
        await self.profiles.put_in_force(profiles, self.events("core"))

    def make_front(self, options: AcmeOptions | None = None, process: str = "front-1") -> AcmeFrontEnd:
        front = AcmeFrontEnd(
            options=options or self.options,
            store=SqlAcmeStore(self.database),
            core=self.core,  # type: ignore[arg-type]
            profiles=self.profiles,
            events=self.events(process),
            nonce_key=self.nonce_key,
            observe_validation=lambda kind, outcome: self.observed.append((kind, outcome)),
            observe_limit=self.limited.append,
            observe_caa=lambda mode, outcome: self.caa.append((mode, outcome)),
            observe_renewal=self.renewals.append,
        )
        front._renewing._clock = front._serving._clock = self.clock
        return front

    async def serve(self, options: AcmeOptions | None = None, process: str = "front-1") -> None:
        """Serve (from now on) with a new front-end; the one before goes on in the background."""
        self.front = self.make_front(options, process)
        await self.front.start()
        self.stack.push_async_callback(self.front.stop)
        application = create_application("https", WebOptions(request_seconds=30), [self.front.register])
        self.server = TestServer(application)
        await self.server.start_server()
        self.stack.push_async_callback(self.server.close)

    async def send(
        self, method: str, url: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send to where the proxy in front would: the external URL is not where the server listens."""
        assert url.startswith(EXTERNAL), url
        actual = str(self.server.make_url("/")).rstrip("/") + url.removeprefix(EXTERNAL)
        async with self.session.request(method, actual, data=data, headers=headers, allow_redirects=False) as response:
            answer = Answer(response.status, response.headers, await response.read())
        if answer.headers.get("Content-Type", "").startswith("application/problem+json") and answer.body:
            assert answer.problem in acme_errors.KNOWN
        return answer

    async def client(self, algorithm: str = "ES256", profile: str = "") -> Client:
        """A client with an account."""
        client = Client(self, Key(algorithm), profile)
        assert (await client.register()).status == 201
        return client

    def resolve(self, *names: str, address: str = "127.0.0.1") -> None:
        for name in names:
            self.dns.records[name, "A"] = [address]

    async def query(self, sql: str) -> list[Any]:
        def read(connection: Connection) -> list[Any]:
            return list(connection.execute(text(sql)))

        return await self.database.read(read)

    async def execute(self, sql: str) -> None:
        await self.database.write(lambda connection: connection.execute(text(sql)) and None)

    async def count(self, table: str) -> int:
        return int((await self.query(f"SELECT count(*) FROM {table}"))[0][0])

    async def audit(self, kind: str) -> list[dict[str, Any]]:
        """The leaves of one type of event, in the order of their commit."""
        rows = await self.query(f"SELECT leaf FROM audit_events WHERE type = '{kind}' ORDER BY id")
        return [json.loads(row[0]) for row in rows]

    async def block(self, spki_sha256: bytes) -> None:
        """Put a public key on the blocklist."""
        key = BlockedKey(spki_sha256, "test", datetime.now(UTC))
        await SqlIssuanceStore(self.database).block_spki(key, [])

    async def eab(self, **members: Any) -> tuple[str, str]:
        """An external account key and its secret; members of its policy are taken for what is bound to it."""
        bound = {name: members.pop(name) for name in ("profiles", "names", "live", "rate") if name in members}
        created = await self.core.accounts.create(CreateEab(EabPolicy(**bound), **members), "uid:0")
        return created.key.kid, created.hmac_key


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        database = await Database.open(url)
        stack.push_async_callback(database.close)
        made = World(stack, database)
        await made.open()
        yield made


@pytest.fixture
def external() -> str:
    return EXTERNAL


@pytest.fixture
def csr() -> Callable[..., bytes]:
    return make_csr


@pytest.fixture
def binding() -> Callable[..., dict[str, str]]:
    return mac_binding


@pytest.fixture
def new_key() -> type[Key]:
    return Key


@pytest.fixture
def new_client() -> type[Client]:
    return Client


@pytest.fixture
def profiles() -> dict[str, str]:
    return PROFILES


@pytest.fixture
def bound(world: World) -> Callable[..., Any]:
    """Registers a client by a new external account key, or by the one given; gives the client and the key's id."""

    async def register(key: tuple[str, str] | None = None, **members: Any) -> tuple[Client, str]:
        kid, secret = key or await world.eab(**members)
        client = Client(world)
        jws = mac_binding(client.key.jwk, f"{client.base}/new-account", kid, secret)
        assert (await client.register(externalAccountBinding=jws)).status == 201
        return client, kid

    return register
