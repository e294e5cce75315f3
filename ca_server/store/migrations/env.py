"""Alembic's environment: runs migrations on the connection that `ca_server.store.migrate` hands over."""

from alembic import context

from ca_server.store.metadata import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # All or nothing on both databases: SQLite's DDL is transactional with the engine's own BEGIN.
    transactional_ddl=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
