"""Challenges whose rows are made when their validation begins: until then the authorization tells of them."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("acme_authorizations", sa.Column("token", sa.String(), nullable=True))
    op.add_column("acme_authorizations", sa.Column("offered", sa.String(), nullable=True))
