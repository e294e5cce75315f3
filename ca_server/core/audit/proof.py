"""Stand-alone proofs that an event is in the log (C2SP tlog-proof)."""

from typing import Final

from ca_server.core.audit.reading import AuditReader
from ca_server.core.notes import InclusionProof, open_own_checkpoint
from ca_server.core.tlog import RangeHasher, inclusion_ranges, leaf_hash, verify_inclusion
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind

_PAGE: Final = 10_000


async def prove_serial(
    reader: AuditReader,
    serial: str,
    key: bytes,
    *,
    issuer: str | None = None,
    kind: EventType = EventType.ISSUANCE_STORED,
) -> InclusionProof:
    """Prove that the issuance of a serial is in the log, under the last checkpoint.

    The proof carries the leaf: `InclusionProof.verify` needs the log's public key alone. `key` is that key, a DER
    SubjectPublicKeyInfo. NOT_FOUND where the log has no such event or it has no leaf yet, CONFLICT where several
    issuers have the serial and none is named, INTERNAL where the log is not consistent.
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
    return await prove_leaf(reader, event.index, event.leaf, key)


async def prove_leaf(reader: AuditReader, index: int, leaf: bytes, key: bytes) -> InclusionProof:
    """Prove that a leaf is in the tree of the last checkpoint. NOT_FOUND, INTERNAL."""
    latest = await reader.latest_checkpoint()
    if latest is None or latest[0].size <= index:
        raise CaError(ErrorKind.NOT_FOUND, "no checkpoint covers the leaf yet")
    checkpoint = latest[0]
    head = open_own_checkpoint(checkpoint.note, [key])
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
