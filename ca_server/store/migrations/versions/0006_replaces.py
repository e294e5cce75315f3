"""The certificate that an ACME order replaces (RFC 9773 section 5)."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None

_SET = sa.text("replaces IS NOT NULL")


def upgrade() -> None:
    op.add_column("acme_orders", sa.Column("replaces", sa.String(), nullable=True))
    op.create_index("ix_acme_orders_replaces", "acme_orders", ["replaces"], sqlite_where=_SET, postgresql_where=_SET)
