"""Authorizations that were asked for by themselves (RFC 8555 section 7.4.1), and what terms accounts agreed to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ALONE = sa.text("preauthorized")
_OPEN = sa.text("preauthorized AND status = 'pending'")


def upgrade() -> None:
    op.add_column("acme_accounts", sa.Column("terms_of_service", sa.String(), nullable=True))
    op.add_column(
        "acme_authorizations", sa.Column("preauthorized", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_index(
        "ix_acme_authorizations_preauthorized_open",
        "acme_authorizations",
        ["account_id", "expires_at"],
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.create_index(
        "ix_acme_authorizations_preauthorized",
        "acme_authorizations",
        ["expires_at"],
        sqlite_where=_ALONE,
        postgresql_where=_ALONE,
    )
