"""Alembic, which applies migrations. A module of its own: it is needed for that alone, and takes long to load."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_SCRIPTS: Final = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Apply every migration that is missing, in the transaction of the connection."""
    command.upgrade(_config(connection), "head")


def chain() -> tuple[str, ...]:
    """The migrations as Alembic follows them, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
