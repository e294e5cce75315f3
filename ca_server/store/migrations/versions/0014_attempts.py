"""Each attempt at a challenge, with what it saw."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "acme_attempts",
        sa.Column("challenge_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),  # microseconds since 1970
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("front", sa.String(), nullable=False),
        sa.Column("seen", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["challenge_id"], ["acme_challenges.id"], name=op.f("fk_acme_attempts_challenge_id_acme_challenges")
        ),
        sa.PrimaryKeyConstraint("challenge_id", "number", name=op.f("pk_acme_attempts")),
    )
