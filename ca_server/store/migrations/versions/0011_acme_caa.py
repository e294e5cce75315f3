"""CAA records that were looked up."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "acme_caa",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("checked_at", sa.BigInteger(), nullable=False),  # microseconds since 1970
        sa.Column("authenticated", sa.Boolean(), nullable=False),
        sa.Column("found_at", sa.String(), nullable=False),
        sa.Column("records", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", name=op.f("pk_acme_caa")),
    )
    op.create_index("ix_acme_caa_checked_at", "acme_caa", ["checked_at"])
