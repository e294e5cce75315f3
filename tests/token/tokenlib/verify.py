"""Checks signatures with cryptography alone, so that nothing of the server's own vouches for itself."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca_server.core.ports import SigningKey

_DIGESTS = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}


def check_signature(key: SigningKey, signature: bytes, data: bytes) -> None:
    """InvalidSignature unless the signature is as SigningKey.sign promises."""
    public = load_der_public_key(key.spki_der)
    if isinstance(public, rsa.RSAPublicKey):
        public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, data, ec.ECDSA(_DIGESTS[public.curve.key_size]))
    else:
        assert isinstance(public, ed25519.Ed25519PublicKey)
        public.verify(signature, data)


async def check_signs(key: SigningKey, data: bytes = b"to be signed") -> None:
    check_signature(key, await key.sign(data), data)
