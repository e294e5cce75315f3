"""Attestations as devices make them, with roots of the tests' own: by Apple, a TPM with its privacy CA, a YubiKey.

Built from the vendors' descriptions and by hand, not by the code under test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import new as new_hash
from hashlib import sha256
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

APPLE_SERIAL = "1.2.840.113635.100.8.9.1"
APPLE_UDID = "1.2.840.113635.100.8.9.2"
APPLE_NONCE = "1.2.840.113635.100.8.11.1"
YUBICO_FIRMWARE = "1.3.6.1.4.1.41482.3.3"
YUBICO_SERIAL = "1.3.6.1.4.1.41482.3.7"
YUBICO_POLICY = "1.3.6.1.4.1.41482.3.8"
STEP_DEVICE = "1.3.6.1.4.1.37476.9000.64.4"
AIK = "2.23.133.8.3"
PERMANENT_IDENTIFIER = "1.3.6.1.5.5.7.8.3"
HARDWARE_MODULE = "1.3.6.1.5.5.7.8.4"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, bits)


def tlv(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    assert len(body) < 256
    return bytes((tag, len(body)) if len(body) < 128 else (tag, 0x81, len(body))) + body


def permanent_identifier(value: str, assigner: bytes = b"") -> x509.OtherName:
    der = tlv(0x30, tlv(0x0C, value.encode()), tlv(0x06, assigner) if assigner else b"")
    return x509.OtherName(x509.ObjectIdentifier(PERMANENT_IDENTIFIER), der)


def hardware_module(serial: bytes, kind: bytes) -> x509.OtherName:
    return x509.OtherName(x509.ObjectIdentifier(HARDWARE_MODULE), tlv(0x30, tlv(0x06, kind), tlv(0x04, serial)))


@dataclass
class Authority:
    """A CA of a vendor."""

    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


Extensions = list[tuple[x509.ExtensionType, bool]]


def certificate(
    public_key: Any,
    issuer: Authority | None,
    signer: Any,
    *,
    subject: str = "",
    extensions: Extensions | None = None,
    begin: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for value, critical in extensions or []:
        builder = builder.add_extension(value, critical)
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
    return builder.sign(signer, algorithm)


def authority(
    subject: str,
    issuer: Authority | None = None,
    *,
    path_length: int | None = None,
    ca: bool = True,
    sign: bool = True,
    key: Any = None,
    extra: Extensions | None = None,
    **validity: Any,
) -> Authority:
    made = key or new_key(ec.SECP384R1())
    extensions: Extensions = [
        (x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), True),
        (x509.KeyUsage(not sign, False, False, False, False, sign, sign, False, False), True),
        *(extra or []),
    ]
    signed_by = issuer.key if issuer else made
    return Authority(
        certificate(made.public_key(), issuer, signed_by, subject=subject, extensions=extensions, **validity), made
    )


def unrecognized(oid: str, value: bytes, *, critical: bool = False) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical


def der_of(*certificates: x509.Certificate) -> list[bytes]:
    return [each.public_bytes(Encoding.DER) for each in certificates]


def attestation(kind: str, statement: Mapping[str, Any], **more: Any) -> bytes:
    return cbor2.dumps({"fmt": kind, "attStmt": dict(statement)} | more)


@dataclass
class Chain:
    """Root and intermediate of a vendor."""

    root: Authority
    intermediate: Authority

    @classmethod
    def of(cls, vendor: str, **validity: Any) -> "Chain":
        root = authority(f"{vendor} Root CA", **validity)
        return cls(root, authority(f"{vendor} CA 1", root, path_length=0, **validity))


# --- Apple -------------------------------------------------------------------------------------------------------


@dataclass
class AppleDevice:
    """A device whose key Apple's servers attest."""

    chain: Chain
    serial: str = "C02XK1ZZJGH5"
    udid: str = "00008030-001C2D3E4F500021"
    key: Any = field(default_factory=new_key)

    def attest(self, token: str, **differs: Any) -> bytes:
        """The attestation for a token; `differs` replace extensions by OID (None: left out) and fields."""
        return attestation("apple", {"x5c": self.x5c(token, **differs)})

    def x5c(
        self, token: str, values: dict[str, bytes | None] | None = None, extra: Extensions | None = None, **fields: Any
    ) -> list[bytes]:
        found: dict[str, bytes | None] = {
            APPLE_SERIAL: self.serial.encode(),
            APPLE_UDID: self.udid.encode(),
            APPLE_NONCE: sha256(token.encode()).digest(),
        } | (values or {})
        extensions: Extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            *(unrecognized(oid, value) for oid, value in found.items() if value is not None),
            *(extra or []),
        ]
        issuer = fields.pop("issuer", self.chain.intermediate)
        own = certificate(
            self.key.public_key(),
            issuer,
            issuer.key,
            subject=sha256(b"device").hexdigest(),
            extensions=extensions,
            **fields,
        )
        return der_of(own, issuer.certificate)


# --- YubiKey -----------------------------------------------------------------------------------------------------


@dataclass
class YubiKey:
    """A token that attests the keys in its slots."""

    chain: Chain
    serial: int = 20_862_622
    key: Any = field(default_factory=new_key)

    def attest(self, key_authorization: str, **differs: Any) -> bytes:
        """As the step command line does it."""
        statement = {
            "alg": -7,
            "sig": cbor2.dumps(self.sign(key_authorization.encode())),
            "x5c": self.x5c(),
        } | differs
        return attestation("step", {name: value for name, value in statement.items() if value is not None})

    def sign(self, data: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        return bytes(self.key.sign(data, ec.ECDSA(hashes.SHA256())))

    def x5c(self, values: dict[str, bytes] | None = None) -> list[bytes]:
        octets = self.serial.to_bytes(self.serial.bit_length() // 8 + 1, "big")
        found = values if values is not None else {YUBICO_FIRMWARE: b"\x05\x04\x03", YUBICO_SERIAL: tlv(2, octets)}
        issuer = self.chain.intermediate
        own = certificate(
            self.key.public_key(),
            issuer,
            issuer.key,
            subject="YubiKey PIV Attestation 9a",
            extensions=[unrecognized(oid, value) for oid, value in found.items()],
        )
        return der_of(own, issuer.certificate)


# --- TPM ---------------------------------------------------------------------------------------------------------

RSA, ECC, NULL, RSASSA, RSAPSS, ECDSA = 0x0001, 0x0023, 0x0010, 0x0014, 0x0016, 0x0018
HASHES = {"sha256": (0x000B, hashes.SHA256()), "sha384": (0x000C, hashes.SHA384()), "sha1": (0x0004, hashes.SHA1())}
CURVES = {"secp256r1": 3, "secp384r1": 4, "secp521r1": 5}
NORMAL = 0x0004_0072
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, sign."""


def u(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


def tpm2b(data: bytes) -> bytes:
    return u(2, len(data)) + data


def tpmt_public(public: Any, *, attributes: int = NORMAL, name_algorithm: int = 0x000B) -> bytes:
    head = u(2, ECC if isinstance(public, ec.EllipticCurvePublicKey) else RSA) + u(2, name_algorithm) + u(4, attributes)
    head += tpm2b(b"") + u(2, NULL)
    if isinstance(public, ec.EllipticCurvePublicKey):
        size = (public.key_size + 7) // 8
        point = public.public_numbers()
        unique = tpm2b(u(size, point.x)) + tpm2b(u(size, point.y))
        return head + u(2, ECDSA) + u(2, 0x000B) + u(2, CURVES[public.curve.name]) + u(2, NULL) + unique
    return (
        head + u(2, NULL) + u(2, public.key_size) + u(4, 0) + tpm2b(u(public.key_size // 8, public.public_numbers().n))
    )


def tpms_attest(
    name: bytes, extra_data: bytes, *, magic: int = 0xFF544347, kind: int = 0x8017, firmware: int = 0x2020_0312
) -> bytes:
    head = u(4, magic) + u(2, kind) + tpm2b(b"\x00\x0b" + b"s" * 32) + tpm2b(extra_data)
    return head + u(8, 5) + u(4, 1) + u(4, 0) + b"\x01" + u(8, firmware) + tpm2b(name) + tpm2b(b"\x00\x0b" + b"q" * 32)


@dataclass
class Tpm:
    """A TPM whose attestation key a privacy CA has certified for a device."""

    chain: Chain
    names: tuple[Any, ...] = (permanent_identifier("PC-0001"),)
    key: Any = field(default_factory=new_key)
    ak: Any = field(default_factory=rsa_key)
    alg: int = -257
    digest: str = "sha256"
    pss: bool = False

    def attest(self, key_authorization: str, **differs: Any) -> bytes:
        """The attestation; `differs` replace members of the statement, None leaves one out."""
        public_area = differs.pop("pubArea", None) or tpmt_public(self.key.public_key())
        certify = differs.pop("certInfo", None) or tpms_attest(
            self.name(public_area), new_hash(self.digest, key_authorization.encode()).digest()
        )
        statement = {
            "ver": "2.0",
            "alg": self.alg,
            "x5c": differs.pop("x5c", None) or self.x5c(),
            "sig": self.sign(certify),
            "certInfo": certify,
            "pubArea": public_area,
        } | differs
        return attestation("tpm", {name: value for name, value in statement.items() if value is not None})

    def name(self, public_area: bytes, algorithm: str = "sha256") -> bytes:
        return u(2, HASHES[algorithm][0]) + new_hash(algorithm, public_area).digest()

    def sign(self, data: bytes) -> bytes:
        code, digest = HASHES[self.digest]
        if isinstance(self.ak, rsa.RSAPrivateKey):
            scheme = padding.PSS(padding.MGF1(digest), digest.digest_size) if self.pss else padding.PKCS1v15()
            return u(2, RSAPSS if self.pss else RSASSA) + u(2, code) + tpm2b(self.ak.sign(data, scheme, digest))
        r, s = decode_dss_signature(self.ak.sign(data, ec.ECDSA(digest)))
        return u(2, ECDSA) + u(2, code) + tpm2b(u(32, r)) + tpm2b(u(32, s))

    def x5c(
        self,
        *,
        subject: str = "",
        usages: tuple[str, ...] = (AIK,),
        hardware: tuple[int, ...] = (1, 2, 3),
        names: tuple[Any, ...] | None = None,
        **fields: Any,
    ) -> list[bytes]:
        attributes = [
            x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{number}"), value)
            for number, value in ((1, "id:494E5443"), (2, "SLB 9672"), (3, "id:0F10"))
            if number in hardware
        ]
        directory = [x509.DirectoryName(x509.Name([x509.RelativeDistinguishedName(attributes)]))] if attributes else []
        alternative = x509.SubjectAlternativeName([*directory, *(self.names if names is None else names)])
        extensions: Extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (alternative, True),
        ]
        if usages:
            extensions.append((x509.ExtendedKeyUsage([x509.ObjectIdentifier(each) for each in usages]), False))
        issuer = self.chain.intermediate
        own = certificate(self.ak.public_key(), issuer, issuer.key, subject=subject, extensions=extensions, **fields)
        return der_of(own, issuer.certificate)
