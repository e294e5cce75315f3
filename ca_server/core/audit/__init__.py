"""The audit log: events as leaves of an RFC 6962 tree, the sequencer that grows and signs it, and its verification."""

from ca_server.core.audit.anchor import Anchor, AnchorMismatch, check_anchor
from ca_server.core.audit.events import (
    MAX_LEAF,
    EventFactory,
    decode_event,
    encode_event,
    event_id_at,
    leaf_members,
    leaf_time,
)
from ca_server.core.audit.findings import Finding, FindingKind, VerificationReport
from ca_server.core.audit.proof import prove_leaf, prove_serial
from ca_server.core.audit.reading import AuditReader, LoggedEvent
from ca_server.core.audit.sequencer import LEASE_NAME, Sequencer
from ca_server.core.audit.verify import verify

__all__ = [
    "LEASE_NAME",
    "MAX_LEAF",
    "Anchor",
    "AnchorMismatch",
    "AuditReader",
    "EventFactory",
    "Finding",
    "FindingKind",
    "LoggedEvent",
    "Sequencer",
    "VerificationReport",
    "check_anchor",
    "decode_event",
    "encode_event",
    "event_id_at",
    "leaf_members",
    "leaf_time",
    "prove_leaf",
    "prove_serial",
    "verify",
]
