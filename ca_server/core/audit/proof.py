"""Stand-alone proofs that an event is in the log (C2SP tlog-proof)."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.core.audit.reading import AuditReader
from ca_server.core.notes import InclusionProof, open_own_checkpoint
from ca_server.core.tlog import RangeHasher, inclusion_ranges, leaf_hash, verify_inclusion
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind

_PAGE: Final = 10_000


async def prove_serial(
    reader: AuditReader,
    serial: str,
    keys: Sequence[bytes],
    *,
    issuer: str | None = None,
    kind: EventType = EventType.ISSUANCE_STORED,
) -> InclusionProof:
    """Prove that the issuance of a serial is in the log, under the last checkpoint.

    The proof carries the leaf: `InclusionProof.verify` needs the log's public key alone. `keys` are those that the log
    had one after the other, DER SubjectPublicKeyInfos. NOT_FOUND where the log has no such event or it has no leaf
    yet, CONFLICT where several issuers have the serial and none is named, INTERNAL where the log is not consistent.
    """
    events = await reader.of_serial(serial, kind, issuer)
    sealed = [event for event in events if event.index is not None]
    if not sealed:
        why = "has no leaf yet" if events else "is not in the log"
        raise CaError(ErrorKind.NOT_FOUND, f"the {kind.value} event of serial {serial} {why}")
    if len(sealed) > 1 and issuer is None:
        raise CaError(ErrorKind.CONFLICT, "several events have the serial; name the issuer")
    event = sealed[0]
    assert event.index is not None
    return await prove_leaf(reader, event.index, event.leaf, keys)


def read_certificate(content: bytes) -> bytes:
    """The DER of a certificate in PEM (the first of a chain) or DER. MALFORMED."""
    try:
        pem = content.lstrip().startswith(b"-----")
        certificate = x509.load_pem_x509_certificate(content) if pem else x509.load_der_x509_certificate(content)
    except ValueError as error:
        raise CaError(ErrorKind.MALFORMED, "not a certificate") from error
    return certificate.public_bytes(Encoding.DER)


def check_certificate(event: Mapping[str, object], certificate_der: bytes) -> None:
    """Check that a proven event is the issuance of this very certificate. UNAUTHENTICATED."""
    extra = event.get("extra")
    told = extra.get("certificate_sha256") if isinstance(extra, dict) else None
    if event.get("type") != EventType.ISSUANCE_STORED.value or told != sha256(certificate_der).hexdigest():
        raise CaError(ErrorKind.UNAUTHENTICATED, "the proven event is not the issuance of this certificate")


async def prove_leaf(reader: AuditReader, index: int, leaf: bytes, keys: Sequence[bytes]) -> InclusionProof:
    """Prove that a leaf is in the tree of the last checkpoint. NOT_FOUND, INTERNAL."""
    latest = await reader.latest_checkpoint()
    if latest is None or latest[0].size <= index:
        raise CaError(ErrorKind.NOT_FOUND, "no checkpoint covers the leaf yet")
    checkpoint = latest[0]
    head = open_own_checkpoint(checkpoint.note, keys)
    hasher = RangeHasher(inclusion_ranges(index, head.size))
    first = 0
    while first < head.size:
        hashes = await reader.leaf_hashes(first, min(_PAGE, head.size - first))
        if not hashes:
            break
        hasher.extend(hashes)
        first += len(hashes)
    try:
        path = hasher.hashes()
    except CaError as error:
        raise CaError(ErrorKind.INTERNAL, "leaves of the log are missing; run a verification") from error
    if not verify_inclusion(index, head.size, leaf_hash(leaf), path, head.root):
        raise CaError(ErrorKind.INTERNAL, "the log does not lead to its signed root; run a verification")
    return InclusionProof(index, path, checkpoint.note, leaf)
