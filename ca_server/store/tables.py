"""The core's tables. Migrations create them; a test holds the two to each other.

Columns come in the order in which they are read most, with large values last: SQLite then counts and filters rows
without reading them to the end.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from ca_server.store.metadata import metadata
from ca_server.store.types import Id, Sortable, UtcTime

# --- Coordination -------------------------------------------------------------------------------------------------

nodes = Table(
    "nodes",
    metadata,
    Column("node", String, primary_key=True),
    # The home that the name belongs to.
    Column("holder", String, nullable=False),
    Column("boot_epoch", BigInteger, nullable=False),
    Column("lease_expires", UtcTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", String, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
)

# --- Profiles -----------------------------------------------------------------------------------------------------

profiles = Table(
    "profiles",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("content_hash", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("first_seen", UtcTime, nullable=False),
    # Empty while the profile is in force.
    Column("superseded_at", UtcTime, nullable=True),
    Column("body", LargeBinary, nullable=False),
    Index(
        "ix_profiles_in_force",
        "tenant",
        "name",
        unique=True,
        sqlite_where=text("superseded_at IS NULL"),
        postgresql_where=text("superseded_at IS NULL"),
    ),
)

# --- Issuers ------------------------------------------------------------------------------------------------------

issuers = Table(
    "issuers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", String, nullable=False),
    # Unique over all tenants: CRL and caIssuers URLs name an issuer by this alone.
    Column("name", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("parent_id", Id, ForeignKey("issuers.id"), nullable=True),
    Column("created_at", UtcTime, nullable=False),
)

issuer_keys = Table(
    "issuer_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("issuer_id", Id, ForeignKey("issuers.id"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("label", String, nullable=False, unique=True),
    Column("algorithm", String, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("spki", LargeBinary, nullable=False),
    UniqueConstraint("issuer_id", "generation"),
    Index(
        "ix_issuer_keys_active",
        "issuer_id",
        unique=True,
        sqlite_where=text("active"),
        postgresql_where=text("active"),
    ),
)

ca_certificates = Table(
    "ca_certificates",
    metadata,
    Column("id", Id, primary_key=True),
    Column("issuer_key_id", Id, ForeignKey("issuer_keys.id"), nullable=False),
    # Cross-signing and renewal give a key several certificates; clients get the preferred one.
    Column("preferred", Boolean, nullable=False),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("der", LargeBinary, nullable=False),
    # The certificates above, nearest first, root last, DER after DER.
    Column("chain", LargeBinary, nullable=False),
    Index(
        "ix_ca_certificates_preferred",
        "issuer_key_id",
        unique=True,
        sqlite_where=text("preferred"),
        postgresql_where=text("preferred"),
    ),
)

# --- Issuance -----------------------------------------------------------------------------------------------------

enrollments = Table(
    "enrollments",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("protocol", String, nullable=False),
    Column("profile", String, nullable=False),
    Column("requester_scope", String, nullable=False),
    Column("transaction_key", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("csr_sha256", LargeBinary, nullable=False),
    # The most selective columns first: one probe finds an enrollment.
    UniqueConstraint(
        "transaction_key", "requester_scope", "protocol", "profile", "tenant", "epoch", name="uq_enrollments_key"
    ),
)

intents = Table(
    "intents",
    metadata,
    Column("id", String, primary_key=True),
    Column("enrollment_id", Id, ForeignKey("enrollments.id"), nullable=False),
    Column("issuer_id", Id, ForeignKey("issuers.id"), nullable=False),
    Column("issuer_key_id", Id, ForeignKey("issuer_keys.id"), nullable=False),
    Column("serial", Sortable, nullable=False),
    Column("state", String, nullable=False),
    Column("node", String, nullable=False),
    Column("boot_epoch", BigInteger, nullable=False),
    Column("reserved_at", UtcTime, nullable=False),
    Column("settled_at", UtcTime, nullable=True),
    Column("reason", Text, nullable=True),
    Column("profile", String, nullable=False),
    Column("profile_hash", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("tbs_sha256", LargeBinary, nullable=False),
    CheckConstraint("state IN ('reserved', 'issued', 'abandoned')", name="state"),
    # In every state: a serial is never used twice.
    UniqueConstraint("serial", "issuer_id"),
    Index(
        "ix_intents_live",
        "enrollment_id",
        unique=True,
        sqlite_where=text("state = 'reserved'"),
        postgresql_where=text("state = 'reserved'"),
    ),
    Index(
        "ix_intents_unsettled",
        "node",
        "boot_epoch",
        sqlite_where=text("state = 'reserved'"),
        postgresql_where=text("state = 'reserved'"),
    ),
)

certificates = Table(
    "certificates",
    metadata,
    Column("id", Id, primary_key=True),
    Column("issuer_id", Id, ForeignKey("issuers.id"), nullable=False),
    Column("issuer_key_id", Id, ForeignKey("issuer_keys.id"), nullable=False),
    Column("serial", Sortable, nullable=False),
    Column("crl_partition", Integer, nullable=False),
    Column("revoked_at", UtcTime, nullable=True),
    Column("revocation_reason", Integer, nullable=True),
    Column("invalidity_date", UtcTime, nullable=True),
    # The last CRL number drawn when revocation, or release from hold, was committed: every later list shows it.
    Column("changed_after_crl", BigInteger, nullable=True),
    # The list that showed the entry after the certificate expired: later ones leave it out (RFC 5280 section 3.3).
    Column("last_crl", BigInteger, nullable=True),
    Column("not_before", UtcTime, nullable=False),
    Column("not_after", UtcTime, nullable=False),
    Column("issued_at", UtcTime, nullable=False),
    Column("enrollment_id", Id, ForeignKey("enrollments.id"), nullable=True, unique=True),
    Column("profile", String, nullable=False),
    Column("profile_hash", String, nullable=False),
    Column("requester_protocol", String, nullable=False),
    Column("requester_id", String, nullable=False),
    Column("transaction_key", String, nullable=False),
    Column("tenant", String, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    # Of the external account key that the requester was bound by when it was issued.
    Column("owner", String, nullable=True),
    Column("subject", Text, nullable=False),
    Column("der", LargeBinary, nullable=False),
    CheckConstraint("(revoked_at IS NULL) = (revocation_reason IS NULL)", name="revocation"),
    UniqueConstraint("serial", "issuer_id"),
    Index("ix_certificates_spki_sha256", "spki_sha256"),
    Index("ix_certificates_not_after", "not_after"),
    Index("ix_certificates_issued_at", "issued_at"),
    Index("ix_certificates_requester", "requester_id", "requester_protocol", "not_after"),
    Index(
        "ix_certificates_owner",
        "owner",
        "id",
        sqlite_where=text("owner IS NOT NULL"),
        postgresql_where=text("owner IS NOT NULL"),
    ),
    Index(
        "ix_certificates_on_crl",
        "issuer_key_id",
        "id",
        sqlite_where=text("revoked_at IS NOT NULL AND last_crl IS NULL"),
        postgresql_where=text("revoked_at IS NOT NULL AND last_crl IS NULL"),
    ),
    Index(
        "ix_certificates_changed",
        "issuer_key_id",
        "crl_partition",
        "changed_after_crl",
        sqlite_where=text("changed_after_crl IS NOT NULL"),
        postgresql_where=text("changed_after_crl IS NOT NULL"),
    ),
)

certificate_names = Table(
    "certificate_names",
    metadata,
    Column("certificate_id", Id, ForeignKey("certificates.id"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("type", String, nullable=False),
    Column("value", Text, nullable=False),
    # The value from back to front: finds names exactly and by suffix.
    Column("reversed", Sortable, nullable=False),
    Index("ix_certificate_names_reversed", "reversed"),
    sqlite_with_rowid=False,
)

spki_blocklist = Table(
    "spki_blocklist",
    metadata,
    Column("spki_sha256", LargeBinary, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("added_at", UtcTime, nullable=False),
)

# --- CRLs ---------------------------------------------------------------------------------------------------------

crl_numbers = Table(
    "crl_numbers",
    metadata,
    Column("issuer_key_id", Id, ForeignKey("issuer_keys.id"), primary_key=True, autoincrement=False),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)

crls = Table(
    "crls",
    metadata,
    Column("id", Id, primary_key=True),
    Column("issuer_key_id", Id, ForeignKey("issuer_keys.id"), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    # The full list that a delta CRL is based on; none for a full one.
    Column("base_number", BigInteger, nullable=True),
    Column("this_update", UtcTime, nullable=False),
    Column("next_update", UtcTime, nullable=False),
    Column("der", LargeBinary, nullable=False),
    UniqueConstraint("issuer_key_id", "partition", "number"),
)

# --- Incidents ----------------------------------------------------------------------------------------------------

incidents = Table(
    "incidents",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=True),
    Column("reason", Text, nullable=False),
    Column("explanation_url", Text, nullable=False),
)

incident_targets = Table(
    "incident_targets",
    metadata,
    Column("scope", String, primary_key=True),
    Column("value", String, primary_key=True),
    Column("incident_id", String, ForeignKey("incidents.id"), primary_key=True),
)

# --- External account keys ----------------------------------------------------------------------------------------

eab_keys = Table(
    "eab_keys",
    metadata,
    Column("kid", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=True),
    Column("reusable", Boolean, nullable=False),
    Column("max_uses", BigInteger, nullable=True),
    Column("disabled_at", UtcTime, nullable=True),
    Column("accounts_revoked_at", UtcTime, nullable=True),
    # One, or several with commas between them.
    Column("profile", String, nullable=True),
    # Patterns, with commas between them.
    Column("names", Text, nullable=True),
    Column("live", BigInteger, nullable=True),
    Column("rate", String, nullable=True),
    # Of the rate, kept here and not with the fronts' limits: the core alone writes it.
    Column("arrival", UtcTime, nullable=True),
    # No more certificates than these are live; counted anew where that is too many, or unknown.
    Column("live_bound", BigInteger, nullable=True),
    Column("owner", String, nullable=True),
    Column("uses", BigInteger, nullable=False),
    Column("last_used_at", UtcTime, nullable=True),
    Column("ciphertext", LargeBinary, nullable=False),
)

# Which enrollment renews which certificate, where a quota counts the two as one. It holds as long as the enrollment has
# a certificate or a live intent.
eab_renewals = Table(
    "eab_renewals",
    metadata,
    Column("certificate_id", Id, ForeignKey("certificates.id"), primary_key=True, autoincrement=False),
    Column("enrollment_id", Id, ForeignKey("enrollments.id"), nullable=False, unique=True),
)
