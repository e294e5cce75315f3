"""Attestations of devices (draft-ietf-acme-device-attest section 5): what each format shows, and what is refused."""

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from attestations import (
    APPLE_NONCE,
    APPLE_SERIAL,
    APPLE_UDID,
    DAY,
    NORMAL,
    NOW,
    STEP_DEVICE,
    YUBICO_POLICY,
    YUBICO_SERIAL,
    AppleDevice,
    Authority,
    Chain,
    Tpm,
    YubiKey,
    attestation,
    authority,
    der_of,
    hardware_module,
    new_key,
    permanent_identifier,
    rsa_key,
    tlv,
    tpms_attest,
    tpmt_public,
    u,
    unrecognized,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.attestation import AttestationError, Attested, Question, Roots, verify

TOKEN, KEY_AUTHORIZATION = "token", "token.thumbprint"
APPLE, TPMS, YUBICO = Chain.of("Apple"), Chain.of("TPM"), Chain.of("Yubico")
ROOTS = Roots(
    {
        "apple": (APPLE.root.certificate,),
        "tpm": (TPMS.root.certificate,),
        "step": (YUBICO.root.certificate, APPLE.root.certificate),
    }
)
QUESTION = Question(TOKEN, KEY_AUTHORIZATION, NOW)


def device(value: str) -> Identifier:
    return Identifier(IdentifierType.PERMANENT_IDENTIFIER, value)


def spki_sha256(key: object) -> bytes:
    return sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()  # type: ignore[attr-defined]


def good(data: bytes, **differs: object) -> Attested:
    return verify(data, replace(QUESTION, **differs), ROOTS)  # type: ignore[arg-type]


def refused(data: bytes, roots: Roots = ROOTS, question: Question = QUESTION) -> str:
    with pytest.raises(AttestationError) as caught:
        verify(data, question, roots)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- Apple -------------------------------------------------------------------------------------------------------


def test_apple() -> None:
    apple = AppleDevice(APPLE)
    shown = good(apple.attest(TOKEN))
    assert shown.format == "apple"
    assert shown.identifiers == {device(apple.serial), device(apple.udid)}
    assert shown.spki_sha256 == spki_sha256(apple.key)
    assert shown.details == {"serial_number": apple.serial, "udid": apple.udid}
    own = apple.x5c(TOKEN)
    assert good(attestation("apple", {"x5c": own})).certificate_sha256 == sha256(own[0]).digest()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({APPLE_NONCE: None}, "no freshness code"),
        ({APPLE_NONCE: sha256(KEY_AUTHORIZATION.encode()).digest()}, "not the digest of this challenge's token"),
        ({APPLE_NONCE: b""}, "not the digest"),
        ({APPLE_SERIAL: None, APPLE_UDID: None}, "neither serial number nor UDID"),
        ({APPLE_SERIAL: b"a/1.2", APPLE_UDID: b"\xff"}, "neither serial number nor UDID"),
    ],
)
def test_apple_refused(values: dict[str, bytes | None], why: str) -> None:
    assert why in refused(AppleDevice(APPLE).attest(TOKEN, values=values))


def test_apple_for_another_token() -> None:
    assert "freshness code" in refused(AppleDevice(APPLE).attest("earlier"))


def test_apple_extensions_may_be_critical() -> None:
    extra = [unrecognized("1.2.840.113635.100.8.10.2", b"23A344", critical=True)]
    assert good(AppleDevice(APPLE).attest(TOKEN, extra=extra)).details["sepos_version"] == "23A344"


# --- step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [new_key(), rsa_key(), ed25519.Ed25519PrivateKey.generate()])
def test_step(key: object) -> None:
    shown = good(YubiKey(YUBICO, key=key).attest(KEY_AUTHORIZATION))
    assert shown.identifiers == {device("20862622")}
    assert shown.spki_sha256 == spki_sha256(key)
    assert shown.details == {"serial_number": "20862622", "firmware": "5.4.3"}


def test_step_policies() -> None:
    token = YubiKey(YUBICO)
    x5c = token.x5c({YUBICO_SERIAL: tlv(2, b"\x07"), YUBICO_POLICY: b"\x03\x01"})
    shown = good(token.attest(KEY_AUTHORIZATION, x5c=x5c))
    assert shown.details == {"serial_number": "7", "pin_and_touch_policy": "0301"}


def test_step_managed_device() -> None:
    token = YubiKey(YUBICO)
    x5c = token.x5c({STEP_DEVICE: tlv(0x30, tlv(0x0C, b"device-1"))})
    assert good(token.attest(KEY_AUTHORIZATION, x5c=x5c)).identifiers == {device("device-1")}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "no serial number"),
        ({YUBICO_SERIAL: tlv(2, b"\xff")}, "serial number is none"),
        ({YUBICO_SERIAL: tlv(2, b"\x01" * 17)}, "serial number is none"),
        ({YUBICO_SERIAL: b"\x04\x01\x01"}, "can't be read"),
        ({STEP_DEVICE: tlv(0x30, tlv(0x0C, b"a/1.2"))}, "has a slash"),
        ({STEP_DEVICE: tlv(0x30, tlv(0x0C, b"a"), tlv(0x0C, b"b"))}, "can't be read"),
    ],
)
def test_step_serials(values: dict[str, bytes], why: str) -> None:
    token = YubiKey(YUBICO)
    assert why in refused(token.attest(KEY_AUTHORIZATION, x5c=token.x5c(values)))


def test_step_signatures() -> None:
    token = YubiKey(YUBICO)
    assert "key authorization" in refused(token.attest("earlier.thumbprint"))
    assert "key authorization" in refused(token.attest(KEY_AUTHORIZATION, x5c=YubiKey(YUBICO).x5c()))
    assert "not one byte string" in refused(token.attest(KEY_AUTHORIZATION, sig=b"\x01"))
    assert "no sig" in refused(token.attest(KEY_AUTHORIZATION, sig=None))


# --- TPM ---------------------------------------------------------------------------------------------------------

EC_AK = new_key()


@pytest.mark.parametrize(
    "tpm",
    [
        Tpm(TPMS),
        Tpm(TPMS, alg=-7),
        Tpm(TPMS, alg=-37, pss=True),
        Tpm(TPMS, ak=EC_AK, alg=-7),
        Tpm(TPMS, key=rsa_key()),
        Tpm(TPMS, key=new_key(ec.SECP384R1())),
        Tpm(TPMS, alg=-258, digest="sha384"),
    ],
    ids=["rsa", "alg of the certified key", "pss", "ecdsa", "rsa key", "p-384 key", "sha384"],
)
def test_tpm(tpm: Tpm) -> None:
    shown = good(tpm.attest(KEY_AUTHORIZATION))
    assert shown.identifiers == {device("PC-0001")}
    assert shown.spki_sha256 == spki_sha256(tpm.key)
    assert shown.details == {
        "tpm_manufacturer": "id:494E5443",
        "tpm_model": "SLB 9672",
        "tpm_version": "id:0F10",
        "tpm_firmware": "0000000020200312",
    }


def test_tpm_names() -> None:
    uri = x509.UniformResourceIdentifier("urn:ek:sha256:x")
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), tlv(0x0C, b"me@corp.example"))
    slash = permanent_identifier("PC/1.2.3")
    names = (
        permanent_identifier("PC-1", b"\x2a\x03"),
        hardware_module(b"HW1", b"\x67\x81\x05\x01\x02"),
        uri,
        other,
        slash,
    )
    assert good(Tpm(TPMS, names=names).attest(KEY_AUTHORIZATION)).identifiers == {
        device("PC-1/1.2.3"),
        Identifier(IdentifierType.HARDWARE_MODULE, "HW1/2.23.133.1.2"),
    }
    assert "no PermanentIdentifier" in refused(Tpm(TPMS, names=(uri, slash)).attest(KEY_AUTHORIZATION))


@pytest.mark.parametrize(
    ("differs", "why"),
    [
        ({"usages": ("1.3.6.1.5.5.7.3.2",)}, "not for attestation keys"),
        ({"usages": ()}, "no key usage or no name"),
        ({"subject": "somebody"}, "empty subject"),
        ({"hardware": (1, 2)}, "manufacturer, model and version"),
    ],
)
def test_tpm_certificates(differs: dict[str, object], why: str) -> None:
    tpm = Tpm(TPMS)
    assert why in refused(tpm.attest(KEY_AUTHORIZATION, x5c=tpm.x5c(**differs)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"ver": "1.2"}, "not of a TPM 2.0"),
        ({"ver": None}, "not of a TPM 2.0"),
        ({"alg": -65_535}, "no alg"),
        ({"alg": None}, "no alg"),
        ({"alg": -258}, "not made with the hash of its alg"),
        ({"sig": None}, "no sig"),
        ({"sig": b"\x00\x14\x00\x0b\x00\x01x\x00"}, "not a TPMT_SIGNATURE"),
        ({"sig": b"\x00\x14\x00\x0b\x01\x00" + b"x" * 256}, "not the attestation key's"),
        ({"sig": b"\x00\x14\x00\x0b\x04\x01" + b"x" * 1025}, "not a TPMT_SIGNATURE"),
        ({"sig": b"\x00\x05\x00\x0b\x00\x01x"}, "not a TPMT_SIGNATURE"),
        ({"sig": b"\x00\x18\x00\x0b\x00\x01x\x00\x01x"}, "attestation key's algorithm"),
        ({"x5c": [b"\x30\x00"]}, "can't be read"),
    ],
)
def test_tpm_members(members: dict[str, object], why: str) -> None:
    assert why in refused(Tpm(TPMS).attest(KEY_AUTHORIZATION, **members))


def test_tpm_what_was_signed() -> None:
    tpm = Tpm(TPMS)
    area = tpmt_public(tpm.key.public_key())
    digest = sha256(KEY_AUTHORIZATION.encode()).digest()
    assert "not for this key authorization" in refused(tpm.attest("earlier.thumbprint"))
    for changed in (
        tpms_attest(tpm.name(area), digest, magic=1),
        tpms_attest(tpm.name(area), digest, kind=0x8018),
        tpms_attest(tpm.name(area), digest) + b"\x00",
        tpms_attest(tpm.name(area), digest)[:-1],
    ):
        assert "not a TPMS_ATTEST" in refused(tpm.attest(KEY_AUTHORIZATION, certInfo=changed))
    other = tpmt_public(new_key().public_key())
    mixed = tpm.attest(KEY_AUTHORIZATION, certInfo=tpms_attest(tpm.name(other), digest))
    assert "not the one that the TPM certified" in refused(mixed)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (NORMAL & ~0x02, "can leave it"),
        (NORMAL & ~0x10, "can leave it"),
        (NORMAL & ~0x20, "not made in the TPM"),
        (NORMAL | 0x1_0000, "restricted"),
    ],
)
def test_tpm_keys_that_may_leave(attributes: int, why: str) -> None:
    tpm = Tpm(TPMS)
    area = tpmt_public(tpm.key.public_key(), attributes=attributes)
    assert why in refused(tpm.attest(KEY_AUTHORIZATION, pubArea=area))


def test_tpm_names_by_sha1_count_for_nothing() -> None:
    tpm = Tpm(TPMS)
    area = tpmt_public(tpm.key.public_key(), name_algorithm=0x0004)
    certify = tpms_attest(tpm.name(area, "sha1"), sha256(KEY_AUTHORIZATION.encode()).digest())
    assert "no SHA-2 digest" in refused(tpm.attest(KEY_AUTHORIZATION, pubArea=area, certInfo=certify))


def test_tpm_points_off_the_curve() -> None:
    area = tpmt_public(new_key().public_key())
    assert "not a TPMT_PUBLIC" in refused(Tpm(TPMS).attest(KEY_AUTHORIZATION, pubArea=area[:-1] + u(1, area[-1] ^ 1)))


# --- The path ----------------------------------------------------------------------------------------------------


def path(*authorities: Authority, **differs: object) -> bytes:
    """An Apple attestation issued by the first of the authorities, with the others behind it."""
    own, _ = AppleDevice(APPLE).x5c(TOKEN, issuer=authorities[0], **differs)
    return attestation("apple", {"x5c": [own, *der_of(*(each.certificate for each in authorities))]})


def test_paths() -> None:
    assert good(path(APPLE.root))
    assert good(path(APPLE.intermediate, APPLE.root))
    middle = authority("Apple CA 2", APPLE.root, path_length=1)
    last = authority("Apple CA 3", middle, path_length=0)
    assert good(path(last, middle))
    # What lies beyond a root is nobody's business.
    assert good(path(APPLE.root, authority("somebody")))


FOREIGN = Chain.of("Apple")
UNLIMITED = authority("unlimited", APPLE.root)
EXPIRED = {"begin": NOW - 3 * DAY, "end": NOW - 2 * DAY}
CONSTRAINTS = x509.NameConstraints([x509.DNSName("a.test")], None)


@pytest.mark.parametrize(
    ("authorities", "why"),
    [
        ([FOREIGN.intermediate, FOREIGN.root], "do not lead to a root"),
        ([FOREIGN.intermediate], "do not lead to a root"),
        ([authority("no CA", APPLE.root, ca=False)], "is no CA"),
        ([authority("no signer", APPLE.root, sign=False)], "may sign none"),
        ([authority("below", APPLE.intermediate), APPLE.intermediate], "longer path"),
        ([authority("old", APPLE.root, **EXPIRED)], "expired"),
        ([authority("new", APPLE.root, begin=NOW + DAY, end=NOW + 2 * DAY)], "not valid yet"),
        ([authority("limited", APPLE.root, extra=[(CONSTRAINTS, True)])], "2.5.29.30"),
        ([authority("limited", APPLE.root, extra=[(CONSTRAINTS, False)])], "2.5.29.30"),
        ([authority("odd", APPLE.root, extra=[unrecognized("1.2.3", b"\x05\x00", critical=True)])], "1.2.3"),
        ([authority("sha224", APPLE.root, digest=hashes.SHA224())], "broken"),
        ([UNLIMITED, authority("unlimited", APPLE.root)], "not signed by the one behind it"),
        ([UNLIMITED] * 7, "more than 6"),
        ([authority("much", APPLE.root, extra=[unrecognized(f"1.2.{each}", b"") for each in range(40)])], "than 40"),
    ],
)
def test_paths_that_lead_nowhere(authorities: list[Authority], why: str) -> None:
    assert why in refused(path(*authorities))


def test_the_attestations_own_certificate() -> None:
    assert "expired" in refused(path(APPLE.intermediate, **EXPIRED))
    odd = [unrecognized("1.2.3", b"\x05\x00", critical=True)]
    assert "1.2.3" in refused(path(APPLE.intermediate, extra=odd))
    assert "that of a CA" in refused(attestation("apple", {"x5c": der_of(APPLE.intermediate.certificate)}))
    assert "do not lead" in refused(attestation("apple", {"x5c": der_of(AUTHORITY_ALONE.certificate)}))
    assert "2048" in refused(path(authority("weak", APPLE.root, key=rsa_key(1024))))
    odd_key = AppleDevice(APPLE, key=ed448.Ed448PrivateKey.generate())
    assert "not EC, RSA or Ed25519" in refused(odd_key.attest(TOKEN))


AUTHORITY_ALONE = authority("alone")


def test_a_root_that_has_expired() -> None:
    question = replace(QUESTION, now=NOW + timedelta(days=2))
    assert "expired" in refused(AppleDevice(APPLE).attest(TOKEN, end=NOW + 9 * DAY), question=question)


def test_roots_are_those_of_the_format() -> None:
    assert "do not lead to a root" in refused(AppleDevice(YUBICO).attest(TOKEN))
    only = Roots({"step": (YUBICO.root.certificate,), "tpm": ()})
    assert refused(AppleDevice(APPLE).attest(TOKEN), only).endswith("accepted: step")
    assert "accepted: step" in refused(Tpm(TPMS).attest(KEY_AUTHORIZATION), only)
    assert "'none'" in refused(attestation("none", {}))
    assert Roots({"tpm": ()}) is not None
    assert not Roots({"tpm": ()})
    assert only


@pytest.mark.parametrize("x5c", [None, [], b"", [1], "text", {"a": 1}])
def test_x5c(x5c: object) -> None:
    assert "x5c" in refused(attestation("apple", {"x5c": x5c}))
