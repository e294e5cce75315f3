"""Opens the database and the stores over it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ca_server.bootstrap import metrics
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings
from ca_server.store.acme_records import SqlAcmeRecords
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.eab import SqlEabStore
from ca_server.store.incidents import SqlIncidentStore
from ca_server.store.inventory import SqlInventory
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.limits import SqlLimitStore
from ca_server.store.migrate import migrate, schema_state
from ca_server.store.profiles import SqlProfileStore
from ca_server.store.revocation import SqlRevocationStore
from ca_server.store.roles import Roles, grant


@dataclass(frozen=True, slots=True)
class Stores:
    """Every store, over one database."""

    database: Database
    issuance: SqlIssuanceStore
    revocation: SqlRevocationStore
    issuers: SqlIssuerStore
    profiles: SqlProfileStore
    coordination: SqlCoordinationStore
    eab: SqlEabStore
    audit: SqlAuditStore
    inventory: SqlInventory
    incidents: SqlIncidentStore
    acme: SqlAcmeRecords
    limits: SqlLimitStore


def database_url(home: Home, settings: Settings) -> str:
    """The database's URL: configured, or SQLite inside the home."""
    return settings.database.url or home.database_url


def database_roles(settings: Settings) -> Roles | None:
    """The roles of owner, core and fronts; None on SQLite, or where `database.url` names none."""
    return Roles.of(settings.database.url, owner_url=settings.database.owner_url, front_url=settings.database.front_url)


async def migrate_database(home: Home, settings: Settings) -> None:
    """Apply the migrations that are missing, as the owner, and give core and fronts their rights. CaError."""
    url = settings.database.owner_url or database_url(home, settings)
    await migrate(url)
    roles = database_roles(settings)
    if roles is not None:
        await grant(url, roles)


async def prepare_database(home: Home, settings: Settings) -> None:
    """Migrate the database, or where that is another role's, look whether it was done. ConfigurationError, CaError.

    Rights are given again with a migration alone: that locks the log for a moment, and other nodes may be at work.
    """
    separated = settings.database.owner_url or settings.database.front_url
    state = await schema_state(database_url(home, settings)) if separated else None
    if state is None or (not state.is_current and not settings.database.owner_url):
        await migrate_database(home, settings)
    elif not state.is_current:
        raise ConfigurationError(
            str(home.configuration),
            "database.url",
            None,
            f"the database has schema {state.current or 'none'}, wanted is {state.head}; run 'ca-server db migrate'",
        )


@asynccontextmanager
async def open_stores(home: Home, settings: Settings, *, as_front: bool = False) -> AsyncIterator[Stores]:
    """Open the stores; close the database afterwards. ConfigurationError where the home has no database yet.

    With `as_front` it is opened under the role of the fronts.
    """
    if not settings.database.url and not (home.data / "ca.db").exists():
        raise ConfigurationError(
            str(home.path), "database", None, "this home is not initialised; run 'ca-server init' or scripts/run"
        )
    database = await Database.open(
        (settings.database.front_url if as_front else "") or database_url(home, settings),
        pool_size=settings.database.pool_size,
        queue_limit=settings.database.queue_limit,
        observe=metrics.database,
    )
    try:
        yield Stores(
            database=database,
            issuance=SqlIssuanceStore(database),
            revocation=SqlRevocationStore(database),
            issuers=SqlIssuerStore(database),
            profiles=SqlProfileStore(database, settings.server.tenant),
            coordination=SqlCoordinationStore(database),
            eab=SqlEabStore(database),
            audit=SqlAuditStore(database),
            inventory=SqlInventory(database),
            incidents=SqlIncidentStore(database),
            acme=SqlAcmeRecords(database, settings.server.tenant),
            limits=SqlLimitStore(database),
        )
    finally:
        await database.close()
