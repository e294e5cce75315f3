"""What each key algorithm is in PKCS#11: generation, public key, signature."""

from hashlib import sha256, sha384, sha512
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.util.ec import encode_named_curve_parameters

from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm

_CURVES: dict[KeyAlgorithm, tuple[str, ec.EllipticCurve, Any]] = {
    KeyAlgorithm.P256: ("secp256r1", ec.SECP256R1(), sha256),
    KeyAlgorithm.P384: ("secp384r1", ec.SECP384R1(), sha384),
    KeyAlgorithm.P521: ("secp521r1", ec.SECP521R1(), sha512),
}
_BY_PARAMETERS = {encode_named_curve_parameters(name): algorithm for algorithm, (name, _, _) in _CURVES.items()}
_RSA_BITS = {KeyAlgorithm.RSA2048: 2048, KeyAlgorithm.RSA3072: 3072, KeyAlgorithm.RSA4096: 4096}
_ED25519_OID = bytes.fromhex("06032b6570")
_ED25519_NAME = bytes.fromhex("130c656477617264733235353139")

PRIVATE_TEMPLATE = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
PUBLIC_TEMPLATE = {
    Attribute.TOKEN: True,
    Attribute.VERIFY: True,
    Attribute.ENCRYPT: False,
    Attribute.WRAP: False,
}


def is_slow(algorithm: KeyAlgorithm) -> bool:
    """Whether more threads sign faster: all but P-256, where one is best (measured on SoftHSM2)."""
    return algorithm is not KeyAlgorithm.P256


def generate_pair(session: pkcs11.Session, label: str, algorithm: KeyAlgorithm) -> tuple[Any, Any]:
    """Generate a key pair in the token, sensitive and not extractable: (public, private)."""
    templates: dict[str, Any] = {
        "public_template": PUBLIC_TEMPLATE,
        "private_template": PRIVATE_TEMPLATE,
        "label": label,
    }
    if algorithm in _RSA_BITS:
        return session.generate_keypair(KeyType.RSA, _RSA_BITS[algorithm], store=True, **templates)
    if algorithm is KeyAlgorithm.ED25519:
        for parameters in (_ED25519_OID, _ED25519_NAME):
            domain = session.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: parameters}, local=True)
            try:
                return domain.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, **templates)
            except (pkcs11.DomainParamsInvalid, pkcs11.AttributeValueInvalid, pkcs11.TemplateInconsistent):
                continue
        raise CaError(ErrorKind.CONFLICT, "this token has no Ed25519")
    name = _CURVES[algorithm][0]
    domain = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(name)}, local=True
    )
    return domain.generate_keypair(store=True, **templates)


def public_key(key: Any) -> tuple[KeyAlgorithm, bytes]:
    """Algorithm and DER SubjectPublicKeyInfo of a public key object. CONFLICT for a kind that is not supported."""
    kind = key[Attribute.KEY_TYPE]
    found: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
    if kind == KeyType.RSA:
        modulus = int.from_bytes(key[Attribute.MODULUS], "big")
        found = rsa.RSAPublicNumbers(int.from_bytes(key[Attribute.PUBLIC_EXPONENT], "big"), modulus).public_key()
        algorithm = {bits: each for each, bits in _RSA_BITS.items()}.get(modulus.bit_length())
    elif kind == KeyType.EC:
        algorithm = _BY_PARAMETERS.get(bytes(key[Attribute.EC_PARAMS]))
        if algorithm is None:
            raise CaError(ErrorKind.CONFLICT, "the key's curve is not supported")
        curve = _CURVES[algorithm][1]
        size = 1 + 2 * ((curve.key_size + 7) // 8)
        found = ec.EllipticCurvePublicKey.from_encoded_point(curve, _point(key, size))
    elif kind == KeyType.EC_EDWARDS:
        algorithm = KeyAlgorithm.ED25519
        found = ed25519.Ed25519PublicKey.from_public_bytes(_point(key, 32))
    else:
        algorithm = None
    if algorithm is None:
        raise CaError(ErrorKind.CONFLICT, "the key's type or size is not supported")
    return algorithm, found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _point(key: Any, size: int) -> bytes:
    """CKA_EC_POINT: a DER OCTET STRING around `size` octets by the standard, the bare octets on some tokens."""
    raw = bytes(key[Attribute.EC_POINT])
    return raw if len(raw) == size else raw[-size:]


def sign(key: Any, algorithm: KeyAlgorithm, data: bytes) -> bytes:
    """Sign in the token, in the form that X.509 carries (RFC 5758, RFC 4055, RFC 8410)."""
    if algorithm.is_rsa:
        return bytes(key.sign(data, mechanism=Mechanism.SHA256_RSA_PKCS))
    if algorithm is KeyAlgorithm.ED25519:
        return bytes(key.sign(data, mechanism=Mechanism.EDDSA))
    raw = bytes(key.sign(_CURVES[algorithm][2](data).digest(), mechanism=Mechanism.ECDSA))
    half = len(raw) // 2
    return utils.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def key_identifier(spki_der: bytes) -> bytes:
    """CKA_ID for a key pair: SHA-256 of its public key, cut to 20 octets."""
    load_der_public_key(spki_der)
    return sha256(spki_der).digest()[:20]
