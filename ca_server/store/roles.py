"""Rights on PostgreSQL: what the core's role and the fronts' may do, where they are not the owner of the tables.

The tables below are the whole of it: what is not named is refused. The owner grants it anew with each migration.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Row, Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store import acme_tables, audit_tables, tables
from ca_server.store.backends import normalise_url
from ca_server.store.metadata import metadata

_READ: Final = ("SELECT",)
_ADD: Final = ("SELECT", "INSERT")
_KEEP: Final = ("SELECT", "INSERT", "UPDATE")
_ALL: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_NONE: Final[tuple[str, ...]] = ()
# A certificate is never altered but in what revocation and CRLs write.
_REVOKE: Final = "UPDATE (revoked_at, revocation_reason, invalidity_date, changed_after_crl, last_crl)"


def _columns(right: str, table: Table, *but: str) -> str:
    """A right on all columns of a table but some."""
    return f"{right} ({', '.join(column.name for column in table.columns if column.name not in but)})"


RIGHTS: Final[Mapping[Table, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    tables.nodes: (_KEEP, _NONE),
    tables.leases: (_KEEP, _NONE),
    tables.secrets: (_ADD, _NONE),
    tables.profiles: (_KEEP, _READ),
    # Not the ciphertext of the key.
    tables.eab_keys: (_KEEP, (_columns("SELECT", tables.eab_keys, "ciphertext"),)),
    tables.eab_renewals: (_KEEP, _READ),
    tables.issuers: (_ADD, _READ),
    tables.issuer_keys: (_ADD, _READ),
    tables.ca_certificates: (_ADD, _READ),
    tables.enrollments: (_ADD, _READ),
    tables.intents: (_KEEP, _READ),
    tables.certificates: ((*_ADD, _REVOKE), _READ),
    tables.certificate_names: (_ADD, _READ),
    tables.spki_blocklist: (("SELECT", "INSERT", "DELETE"), _READ),
    tables.incidents: (_KEEP, _READ),
    tables.incident_targets: (_ADD, _READ),
    tables.crl_numbers: (_KEEP, _READ),
    tables.crls: (_ADD, _READ),
    audit_tables.audit_events: (_ADD, _ADD),
    # Filled by a trigger, with the owner's rights.
    audit_tables.audit_pending: (("SELECT", "DELETE"), _NONE),
    audit_tables.audit_leaves: (_ADD, _READ),
    audit_tables.audit_checkpoints: (_ADD, _READ),
    # By which key an account was let in is the core's to say, and never changes.
    acme_tables.acme_accounts: (
        (*_ADD, "UPDATE (status)"),
        (*_ADD, _columns("UPDATE", acme_tables.acme_accounts, "id", "eab_kid", "eab_binding")),
    ),
    acme_tables.acme_former_keys: (_READ, _ADD),
    acme_tables.acme_orders: (_READ, _ALL),
    acme_tables.acme_star: (_READ, _ALL),
    acme_tables.acme_authorizations: (_READ, _ALL),
    acme_tables.acme_order_links: (_READ, _ALL),
    acme_tables.acme_challenges: (_READ, _ALL),
    # What was seen is not altered afterwards.
    acme_tables.acme_attempts: (_READ, ("SELECT", "INSERT", "DELETE")),
    acme_tables.acme_nonces: (_NONE, _ALL),
    # The core creates the accounts that have a binding, and counts them.
    acme_tables.acme_limits: (_KEEP, _ALL),
    acme_tables.acme_caa: (_NONE, _ALL),
}
"""By table: the rights of the core's role, and of the fronts'."""

FRONT_EVENTS: Final = (
    EventType.ACCESS_REFUSED,
    EventType.ACCOUNT_CREATED,
    EventType.ACCOUNT_DEACTIVATED,
    EventType.ACCOUNT_KEY_CHANGED,
    EventType.ACCOUNT_UPDATED,
    EventType.AUTHORIZATION_CREATED,
    EventType.AUTHORIZATION_DEACTIVATED,
    EventType.CAA_CHECKED,
    EventType.CHALLENGE_FAILED,
    EventType.CHALLENGE_VALIDATED,
    EventType.ISSUANCE_REFUSED,
    EventType.ORDER_CANCELED,
    EventType.ORDER_CREATED,
    EventType.REVOCATION_REFUSED,
)
"""What a front may put on record, as itself. Everything else is the core's to say."""

_POLICIES: Final = ("audit_events_read", "audit_events_core", "audit_events_front")
_preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that core and fronts connect as, and the owner of the tables; equal where they are not separated."""

    owner: str
    core: str
    front: str

    @classmethod
    def of(cls, url: str, *, owner_url: str = "", front_url: str = "") -> "Roles | None":
        """The roles that URLs name, those left out as `url`; None for SQLite, or where `url` names no role."""
        core = _user(url)
        if core is None:
            return None
        return cls(_user(owner_url) or core, core, _user(front_url) or core)

    @property
    def separated(self) -> bool:
        """Whether there is more than one."""
        return len({self.owner, self.core, self.front}) > 1


def _user(url: str) -> str | None:
    parsed = normalise_url(url) if url else None
    return parsed.username if parsed is not None and parsed.get_backend_name() == "postgresql" else None


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return str(_preparer.quote(name))


def creation_statements(roles: Roles, database: str) -> Iterator[str]:
    """What the database's administrator runs once: makes roles without rights, and gives the database to its owner."""
    for role in sorted({roles.owner, roles.core, roles.front}):
        yield f"CREATE ROLE {quoted(role)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOBYPASSRLS"
    yield f"ALTER DATABASE {quoted(database)} OWNER TO {quoted(roles.owner)}"
    yield f"REVOKE ALL ON DATABASE {quoted(database)} FROM PUBLIC"
    for role in sorted({roles.core, roles.front} - {roles.owner}):
        yield f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(role)}"
    yield f"ALTER SCHEMA public OWNER TO {quoted(roles.owner)}"
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"


def grant_statements(roles: Roles, schema: str) -> Iterator[str]:
    """What the owner runs after each migration: takes all rights of core and fronts, and gives those of `RIGHTS`."""
    place = quoted(schema)
    for role, which in ((roles.core, 0), (roles.front, 1)):
        # A role for two is the greater one's.
        if role == roles.owner or (which == 1 and role == roles.core):
            continue
        name = quoted(role)
        yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {place} FROM {name}"
        yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {place} FROM {name}"
        yield f"GRANT USAGE ON SCHEMA {place} TO {name}"
        for table, rights in RIGHTS.items():
            both = roles.front == roles.core
            wanted = dict.fromkeys((*rights[0], *rights[1]) if both else rights[which])
            if wanted:
                yield f"GRANT {', '.join(wanted)} ON {place}.{table.name} TO {name}"
            if "INSERT" in wanted and (sequence := _sequence(table)):
                yield f"GRANT USAGE ON SEQUENCE {place}.{sequence} TO {name}"
        if which == 0:
            yield f"GRANT SELECT ON {place}.alembic_version TO {name}"
    yield from _policy_statements(roles, place)
    # Whoever may insert an event needs no right of his own on the queue that a trigger fills.
    yield f"ALTER FUNCTION {place}.audit_add_pending() SECURITY DEFINER SET search_path = {place}, pg_temp"


def _policy_statements(roles: Roles, schema: str) -> Iterator[str]:
    """Row-level security: a front inserts a front's events alone, as a front, and says nothing else in the leaf."""
    table = f"{schema}.{audit_tables.audit_events.name}"
    for policy in _POLICIES:
        yield f"DROP POLICY IF EXISTS {policy} ON {table}"
    if roles.front in {roles.core, roles.owner}:
        yield f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
        return
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"CREATE POLICY audit_events_read ON {table} FOR SELECT TO PUBLIC USING (true)"
    yield f"CREATE POLICY audit_events_core ON {table} FOR INSERT TO {quoted(roles.core)} WITH CHECK (true)"
    types = ", ".join(f"'{each.value}'" for each in FRONT_EVENTS)
    leaf = "convert_from(leaf, 'UTF8')::jsonb"
    yield (
        f"CREATE POLICY audit_events_front ON {table} FOR INSERT TO {quoted(roles.front)} WITH CHECK ("
        f"type IN ({types}) AND process ~ '^[^/]+/front-[0-9]+/[^/]+$'"
        f" AND {leaf}->>'type' = type AND {leaf}->>'process' = process AND {leaf}->>'id' = id)"
    )


def _sequence(table: Table) -> str | None:
    """The sequence behind a table's own numbers, by PostgreSQL's naming of `serial` columns."""
    column = table.autoincrement_column
    return None if column is None else f"{table.name}_{column.name}_seq"


async def grant(url: str, roles: Roles) -> None:
    """Give the rights, as the owner; nothing on SQLite, or where there is one role. UNAVAILABLE."""
    if not roles.separated:
        return

    def work(connection: Connection) -> None:
        # Whoever waits for the log's lock makes everyone wait behind it: give up instead.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        schema = connection.scalar(text("SELECT current_schema()"))
        for statement in grant_statements(roles, str(schema)):
            connection.exec_driver_sql(statement)

    from ca_server.store.async_backend import engine_for_one_task  # noqa: PLC0415 - a tenth of every command's start

    engine = engine_for_one_task(normalise_url(url))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(work)
    except DBAPIError as error:
        reason = str(error.orig).rpartition(": ")[2]
        raise CaError(ErrorKind.UNAVAILABLE, f"the rights in the database can't be given: {reason}") from error
    except OSError as error:
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away") from error


_EXCESS = text(
    "SELECT t.name, r.privilege FROM unnest(CAST(:tables AS text[])) AS t(name)"
    " CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS r(privilege)"
    " WHERE has_table_privilege(CAST(:role AS name), quote_ident(current_schema()) || '.' || t.name, r.privilege)"
    " ORDER BY t.name, r.privilege"
)
_ATTRIBUTES = text(
    "SELECT r.rolsuper OR r.rolbypassrls OR r.rolcreaterole AS powerful,"
    " has_schema_privilege(r.oid, current_schema(), 'CREATE') AS creates,"
    " ARRAY(SELECT m.rolname FROM pg_auth_members AS a JOIN pg_roles AS m ON m.oid = a.roleid"
    " WHERE a.member = r.oid) AS member_of,"
    " (SELECT relrowsecurity FROM pg_class WHERE oid = 'audit_events'::regclass) AS row_security"
    " FROM pg_roles AS r WHERE r.rolname = :role"
)


def excess(connection: Connection, roles: Roles) -> tuple[str, ...]:
    """What the roles may do beyond what they need, each in a few words; read with anybody's rights."""
    found: list[str] = []
    for role, which, who in ((roles.core, 0, "the core"), (roles.front, 1, "a front")):
        if role == roles.owner or (which == 1 and role == roles.core):
            continue
        attributes = connection.execute(_ATTRIBUTES, {"role": role}).first()
        if attributes is None:
            found.append(f"there is no role {role}")
            continue
        found += _attributes_excess(attributes, who, front=which == 1)
        shared = roles.core == roles.front
        allowed = {
            (table.name, each)
            for table, rights in RIGHTS.items()
            for each in ((*rights[0], *rights[1]) if shared else rights[which])
        }
        names = {"tables": [table.name for table in metadata.sorted_tables], "role": role}
        beyond = [row for row in connection.execute(_EXCESS, names) if tuple(row) not in allowed]
        found += [f"{who} may {row.privilege} {row.name}" for row in beyond]
    return tuple(found)


def _attributes_excess(attributes: Row[tuple[bool, bool, list[str], bool]], who: str, *, front: bool) -> Iterator[str]:
    if attributes.powerful:
        yield f"{who} has a role that may do everything"
    if attributes.creates:
        yield f"{who} may create tables"
    if attributes.member_of:
        yield f"{who} has the rights of {', '.join(attributes.member_of)} too"
    if front and not attributes.row_security:
        yield f"{who} may insert the core's events"


def database_name(url: str) -> str:
    """The name of the database of a URL; that of the role where none is given, as PostgreSQL has it."""
    parsed = normalise_url(url)
    return parsed.database or parsed.username or ""
