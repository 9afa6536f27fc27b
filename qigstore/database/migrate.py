"""Brings the schema to this version's revision, and says where a database differs from it.

The revisions are Alembic's; its version table lives inside the schema `qigstore`, so that it never
meets another program's `public.alembic_version`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import text

from qigstore.errors import ConfigurationError, SchemaOutdated, StoreError

if TYPE_CHECKING:
    from alembic.config import Config

    from qigstore.database.engine import Database

__all__ = ["check", "current", "head", "revisions", "scripts", "upgrade"]

VERSION_TABLE = "alembic_version"
_BY_WISH = "ix_basin_root_vector"
# Any number, the same for every version: one migration at a time in a database.
_LOCK = 7_165_017_300_001
_LINE = re.compile(r"^(revision|down_revision)\b[^=\n]*=\s*(.+)$", re.MULTILINE)


def scripts() -> Path:
    """The folder of migrations: in the package where it is installed, else beside it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError(
        f"no migrations at {package / 'migrations'} or beside the package; reinstall qigstore"
    )


@cache
def _chain() -> tuple[tuple[str, ...], str]:
    """Every revision, and the last one: read from the files, as Alembic's import costs 0.2 s."""
    known, below = [], set()
    for path in sorted((scripts() / "versions").glob("*.py")):
        found = dict(_LINE.findall(path.read_text()))
        if "revision" in found:
            known.append(found["revision"].strip("\"' "))
            below.add(found.get("down_revision", "None").strip("\"' "))
    heads = [revision for revision in known if revision not in below]
    if len(heads) != 1:
        raise ConfigurationError(f"migrations in {scripts()} have {len(heads)} heads, not one")
    return tuple(known), heads[0]


def head() -> str:
    """The revision this version speaks."""
    return _chain()[1]


def revisions() -> frozenset[str]:
    """Every revision this version knows."""
    return frozenset(_chain()[0])


def current(database: Database) -> str | None:
    """The revision of a database, or None where it has no qigstore schema.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    with database.begin() as connection:
        return _current(connection)


def _current(connection: sqlalchemy.Connection) -> str | None:
    table = f"qigstore.{VERSION_TABLE}"
    if connection.execute(text("SELECT to_regclass(:name)"), {"name": table}).scalar() is None:
        return None
    found = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()  # noqa: S608
    return None if found is None else str(found)


def _config(connection: sqlalchemy.Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`, in one transaction; a second process waits and finds it done.

    Roles that had rights (`qigstore.database.access`) have them on what is new, too.

    Raises:
        StoreUnavailable: the database cannot be reached.
        StoreError: it refuses the change (no right to make a schema, a foreign `qigstore` schema).
        ConfigurationError: there is no such revision.
    """
    from alembic import command

    from qigstore.database import access

    if revision != "head" and revision not in revisions():
        known = ", ".join(sorted(revisions()))
        raise ConfigurationError(f"no revision {revision!r}; this version knows {known}")
    try:
        with database.begin_unlimited() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            found = _current(connection)
            if found is not None and found not in revisions():
                raise SchemaOutdated(database.address, found, head())
            if found != (head() if revision == "head" else revision):
                roles = access.granted(connection)
                command.upgrade(_config(connection), revision)
                access.renew(connection, roles)
    except sqlalchemy.exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise StoreError(
            f"the database at {database.address} refused the migration to {revision}, and nothing "
            f"was changed: {reason}. Run `qigstore db upgrade` as a role that owns the schema."
        ) from error


def check(database: Database) -> list[str]:
    """What differs between the tables and views of this version and those of the database.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    from qigstore.database import schema

    with database.begin() as connection:
        found, expected = _current(connection), head()
        if found != expected:
            return [f"revision: the database has {found}, this version needs {expected}"]
        return _table_drift(connection) + _view_drift(connection, schema.SCHEMA)


def _table_drift(connection: sqlalchemy.Connection) -> list[str]:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from qigstore.database import schema

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        # pgvector's index is made only where somebody asks for it.
        return name == schema.SCHEMA if kind == "schema" else name not in (VERSION_TABLE, _BY_WISH)

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": ours,
            "version_table": VERSION_TABLE,
            "version_table_schema": schema.SCHEMA,
            "compare_type": True,
            "compare_server_default": True,
        },
    )
    return [_in_words(item) for item in compare_metadata(context, schema.metadata)]


def _in_words(item: Any) -> str:
    if isinstance(item, list):  # changes of one column come as a list
        return "; ".join(map(_in_words, item))
    kind, *rest = item
    names = [
        getattr(part, "fullname", None) or getattr(part, "name", None) or part for part in rest
    ]
    return f"{kind}: {' '.join(str(name) for name in names if name is not None)}"


def _view_drift(connection: sqlalchemy.Connection, schema: str) -> list[str]:
    from qigstore.database import views

    query = text("SELECT viewname FROM pg_views WHERE schemaname = :schema")
    found = set(connection.execute(query, {"schema": schema}).scalars())
    expected = set(views.VIEWS)
    missing = [f"add_view: {name}" for name in sorted(expected - found)]
    return missing + [f"remove_view: {name}" for name in sorted(found - expected)]
