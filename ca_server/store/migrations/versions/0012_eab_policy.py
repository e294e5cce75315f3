"""What is bound to external account keys, the owner of what their accounts get, and accounts' keys by hash."""

import sqlalchemy as sa
from alembic import op

from protocols.acme.jwk import JwsError, parse_jwk

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_AT_ONCE = 1000


def upgrade() -> None:
    op.add_column("eab_keys", sa.Column("max_uses", sa.BigInteger(), nullable=True))
    op.add_column("eab_keys", sa.Column("accounts_revoked_at", sa.BigInteger(), nullable=True))  # microseconds
    op.add_column("eab_keys", sa.Column("names", sa.Text(), nullable=True))
    op.add_column("eab_keys", sa.Column("live", sa.BigInteger(), nullable=True))
    op.add_column("eab_keys", sa.Column("rate", sa.String(), nullable=True))
    op.add_column("eab_keys", sa.Column("live_bound", sa.BigInteger(), nullable=True))
    op.add_column("eab_keys", sa.Column("arrival", sa.BigInteger(), nullable=True))  # microseconds since 1970
    op.add_column("acme_accounts", sa.Column("spki_sha256", sa.LargeBinary(), nullable=True))
    _hash_account_keys()
    op.add_column("certificates", sa.Column("owner", sa.String(), nullable=True))
    op.create_index(
        "ix_certificates_owner",
        "certificates",
        ["owner", "id"],
        sqlite_where=sa.text("owner IS NOT NULL"),
        postgresql_where=sa.text("owner IS NOT NULL"),
    )
    op.create_index(
        "ix_acme_accounts_eab_kid",
        "acme_accounts",
        ["eab_kid"],
        sqlite_where=sa.text("eab_kid IS NOT NULL"),
        postgresql_where=sa.text("eab_kid IS NOT NULL"),
    )
    identity = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "eab_renewals",
        sa.Column("certificate_id", identity, autoincrement=False, nullable=False),
        sa.Column("enrollment_id", identity, nullable=False),
        sa.ForeignKeyConstraint(
            ["certificate_id"], ["certificates.id"], name=op.f("fk_eab_renewals_certificate_id_certificates")
        ),
        sa.ForeignKeyConstraint(
            ["enrollment_id"], ["enrollments.id"], name=op.f("fk_eab_renewals_enrollment_id_enrollments")
        ),
        sa.PrimaryKeyConstraint("certificate_id", name=op.f("pk_eab_renewals")),
        sa.UniqueConstraint("enrollment_id", name=op.f("uq_eab_renewals_enrollment_id")),
    )


def _hash_account_keys() -> None:
    """Tell the blocklist's hash of each account's key; a key that is none, and so signs nothing, has none."""
    accounts = sa.table("acme_accounts", sa.column("id"), sa.column("jwk"), sa.column("spki_sha256"))
    page = sa.select(accounts.c.id, accounts.c.jwk).order_by(accounts.c.id).limit(_AT_ONCE)
    change = (
        sa.update(accounts).where(accounts.c.id == sa.bindparam("of_id")).values(spki_sha256=sa.bindparam("digest"))
    )
    connection = op.get_bind()
    rows = connection.execute(page).all()
    while rows:
        hashed = []
        for row in rows:
            try:
                hashed.append({"of_id": row.id, "digest": parse_jwk(row.jwk).spki_sha256})
            except JwsError:
                continue
        if hashed:
            connection.execute(change, hashed)
        rows = connection.execute(page.where(accounts.c.id > rows[-1].id)).all()
