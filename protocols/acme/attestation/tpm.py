"""Format `tpm`: a key in a TPM 2.0, certified by an attestation key of the same TPM (WebAuthn section 8.3).

The attestation key's certificate comes from a privacy CA, which saw that the key is in the TPM of the device that it
names: in the subjectAltName, as PermanentIdentifier or HardwareModuleName. What the attestation key signed holds the
digest of the key authorization and the name of the certified key.
"""

from collections.abc import Sequence
from hashlib import new as new_hash
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.der import PublicKey
from ca_server.core.device_names import decode_device_name
from ca_server.domain.names import Identifier, InvalidNameError
from protocols.acme.attestation.model import AttestationError, Attested, Question, Statement, printable, refuse
from protocols.acme.attestation.path import certificates_of, check_path, public_key_of
from protocols.acme.attestation.tpm_structures import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA256,
    ALG_SHA384,
    ALG_SHA512,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    Certify,
    Public,
    Signature,
    StructureError,
    parse_certify,
    parse_public,
    parse_signature,
)

AIK_CERTIFICATE: Final = "2.23.133.8.3"
"""tcg-kp-AIKCertificate: the key usage of attestation keys."""
_HARDWARE: Final = {
    "2.23.133.2.1": "tpm_manufacturer",
    "2.23.133.2.2": "tpm_model",
    "2.23.133.2.3": "tpm_version",
}
"""Attributes of the directoryName in the subjectAltName (WebAuthn section 8.3.1)."""
_HASHES: Final[dict[int, tuple[str, type[hashes.HashAlgorithm]]]] = {
    ALG_SHA256: ("sha256", hashes.SHA256),
    ALG_SHA384: ("sha384", hashes.SHA384),
    ALG_SHA512: ("sha512", hashes.SHA512),
}
_OF_COSE: Final = {
    -7: ALG_SHA256,
    -35: ALG_SHA384,
    -36: ALG_SHA512,
    -37: ALG_SHA256,
    -38: ALG_SHA384,
    -39: ALG_SHA512,
    -257: ALG_SHA256,
    -258: ALG_SHA384,
    -259: ALG_SHA512,
}
"""Hash of a COSE algorithm (RFC 9053 section 2.1, RFC 8230, RFC 8812); RS1 is not among them."""


def verify(statement: Statement, question: Question, roots: Sequence[x509.Certificate]) -> Attested:
    """Verify. Raises AttestationError, or what cryptography raises for a certificate that it can't read."""
    members = statement.members
    if members.get("ver") != "2.0":
        refuse("the attestation is not of a TPM 2.0")
    certificates = certificates_of(members.get("x5c"))
    check_path(certificates, roots, question.now)
    own = certificates[0]
    alternative_name = _check_certificate(own)
    certified, signed, public = _structures(statement)
    alg = members.get("alg")
    hash_algorithm = _OF_COSE.get(alg) if isinstance(alg, int) else None
    if hash_algorithm is None:
        refuse("the attestation has no alg that is ECDSA or RSA with SHA-2")
    # Of `alg` the hash alone counts: the step command line writes the certified key's algorithm there.
    _check_signature(public_key_of(own), signed, _octets(statement, "certInfo"), hash_algorithm)
    expected = new_hash(_HASHES[hash_algorithm][0], question.key_authorization.encode("ascii")).digest()
    if certified.extra_data != expected:
        refuse("what the TPM signed is not for this key authorization")
    _check_key(public, _octets(statement, "pubArea"), certified)
    identifiers, details = _device(alternative_name)
    details["tpm_firmware"] = f"{certified.firmware_version:016x}"
    return Attested(
        format=statement.format,
        identifiers=identifiers,
        spki_sha256=sha256(public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest(),
        certificate_sha256=sha256(own.public_bytes(Encoding.DER)).digest(),
        details=details,
    )


def _octets(statement: Statement, name: str) -> bytes:
    value = statement.members.get(name)
    if not isinstance(value, bytes):
        refuse(f"the attestation has no {name}")
    return value


def _structures(statement: Statement) -> tuple[Certify, Signature, Public]:
    name = ""
    try:
        name = "certInfo"
        certified = parse_certify(_octets(statement, name))
        name = "sig"
        signed = parse_signature(_octets(statement, name))
        name = "pubArea"
        return certified, signed, parse_public(_octets(statement, name))
    except StructureError as error:
        raise AttestationError(f"the attestation's {name} is {error}") from error


def _check_certificate(own: x509.Certificate) -> x509.SubjectAlternativeName:
    """WebAuthn section 8.3.1: version 3, an empty subject, the usage of attestation keys; gives the names."""
    if own.version is not x509.Version.v3 or own.subject.rdns:
        refuse("the attestation key's certificate is not version 3 with an empty subject")
    try:
        usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise AttestationError("the attestation key's certificate has no key usage or no name") from error
    if x509.ObjectIdentifier(AIK_CERTIFICATE) not in usages:
        refuse(f"the attestation key's certificate is not for attestation keys ({AIK_CERTIFICATE})")
    return names


def _check_signature(key: PublicKey, signed: Signature, data: bytes, hash_algorithm: int) -> None:
    if signed.hash_algorithm != hash_algorithm:
        refuse("the attestation's sig is not made with the hash of its alg")
    digest = _HASHES[hash_algorithm][1]()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and signed.algorithm == ALG_ECDSA:
            r, s = (int.from_bytes(value, "big") for value in signed.values)
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and signed.algorithm == ALG_RSASSA:
            key.verify(signed.values[0], data, padding.PKCS1v15(), digest)
        elif isinstance(key, rsa.RSAPublicKey) and signed.algorithm == ALG_RSAPSS:
            pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
            key.verify(signed.values[0], data, pss, digest)
        else:
            refuse("the attestation's sig is not made by the attestation key's algorithm")
    except InvalidSignature as error:
        raise AttestationError("the attestation's sig is not the attestation key's over certInfo") from error


def _check_key(public: Public, public_area: bytes, certified: Certify) -> None:
    """The certified key is this one (part 1, section 16: its name is a digest), and never leaves this TPM."""
    if public.name_algorithm not in _HASHES:
        refuse("the certified key's name is no SHA-2 digest")
    digest = new_hash(_HASHES[public.name_algorithm][0], public_area).digest()
    if certified.name != public.name_algorithm.to_bytes(2, "big") + digest:
        refuse("the key in pubArea is not the one that the TPM certified")
    needed = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
    if public.attributes & needed != needed:
        refuse("the certified key was not made in the TPM, or can leave it")
    if public.attributes & RESTRICTED:
        refuse("the certified key is restricted, and can't sign what a certificate is used for")


def _device(names: x509.SubjectAlternativeName) -> tuple[frozenset[Identifier], dict[str, str]]:
    """The device's identifiers and its TPM, as the privacy CA wrote them into the certificate."""
    identifiers: set[Identifier] = set()
    details: dict[str, str] = {}
    for name in names:
        if isinstance(name, x509.OtherName):
            try:
                identifiers.add(decode_device_name(name.type_id.dotted_string, name.value))
            except InvalidNameError:
                continue  # a name of another kind, or one that no order can ask for
        elif isinstance(name, x509.DirectoryName):
            for attribute in name.value:
                kind = _HARDWARE.get(attribute.oid.dotted_string)
                if kind is not None and isinstance(attribute.value, str):
                    details[kind] = printable(attribute.value)
    if len(details) != len(_HARDWARE):
        refuse("the attestation key's certificate does not name the TPM's manufacturer, model and version")
    if not identifiers:
        refuse("the attestation key's certificate has no PermanentIdentifier or HardwareModuleName")
    return frozenset(identifiers), details
