"""A small CA of plain keys for the tests of what comes before the token."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ca_server.core.csr import parse_csr
from ca_server.core.der import assemble, hash_for, key_algorithm
from ca_server.core.device_names import encode_device_name
from ca_server.core.lint import Linter
from ca_server.core.tbs import CaSubject, IssuerUrls, TbsPlan, build_tbs, ca_plan, leaf_plan, new_serial
from ca_server.domain.certificates import IssuerKey
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType, dns_identifier
from ca_server.domain.profiles import Profile, load_profile

PROFILES = Path(__file__).parents[3] / "config" / "profiles"
NOW = datetime(2026, 11, 20, 12, 30, 15, 250_000, tzinfo=UTC)
URLS = IssuerUrls(
    crl="http://ca.internal:8080/crl/issuing.1.0.crl",
    ocsp="http://ca.internal:8080/ocsp",
    ca_issuers="http://ca.internal:8080/issuer/issuing.1.cer",
)
SERIAL = new_serial(bytes(range(200, 220)))


@cache
def make_key(algorithm: KeyAlgorithm, copy: int = 0):
    """A key pair, the same for the same arguments."""
    match algorithm:
        case KeyAlgorithm.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyAlgorithm.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyAlgorithm.P521:
            return ec.generate_private_key(ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, int(algorithm.value.removeprefix("rsa-")))


def spki(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key, data: bytes) -> bytes:
    algorithm = key_algorithm(key.public_key())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hash_for(algorithm))
    return key.sign(data, ec.ECDSA(hash_for(algorithm)))


def general_name(name: Identifier) -> x509.GeneralName:
    import ipaddress

    match name.type:
        case IdentifierType.DNS:
            return x509.DNSName(name.value)
        case IdentifierType.IP:
            return x509.IPAddress(ipaddress.ip_address(name.value))
        case IdentifierType.EMAIL:
            return x509.RFC822Name(name.value)
        case IdentifierType.PERMANENT_IDENTIFIER | IdentifierType.HARDWARE_MODULE:
            type_id, value = encode_device_name(name)
            return x509.OtherName(x509.ObjectIdentifier(type_id), value)
        case _:
            return x509.UniformResourceIdentifier(name.value)


def make_csr(key, names: tuple[Identifier, ...] = (), common_name: str | None = None, **subject: str) -> bytes:
    attributes = [x509.NameAttribute(getattr(NameOID, oid), text) for oid, text in subject.items()]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), False)
    return builder.sign(key, hash_for(key_algorithm(key.public_key()))).public_bytes(Encoding.DER)


@cache
def profile_named(name: str) -> Profile:
    path = PROFILES / f"{name}.toml"
    return load_profile(name, path.read_text(), where=str(path), extra_domains=("example.com",))


@dataclass
class SmallCa:
    """A root and an issuing CA with keys in memory."""

    algorithm: KeyAlgorithm = KeyAlgorithm.P256
    root: IssuerKey = field(init=False)
    issuing: IssuerKey = field(init=False)
    plans: dict[str, TbsPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root_key, self.key = make_key(self.algorithm, 1), make_key(self.algorithm, 2)
        self.root = self._create("root", None, self.root_key, None)
        self.issuing = self._create("issuing", self.root, self.key, 0)

    def _create(self, name: str, parent: IssuerKey | None, key, path_length: int | None) -> IssuerKey:
        plan = ca_plan(
            subject=CaSubject(f"Test {name} CA", "Test", "CH"),
            spki_der=spki(key),
            issuer=parent,
            serial=SERIAL,
            not_before=NOW - timedelta(hours=1),
            not_after=NOW + timedelta(days=3650),
            path_length=path_length,
            urls=IssuerUrls("http://ca.internal/crl/root.1.0.crl", None, "http://ca.internal/issuer/root.1.cer"),
        )
        self.plans[name] = plan
        certificate = assemble(build_tbs(plan).tbs_der, self.algorithm, sign(self.root_key, build_tbs(plan).tbs_der))
        chain = (parent.certificate_der,) if parent else ()
        number = 2 if parent else 1
        return IssuerKey(number, name, 1, f"{name}-1", self.algorithm, spki(key), certificate, chain)

    def leaf(self, profile: Profile, csr_der: bytes, names: tuple[Identifier, ...], **changes) -> TbsPlan:
        request = self.request(profile, csr_der, names, **changes)
        return leaf_plan(profile, parse_csr(csr_der), request, self.issuing, SERIAL, NOW, URLS)

    @staticmethod
    def request(profile: Profile, csr_der: bytes, names: tuple[Identifier, ...], **changes) -> EnrollmentRequest:
        protocol = changes.pop("protocol", min(profile.frontends))
        return EnrollmentRequest(
            requester=Requester(Protocol(protocol), "someone", "test"),
            profile=profile.name,
            csr_der=csr_der,
            identifiers=names,
            transaction_key="t",
            **changes,
        )


@pytest.fixture(scope="session")
def small_ca() -> Callable[[KeyAlgorithm], SmallCa]:
    return cache(SmallCa)


@pytest.fixture(scope="session")
def support():
    """The helpers of this module, by name."""
    import sys

    return sys.modules[__name__]


@pytest.fixture
async def linter() -> AsyncIterator[Linter]:
    made = Linter()
    yield made
    await made.close()


@pytest.fixture
def profile(support):
    return support.profile_named("default")


@pytest.fixture
def make_plan(support, small_ca, profile):
    def make(*names, issuer=KeyAlgorithm.P256, key=KeyAlgorithm.P256, under=profile):
        names = names or (dns_identifier("a.test"),)
        return small_ca(issuer).leaf(under, support.make_csr(support.make_key(key), names), names)

    return make


@pytest.fixture
def plan(make_plan):
    return make_plan()
