"""Challenges whose rows are made when their validation begins: until then the authorization tells of them.

And when authorizations were validated, and whether for the names below too (RFC 9444); and the keys that accounts
had, since records of dns-persist-01 that name them stand on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("acme_authorizations", sa.Column("token", sa.String(), nullable=True))
    op.add_column("acme_authorizations", sa.Column("offered", sa.String(), nullable=True))
    op.add_column("acme_authorizations", sa.Column("validated_at", sa.BigInteger(), nullable=True))
    op.add_column(
        "acme_authorizations", sa.Column("subdomains", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.execute(
        "UPDATE acme_authorizations SET validated_at = (SELECT max(acme_challenges.validated_at) FROM acme_challenges "
        "WHERE acme_challenges.authorization_id = acme_authorizations.id) WHERE status = 'valid'"
    )
    op.create_table(
        "acme_former_keys",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("key_thumbprint", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "key_thumbprint", name=op.f("pk_acme_former_keys")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["acme_accounts.id"], name=op.f("fk_acme_former_keys_account_id_acme_accounts")
        ),
    )
