"""What others' code makes of our notes and proofs: sigstore (Rekor's client) for notes, checkpoints and inclusion."""

from hashlib import sha256
from types import SimpleNamespace

from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import SignedCheckpoint
from sigstore._internal.trust import Keyring, RekorKeyring
from sigstore._utils import KeyID
from sigstore.errors import VerificationError
from sigstore_models.common.v1 import PublicKey, PublicKeyDetails


def open_checkpoint(note: bytes, spki_der: bytes) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint that sigstore has verified. VerificationError."""
    details = PublicKeyDetails.PKIX_ECDSA_P256_SHA_256
    keyring = Keyring([PublicKey.model_construct(raw_bytes=spki_der, key_details=details)])
    signed = SignedCheckpoint.from_text(note.decode())
    signed.signed_note.verify(RekorKeyring(keyring), KeyID(sha256(spki_der).digest()))
    head = signed.checkpoint
    return head.origin, head.log_size, bytes.fromhex(head.log_hash)


def is_included(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    """Whether sigstore finds a leaf in a tree."""
    proof = SimpleNamespace(log_index=index, tree_size=size, hashes=path, root_hash=root)
    entry = SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=leaf))
    try:
        verify_merkle_inclusion(entry)  # type: ignore[arg-type]
    except VerificationError:
        return False
    return True
