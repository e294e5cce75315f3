"""Sign in the token, and trust the signature only when it verifies."""

import functools

from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca_server.core.der import PublicKey, verify
from ca_server.core.ports import SigningKey
from ca_server.domain.errors import CaError, ErrorKind


@functools.lru_cache(maxsize=64)
def _public_key(spki_der: bytes) -> PublicKey:
    """Few keys sign much: each is read once."""
    return load_der_public_key(spki_der)  # type: ignore[return-value]


async def sign_verified(key: SigningKey, data: bytes) -> bytes:
    """Sign `data` with `key` and verify the signature under the public key of record.

    UNAVAILABLE where the token is away; INTERNAL where what came back is no signature of these bytes.
    """
    signature = await key.sign(data)
    if not verify(_public_key(key.spki_der), key.algorithm, data, signature):
        raise CaError(ErrorKind.INTERNAL, "the token returned a signature that does not verify")
    return signature
