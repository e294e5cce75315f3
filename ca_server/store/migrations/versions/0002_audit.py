"""The audit log: events, leaves and checkpoints, with triggers that refuse to change or delete them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SORTABLE = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_TIME = sa.BigInteger()  # microseconds since 1970

_APPEND_ONLY = ("audit_events", "audit_leaves", "audit_checkpoints")
_IDENTITIES = {
    "audit_events": "id = NEW.id OR (process = NEW.process AND sequence = NEW.sequence)",
    "audit_leaves": "leaf_index = NEW.leaf_index OR event_id = NEW.event_id",
    "audit_checkpoints": "size = NEW.size",
}


def upgrade() -> None:
    _create_events()
    op.create_table(
        "audit_pending",
        sa.Column("position", _ID, nullable=False),
        sa.Column("event_id", _SORTABLE, nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_pending")),
        sa.UniqueConstraint("event_id", name=op.f("uq_audit_pending_event_id")),
    )
    op.create_table(
        "audit_leaves",
        sa.Column("leaf_index", _ID, autoincrement=False, nullable=False),
        sa.Column("event_id", _SORTABLE, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["event_id"], ["audit_events.id"], name=op.f("fk_audit_leaves_event_id_audit_events")),
        sa.PrimaryKeyConstraint("leaf_index", name=op.f("pk_audit_leaves")),
        sa.UniqueConstraint("event_id", name=op.f("uq_audit_leaves_event_id")),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", _ID, autoincrement=False, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_audit_checkpoints")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _create_postgresql_triggers()
    else:
        _create_sqlite_triggers()


def _create_events() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", _SORTABLE, nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("process", _SORTABLE, nullable=False),
        sa.Column("sequence", _ID, nullable=False),
        sa.Column("actor", sa.String(), nullable=True),
        sa.Column("issuer", _SORTABLE, nullable=True),
        sa.Column("serial", _SORTABLE, nullable=True),
        sa.Column("object", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("rule", sa.String(), nullable=True),
        sa.Column("profile", sa.String(), nullable=True),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sa.UniqueConstraint("process", "sequence", name=op.f("uq_audit_events_process_sequence")),
    )
    op.create_index("ix_audit_events_type", "audit_events", ["type", "id"])
    for name, columns in (("serial", ["serial", "issuer", "type"]), ("object", ["object", "id"])):
        present = sa.text(f"{name} IS NOT NULL")
        op.create_index(
            f"ix_audit_events_{name}", "audit_events", columns, sqlite_where=present, postgresql_where=present
        )


def _create_sqlite_triggers() -> None:
    op.execute(
        "CREATE TRIGGER audit_events_pending AFTER INSERT ON audit_events BEGIN "
        "INSERT INTO audit_pending (event_id) VALUES (NEW.id); END"
    )
    refuse = "SELECT RAISE(ABORT, 'the audit log is append-only')"
    for table in _APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            name = f"{table}_no_{action.lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {action} ON {table} BEGIN {refuse}; END")
        # INSERT OR REPLACE deletes what it replaces without any DELETE trigger.
        taken = f"EXISTS (SELECT 1 FROM {table} WHERE {_IDENTITIES[table]})"  # noqa: S608 - constants
        op.execute(f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {taken} BEGIN {refuse}; END")


def _create_postgresql_triggers() -> None:
    op.execute(
        "CREATE FUNCTION audit_add_pending() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO audit_pending (event_id) VALUES (NEW.id); RETURN NULL; END'"
    )
    op.execute(
        "CREATE TRIGGER audit_events_pending AFTER INSERT ON audit_events "
        "FOR EACH ROW EXECUTE FUNCTION audit_add_pending()"
    )
    op.execute(
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RAISE EXCEPTION ''the audit log is append-only'' USING ERRCODE = ''restrict_violation''; END'"
    )
    for table in _APPEND_ONLY:
        for action in ("UPDATE", "DELETE", "TRUNCATE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
            )


def downgrade() -> None:
    for table in ("audit_checkpoints", "audit_leaves", "audit_pending", "audit_events"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_add_pending()")
        op.execute("DROP FUNCTION audit_refuse()")
