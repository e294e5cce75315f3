"""`ca-server db`: roles and schema of the database."""

import sys

import typer

from ca_server.bootstrap.stores import database_roles, migrate_database
from ca_server.bootstrap.users import become_core, resolve_users
from ca_server.cli.common import DEFAULT_HOME, HomeOption, SetOption, home_at, open_settings, run
from ca_server.configuration import load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.store.roles import creation_statements, database_name

app = typer.Typer(help="Roles and schema of the database.", no_args_is_help=True)


@app.command("roles")
def roles(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Print the SQL with which an administrator of PostgreSQL makes the roles of owner, core and fronts.

    It is to be run in the database, once, by a superuser. Roles are those of database.url (the core),
    database.front_url and database.owner_url. Rights on tables are given by 'ca-server init' and 'db migrate'.

    - `ca-server db roles --set database.url=postgresql://ca_core@db/ca --set database.front_url=postgresql://ca_front@db/ca --set database.owner_url=postgresql://ca_owner@db/ca`
    """  # noqa: E501 - an example is one line, to be copied
    place = home_at(home)
    # The roles come first: there need be no home yet.
    effective = load_settings(place.configuration if place.configuration.exists() else None, settings)
    named = database_roles(effective)
    if named is None or not named.separated:
        raise ConfigurationError(
            str(place.configuration),
            "database.front_url",
            None,
            "name roles of one PostgreSQL database in database.url, database.front_url and database.owner_url",
        )
    for statement in creation_statements(named, database_name(effective.database.url)):
        sys.stdout.write(f"{statement};\n")


@app.command("migrate")
def migrate(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Bring the database's schema up to date as its owner, and give core and fronts their rights anew.

    Needed after an upgrade where database.owner_url is set; without it the core does so at every start.

    - `ca-server db migrate`
    """
    place, effective = open_settings(home, settings)
    if not effective.database.url:
        # What is written to the embedded database's folder must be the core's.
        become_core(resolve_users(effective.processes, str(place.configuration)))
    run(migrate_database(place, effective))
    sys.stdout.write("the database's schema is up to date\n")
