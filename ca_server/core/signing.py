"""Sign in the token, and trust the signature only when it verifies."""

from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca_server.core.der import verify
from ca_server.core.ports import SigningKey
from ca_server.domain.errors import CaError, ErrorKind


async def sign_verified(key: SigningKey, data: bytes) -> bytes:
    """Sign `data` with `key` and verify the signature under the public key of record.

    UNAVAILABLE where the token is away; INTERNAL where what came back is no signature of these bytes.
    """
    signature = await key.sign(data)
    public_key = load_der_public_key(key.spki_der)
    if not verify(public_key, key.algorithm, data, signature):  # type: ignore[arg-type]
        raise CaError(ErrorKind.INTERNAL, "the token returned a signature that does not verify")
    return signature
