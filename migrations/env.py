"""Alembic's environment: the connection comes from `qigstore.database.migrate`, or the settings."""

from __future__ import annotations

import sqlalchemy
from alembic import context
from sqlalchemy import text

from qigstore.database.engine import open_database
from qigstore.database.migrate import VERSION_TABLE
from qigstore.database.schema import SCHEMA, metadata
from qigstore.settings import load_settings


def _in_our_schema(name: str | None, kind: str, _parents: object) -> bool:
    return name == SCHEMA if kind == "schema" else name != VERSION_TABLE


def _run(connection: sqlalchemy.Connection) -> None:
    # Alembic makes its version table before the first revision, so the schema must be there.
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=_in_our_schema,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run() -> None:
    """Use the caller's connection and transaction, or one of the settings' database."""
    given: sqlalchemy.Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    database = open_database(load_settings(), check=False)
    try:
        with database.begin() as connection:
            _run(connection)
    finally:
        database.dispose()


if context.is_offline_mode():
    raise SystemExit("qigstore's migrations need a database; there is no offline (--sql) mode")
run()
