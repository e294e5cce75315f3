"""Tables of the ACME front-end."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.BigInteger()  # microseconds since 1970
_OPEN = sa.text("status IN ('pending', 'ready')")
_PROCESSING = sa.text("status = 'processing'")


def upgrade() -> None:
    op.create_table(
        "acme_accounts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key_thumbprint", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("terms_agreed_at", _TIME, nullable=True),
        sa.Column("eab_kid", sa.String(), nullable=True),
        sa.Column("contacts", sa.String(), nullable=False),
        sa.Column("jwk", sa.LargeBinary(), nullable=False),
        sa.Column("eab_binding", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_accounts")),
        sa.UniqueConstraint("tenant", "key_thumbprint", name=op.f("uq_acme_accounts_tenant_key_thumbprint")),
    )
    op.create_table(
        "acme_orders",
        sa.Column("number", _ID, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("profile_hash", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("not_before", _TIME, nullable=True),
        sa.Column("not_after", _TIME, nullable=True),
        sa.Column("lease_holder", sa.String(), nullable=True),
        sa.Column("lease_until", _TIME, nullable=True),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("identifiers", sa.LargeBinary(), nullable=False),
        sa.Column("authorization_ids", sa.LargeBinary(), nullable=False),
        sa.Column("csr", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_acme_orders")),
        sa.UniqueConstraint("id", name=op.f("uq_acme_orders_id")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["acme_accounts.id"], name=op.f("fk_acme_orders_account_id_acme_accounts")
        ),
    )
    op.create_index("ix_acme_orders_account_id_number", "acme_orders", ["account_id", "number"])
    op.create_index("ix_acme_orders_expires_at", "acme_orders", ["expires_at"])
    op.create_index(
        "ix_acme_orders_open",
        "acme_orders",
        ["account_id", "expires_at"],
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.create_index(
        "ix_acme_orders_processing",
        "acme_orders",
        ["lease_until"],
        sqlite_where=_PROCESSING,
        postgresql_where=_PROCESSING,
    )
    op.create_table(
        "acme_authorizations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("wildcard", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_authorizations")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["acme_accounts.id"], name=op.f("fk_acme_authorizations_account_id_acme_accounts")
        ),
    )
    op.create_index(
        "ix_acme_authorizations_name", "acme_authorizations", ["account_id", "value", "status", "expires_at"]
    )
    op.create_table(
        "acme_order_links",
        sa.Column("order_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("authorization_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", "position", name=op.f("pk_acme_order_links")),
        sa.ForeignKeyConstraint(
            ["order_id"], ["acme_orders.id"], name=op.f("fk_acme_order_links_order_id_acme_orders")
        ),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["acme_authorizations.id"],
            name=op.f("fk_acme_order_links_authorization_id_acme_authorizations"),
        ),
    )
    op.create_index("ix_acme_order_links_authorization_id", "acme_order_links", ["authorization_id"])
    op.create_table(
        "acme_challenges",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("authorization_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("validated_at", _TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_holder", sa.String(), nullable=True),
        sa.Column("lease_until", _TIME, nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_challenges")),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["acme_authorizations.id"],
            name=op.f("fk_acme_challenges_authorization_id_acme_authorizations"),
        ),
    )
    op.create_index("ix_acme_challenges_authorization_id", "acme_challenges", ["authorization_id"])
    op.create_index(
        "ix_acme_challenges_processing",
        "acme_challenges",
        ["account_id", "lease_until"],
        sqlite_where=_PROCESSING,
        postgresql_where=_PROCESSING,
    )
    op.create_table(
        "acme_nonces",
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_acme_nonces")),
    )
    op.create_index("ix_acme_nonces_expires_at", "acme_nonces", ["expires_at"])
