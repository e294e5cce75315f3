"""Orders that the server renews by itself (RFC 8739)."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("acme_orders", sa.Column("auto_renewal", sa.LargeBinary(), nullable=True))
    op.create_table(
        "acme_star",
        sa.Column("order_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),  # microseconds since 1970
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.Column("lease_holder", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["acme_orders.id"], name=op.f("fk_acme_star_order_id_acme_orders")),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_acme_star")),
    )
    op.create_index(
        "ix_acme_star_ready_at",
        "acme_star",
        ["ready_at"],
        sqlite_where=sa.text("ready_at IS NOT NULL"),
        postgresql_where=sa.text("ready_at IS NOT NULL"),
    )
