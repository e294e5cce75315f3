"""Tables of the ACME front-end. An order's certificate is found by its enrollment; no table here names it."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

from ca_server.store.metadata import metadata
from ca_server.store.types import Id, UtcTime

acme_accounts = Table(
    "acme_accounts",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("key_thumbprint", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("terms_agreed_at", UtcTime),
    Column("eab_kid", String),
    Column("contacts", String, nullable=False),
    Column("jwk", LargeBinary, nullable=False),
    Column("eab_binding", LargeBinary),
    Column("terms_of_service", String),
    Column("spki_sha256", LargeBinary),
    UniqueConstraint("tenant", "key_thumbprint"),
    Index(
        "ix_acme_accounts_eab_kid",
        "eab_kid",
        sqlite_where=text("eab_kid IS NOT NULL"),
        postgresql_where=text("eab_kid IS NOT NULL"),
    ),
)

acme_former_keys = Table(
    "acme_former_keys",
    metadata,
    Column("account_id", String, ForeignKey("acme_accounts.id"), primary_key=True),
    Column("key_thumbprint", String, primary_key=True),
)

acme_orders = Table(
    "acme_orders",
    metadata,
    Column("number", Id, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("account_id", String, ForeignKey("acme_accounts.id"), nullable=False),
    Column("profile", String, nullable=False),
    Column("profile_hash", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("not_before", UtcTime),
    Column("not_after", UtcTime),
    Column("lease_holder", String),
    Column("lease_until", UtcTime),
    Column("source", String),
    Column("request_id", String, nullable=False),
    Column("identifiers", LargeBinary, nullable=False),
    # The same ids as in acme_order_links, for who reads an order: they never change.
    Column("authorization_ids", LargeBinary, nullable=False),
    Column("csr", LargeBinary),
    Column("error", LargeBinary),
    # The CertID of the certificate that an order replaces (RFC 9773 section 5).
    Column("replaces", String),
    Index("ix_acme_orders_account_id_number", "account_id", "number"),
    Index("ix_acme_orders_expires_at", "expires_at"),
    Index(
        "ix_acme_orders_open",
        "account_id",
        "expires_at",
        sqlite_where=text("status IN ('pending', 'ready')"),
        postgresql_where=text("status IN ('pending', 'ready')"),
    ),
    Index(
        "ix_acme_orders_processing",
        "lease_until",
        sqlite_where=text("status = 'processing'"),
        postgresql_where=text("status = 'processing'"),
    ),
    Index(
        "ix_acme_orders_replaces",
        "replaces",
        sqlite_where=text("replaces IS NOT NULL"),
        postgresql_where=text("replaces IS NOT NULL"),
    ),
)

acme_authorizations = Table(
    "acme_authorizations",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", String, ForeignKey("acme_accounts.id"), nullable=False),
    Column("type", String, nullable=False),
    Column("value", String, nullable=False),
    Column("wildcard", Boolean, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    # Asked for by itself: an order may never come to stand on it.
    Column("preauthorized", Boolean, nullable=False, server_default=false()),
    # The challenges that are offered: one token for all, and their types with commas between. A challenge has a row
    # once its validation begins. NULL in authorizations made before 0009, whose challenges all have rows.
    Column("token", String),
    Column("offered", String),
    Column("validated_at", UtcTime),
    # For all names below, too (RFC 9444).
    Column("subdomains", Boolean, nullable=False, server_default=false()),
    Index("ix_acme_authorizations_name", "account_id", "value", "status", "expires_at"),
    Index(
        "ix_acme_authorizations_preauthorized_open",
        "account_id",
        "expires_at",
        sqlite_where=text("preauthorized AND status = 'pending'"),
        postgresql_where=text("preauthorized AND status = 'pending'"),
    ),
    Index(
        "ix_acme_authorizations_preauthorized",
        "expires_at",
        sqlite_where=text("preauthorized"),
        postgresql_where=text("preauthorized"),
    ),
)

acme_order_links = Table(
    "acme_order_links",
    metadata,
    Column("order_id", String, ForeignKey("acme_orders.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("authorization_id", String, ForeignKey("acme_authorizations.id"), nullable=False),
    Index("ix_acme_order_links_authorization_id", "authorization_id"),
)

acme_challenges = Table(
    "acme_challenges",
    metadata,
    Column("id", String, primary_key=True),
    Column("authorization_id", String, ForeignKey("acme_authorizations.id"), nullable=False),
    # Its authorization's: what counts and shares out the work of accounts needs no join.
    Column("account_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("token", String, nullable=False),
    Column("status", String, nullable=False),
    Column("validated_at", UtcTime),
    Column("attempts", Integer, nullable=False),
    Column("lease_holder", String),
    Column("lease_until", UtcTime),
    Column("error", LargeBinary),
    # What the client sent to be looked at, until the challenge is settled; what that showed.
    Column("response", LargeBinary),
    Column("evidence", LargeBinary),
    Index("ix_acme_challenges_authorization_id", "authorization_id"),
    Index(
        "ix_acme_challenges_processing",
        "account_id",
        "lease_until",
        sqlite_where=text("status = 'processing'"),
        postgresql_where=text("status = 'processing'"),
    ),
)

acme_attempts = Table(
    "acme_attempts",
    metadata,
    Column("challenge_id", String, ForeignKey("acme_challenges.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("started_at", UtcTime, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("front", String, nullable=False),
    # Lines, a new one after each line feed.
    Column("seen", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("detail", String, nullable=False),
)

acme_nonces = Table(
    "acme_nonces",
    metadata,
    Column("nonce", String, primary_key=True),
    Column("expires_at", UtcTime, nullable=False),
    Index("ix_acme_nonces_expires_at", "expires_at"),
)

acme_limits = Table(
    "acme_limits",
    metadata,
    Column("key", String, primary_key=True),
    Column("arrival", UtcTime, nullable=False),
    # How far ahead of now the arrival may lie for one more, in microseconds, by who wrote last.
    Column("slack", BigInteger, nullable=False),
    Index("ix_acme_limits_arrival", "arrival"),
)

acme_caa = Table(
    "acme_caa",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("checked_at", UtcTime, nullable=False),
    # Whether the resolver had authenticated the answers (DNSSEC).
    Column("authenticated", Boolean, nullable=False),
    # Where the records are, at the name or above it; empty: nowhere.
    Column("found_at", String, nullable=False),
    # As JSON: flags, tag and value in base64 of each.
    Column("records", LargeBinary, nullable=False),
    Index("ix_acme_caa_checked_at", "checked_at"),
)
