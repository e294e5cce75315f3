"""Rate limits of the ACME front-end."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "acme_limits",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("arrival", sa.BigInteger(), nullable=False),  # microseconds since 1970
        sa.Column("slack", sa.BigInteger(), nullable=False),  # microseconds
        sa.PrimaryKeyConstraint("key", name=op.f("pk_acme_limits")),
    )
    op.create_index("ix_acme_limits_arrival", "acme_limits", ["arrival"])
