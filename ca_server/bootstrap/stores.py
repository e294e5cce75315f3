"""Opens the database and the stores over it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ca_server.bootstrap import metrics
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home, Settings
from ca_server.store.audit import SqlAuditStore
from ca_server.store.coordination import SqlCoordinationStore
from ca_server.store.database import Database
from ca_server.store.eab import SqlEabStore
from ca_server.store.inventory import SqlInventory
from ca_server.store.issuance import SqlIssuanceStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.profiles import SqlProfileStore
from ca_server.store.revocation import SqlRevocationStore


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


def database_url(home: Home, settings: Settings) -> str:
    """The database's URL: configured, or SQLite inside the home."""
    return settings.database.url or home.database_url


@asynccontextmanager
async def open_stores(home: Home, settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores; close the database afterwards. ConfigurationError where the home has no database yet."""
    if not settings.database.url and not (home.data / "ca.db").exists():
        raise ConfigurationError(
            str(home.path), "database", None, "this home is not initialised; run 'ca-server init' or scripts/run"
        )
    database = await Database.open(
        database_url(home, settings),
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
        )
    finally:
        await database.close()
