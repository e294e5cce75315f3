"""The audit log's tables. Triggers that the migration makes refuse UPDATE and DELETE on all but `audit_pending`.

Leaf indexes live beside the events, whose rows never change. Filling `audit_pending` is a trigger's work, so that no
way of inserting an event can forget it.
"""

from sqlalchemy import Column, ForeignKey, Index, String, Table, UniqueConstraint, text

from ca_server.store.metadata import metadata
from ca_server.store.types import Id, Octets, Sortable, UtcTime

audit_events = Table(
    "audit_events",
    metadata,
    # Begins with the milliseconds of its making: the primary key is an index over time.
    Column("id", Sortable, primary_key=True),
    Column("type", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("process", Sortable, nullable=False),
    Column("sequence", Id, nullable=False),
    Column("actor", String, nullable=True),
    Column("issuer", Sortable, nullable=True),
    Column("serial", Sortable, nullable=True),
    Column("object", String, nullable=True),
    Column("request_id", String, nullable=True),
    Column("rule", String, nullable=True),
    Column("profile", String, nullable=True),
    # The canonical bytes that are hashed: the columns above only repeat what they say, for searches.
    Column("leaf", Octets, nullable=False),
    UniqueConstraint("process", "sequence"),
    Index("ix_audit_events_type", "type", "id"),
    # Answers questions about one serial, and pages through all serials in order.
    Index(
        "ix_audit_events_serial",
        "serial",
        "issuer",
        "type",
        sqlite_where=text("serial IS NOT NULL"),
        postgresql_where=text("serial IS NOT NULL"),
    ),
    Index(
        "ix_audit_events_object",
        "object",
        "id",
        sqlite_where=text("object IS NOT NULL"),
        postgresql_where=text("object IS NOT NULL"),
    ),
)

# No foreign key: a row must outlive the unlawful deletion of its event, and tell of it.
audit_pending = Table(
    "audit_pending",
    metadata,
    Column("position", Id, primary_key=True),
    Column("event_id", Sortable, nullable=False),
    UniqueConstraint("event_id"),
)

audit_leaves = Table(
    "audit_leaves",
    metadata,
    Column("leaf_index", Id, primary_key=True, autoincrement=False),
    Column("event_id", Sortable, ForeignKey("audit_events.id"), nullable=False),
    Column("leaf_hash", Octets, nullable=False),
    UniqueConstraint("event_id"),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", Id, primary_key=True, autoincrement=False),
    Column("created_at", UtcTime, nullable=False),
    Column("root", Octets, nullable=False),
    Column("note", Octets, nullable=False),
    # The tree's frontier at this size: from it the tree grows, and any later checkpoint can be checked against it.
    Column("state", Octets, nullable=False),
)
