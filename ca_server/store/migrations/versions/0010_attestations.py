"""What a device sends to be validated, until that is done, and what its attestation showed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("acme_challenges", sa.Column("response", sa.LargeBinary(), nullable=True))
    op.add_column("acme_challenges", sa.Column("evidence", sa.LargeBinary(), nullable=True))
