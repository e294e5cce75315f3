"""Databases for all tests: SQLite, and PostgreSQL on a server that the tests start, or that
CA_SERVER_TEST_POSTGRESQL names by URL.
"""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from databases import PostgresServer, administer, empty, new_name, of_database, run_apart

from ca_server.store.migrate import migrate

# Plain tracebacks: structlog's own take seconds to draw, which code that logs a fault and goes on would wait for.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server's maintenance database."""
    given = os.environ.get("CA_SERVER_TEST_POSTGRESQL", "")
    if given:
        yield given
        return
    server = PostgresServer()
    server.start()
    yield server.url()
    server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    run_apart(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> Iterator[str]:
    """Name of a database with the newest schema, to be copied."""
    name = new_name()
    run_apart(administer(postgresql, f"CREATE DATABASE {name}"))
    run_apart(migrate(of_database(postgresql, name)))
    yield name
    run_apart(administer(postgresql, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def postgresql_database(postgresql: str) -> Iterator[str]:
    """URL of a database that tests use one after the other, emptied in between: making one takes half a second."""
    name = new_name()
    run_apart(administer(postgresql, f"CREATE DATABASE {name}"))
    run_apart(migrate(of_database(postgresql, name)))
    yield of_database(postgresql, name)
    run_apart(administer(postgresql, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database with the newest schema, of either kind; a test marked `alters_schema` has one of its own."""
    if request.param == "sqlite":
        path = tmp_path / "ca.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    elif request.node.get_closest_marker("alters_schema"):
        server, name = request.getfixturevalue("postgresql"), new_name()
        await administer(server, f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('postgresql_template')}")
        yield of_database(server, name)
        await administer(server, f"DROP DATABASE {name} WITH (FORCE)")
    else:
        shared = request.getfixturevalue("postgresql_database")
        yield shared
        await empty(shared)
