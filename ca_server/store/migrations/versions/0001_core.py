"""The core's tables: coordination, profiles, issuers, issuance, CRLs, external account keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SORTABLE = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_TIME = sa.BigInteger()  # microseconds since 1970


def upgrade() -> None:
    _create_coordination()
    _create_issuers()
    _create_issuance()
    _create_crls()


def _create_coordination() -> None:
    op.create_table(
        "nodes",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_nodes")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "profiles",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("first_seen", _TIME, nullable=False),
        sa.Column("superseded_at", _TIME, nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "content_hash", name=op.f("pk_profiles")),
    )
    op.create_index(
        "ix_profiles_in_force",
        "profiles",
        ["tenant", "name"],
        unique=True,
        sqlite_where=sa.text("superseded_at IS NULL"),
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_table(
        "eab_keys",
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.Column("reusable", sa.Boolean(), nullable=False),
        sa.Column("disabled_at", _TIME, nullable=True),
        sa.Column("profile", sa.String(), nullable=True),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", _TIME, nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_eab_keys")),
    )


def _create_issuers() -> None:
    op.create_table(
        "issuers",
        sa.Column("id", _ID, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parent_id", _ID, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["issuers.id"], name=op.f("fk_issuers_parent_id_issuers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issuers")),
        sa.UniqueConstraint("name", name=op.f("uq_issuers_name")),
    )
    op.create_table(
        "issuer_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("issuer_id", _ID, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("algorithm", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("spki", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["issuer_id"], ["issuers.id"], name=op.f("fk_issuer_keys_issuer_id_issuers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issuer_keys")),
        sa.UniqueConstraint("issuer_id", "generation", name=op.f("uq_issuer_keys_issuer_id_generation")),
        sa.UniqueConstraint("label", name=op.f("uq_issuer_keys_label")),
    )
    op.create_index(
        "ix_issuer_keys_active",
        "issuer_keys",
        ["issuer_id"],
        unique=True,
        sqlite_where=sa.text("active"),
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "ca_certificates",
        sa.Column("id", _ID, nullable=False),
        sa.Column("issuer_key_id", _ID, nullable=False),
        sa.Column("preferred", sa.Boolean(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["issuer_key_id"], ["issuer_keys.id"], name=op.f("fk_ca_certificates_issuer_key_id_issuer_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ca_certificates")),
        sa.UniqueConstraint("sha256", name=op.f("uq_ca_certificates_sha256")),
    )
    op.create_index(
        "ix_ca_certificates_preferred",
        "ca_certificates",
        ["issuer_key_id"],
        unique=True,
        sqlite_where=sa.text("preferred"),
        postgresql_where=sa.text("preferred"),
    )


def _create_issuance() -> None:
    op.create_table(
        "enrollments",
        sa.Column("id", _ID, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("requester_scope", sa.String(), nullable=False),
        sa.Column("transaction_key", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("csr_sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollments")),
        sa.UniqueConstraint(
            "transaction_key",
            "requester_scope",
            "protocol",
            "profile",
            "tenant",
            "epoch",
            name=op.f("uq_enrollments_key"),
        ),
    )
    op.create_table(
        "intents",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("enrollment_id", _ID, nullable=False),
        sa.Column("issuer_id", _ID, nullable=False),
        sa.Column("issuer_key_id", _ID, nullable=False),
        sa.Column("serial", _SORTABLE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("boot_epoch", sa.BigInteger(), nullable=False),
        sa.Column("reserved_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("profile_hash", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("tbs_sha256", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("state IN ('reserved', 'issued', 'abandoned')", name=op.f("ck_intents_state")),
        sa.ForeignKeyConstraint(
            ["enrollment_id"], ["enrollments.id"], name=op.f("fk_intents_enrollment_id_enrollments")
        ),
        sa.ForeignKeyConstraint(["issuer_id"], ["issuers.id"], name=op.f("fk_intents_issuer_id_issuers")),
        sa.ForeignKeyConstraint(
            ["issuer_key_id"], ["issuer_keys.id"], name=op.f("fk_intents_issuer_key_id_issuer_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_intents")),
        sa.UniqueConstraint("serial", "issuer_id", name=op.f("uq_intents_serial_issuer_id")),
    )
    op.create_index(
        "ix_intents_live",
        "intents",
        ["enrollment_id"],
        unique=True,
        sqlite_where=sa.text("state = 'reserved'"),
        postgresql_where=sa.text("state = 'reserved'"),
    )
    op.create_index(
        "ix_intents_unsettled",
        "intents",
        ["node", "boot_epoch"],
        unique=False,
        sqlite_where=sa.text("state = 'reserved'"),
        postgresql_where=sa.text("state = 'reserved'"),
    )
    op.create_table(
        "certificates",
        sa.Column("id", _ID, nullable=False),
        sa.Column("issuer_id", _ID, nullable=False),
        sa.Column("issuer_key_id", _ID, nullable=False),
        sa.Column("serial", _SORTABLE, nullable=False),
        sa.Column("crl_partition", sa.Integer(), nullable=False),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.Column("revocation_reason", sa.Integer(), nullable=True),
        sa.Column("invalidity_date", _TIME, nullable=True),
        sa.Column("changed_after_crl", sa.BigInteger(), nullable=True),
        sa.Column("last_crl", sa.BigInteger(), nullable=True),
        sa.Column("not_before", _TIME, nullable=False),
        sa.Column("not_after", _TIME, nullable=False),
        sa.Column("issued_at", _TIME, nullable=False),
        sa.Column("enrollment_id", _ID, nullable=True),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("profile_hash", sa.String(), nullable=False),
        sa.Column("requester_protocol", sa.String(), nullable=False),
        sa.Column("requester_id", sa.String(), nullable=False),
        sa.Column("transaction_key", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "(revoked_at IS NULL) = (revocation_reason IS NULL)", name=op.f("ck_certificates_revocation")
        ),
        sa.ForeignKeyConstraint(
            ["enrollment_id"], ["enrollments.id"], name=op.f("fk_certificates_enrollment_id_enrollments")
        ),
        sa.ForeignKeyConstraint(["issuer_id"], ["issuers.id"], name=op.f("fk_certificates_issuer_id_issuers")),
        sa.ForeignKeyConstraint(
            ["issuer_key_id"], ["issuer_keys.id"], name=op.f("fk_certificates_issuer_key_id_issuer_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
        sa.UniqueConstraint("enrollment_id", name=op.f("uq_certificates_enrollment_id")),
        sa.UniqueConstraint("serial", "issuer_id", name=op.f("uq_certificates_serial_issuer_id")),
    )
    op.create_index("ix_certificates_issued_at", "certificates", ["issued_at"], unique=False)
    op.create_index(
        "ix_certificates_requester",
        "certificates",
        ["requester_id", "requester_protocol", "not_after"],
        unique=False,
    )
    op.create_index("ix_certificates_not_after", "certificates", ["not_after"], unique=False)
    op.create_index(
        "ix_certificates_on_crl",
        "certificates",
        ["issuer_key_id", "id"],
        unique=False,
        sqlite_where=sa.text("revoked_at IS NOT NULL AND last_crl IS NULL"),
        postgresql_where=sa.text("revoked_at IS NOT NULL AND last_crl IS NULL"),
    )
    op.create_index(
        "ix_certificates_changed",
        "certificates",
        ["issuer_key_id", "crl_partition", "changed_after_crl"],
        unique=False,
        sqlite_where=sa.text("changed_after_crl IS NOT NULL"),
        postgresql_where=sa.text("changed_after_crl IS NOT NULL"),
    )
    op.create_index("ix_certificates_spki_sha256", "certificates", ["spki_sha256"], unique=False)
    op.create_table(
        "certificate_names",
        sa.Column("certificate_id", _ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("reversed", _SORTABLE, nullable=False),
        sa.ForeignKeyConstraint(
            ["certificate_id"], ["certificates.id"], name=op.f("fk_certificate_names_certificate_id_certificates")
        ),
        sa.PrimaryKeyConstraint("certificate_id", "position", name=op.f("pk_certificate_names")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_certificate_names_reversed", "certificate_names", ["reversed"], unique=False)
    op.create_table(
        "spki_blocklist",
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("added_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256", name=op.f("pk_spki_blocklist")),
    )


def _create_crls() -> None:
    op.create_table(
        "crl_numbers",
        sa.Column("issuer_key_id", _ID, autoincrement=False, nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["issuer_key_id"], ["issuer_keys.id"], name=op.f("fk_crl_numbers_issuer_key_id_issuer_keys")
        ),
        sa.PrimaryKeyConstraint("issuer_key_id", "partition", name=op.f("pk_crl_numbers")),
    )
    op.create_table(
        "crls",
        sa.Column("id", _ID, nullable=False),
        sa.Column("issuer_key_id", _ID, nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("base_number", sa.BigInteger(), nullable=True),
        sa.Column("this_update", _TIME, nullable=False),
        sa.Column("next_update", _TIME, nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["issuer_key_id"], ["issuer_keys.id"], name=op.f("fk_crls_issuer_key_id_issuer_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_crls")),
        sa.UniqueConstraint(
            "issuer_key_id", "partition", "number", name=op.f("uq_crls_issuer_key_id_partition_number")
        ),
    )


def downgrade() -> None:
    for table in (
        "crls",
        "crl_numbers",
        "spki_blocklist",
        "certificate_names",
        "certificates",
        "intents",
        "enrollments",
        "ca_certificates",
        "issuer_keys",
        "issuers",
        "eab_keys",
        "profiles",
        "secrets",
        "leases",
        "nodes",
    ):
        op.drop_table(table)
