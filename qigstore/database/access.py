"""Who may do what: a reader sees the views and nothing else, a writer records and migrates nothing.

The owner is whoever migrated the schema. Rights are given to roles of the server; views show what
they show with their owner's rights, so a reader needs none on the tables.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy
from sqlalchemy import text

from qigstore.database.schema import SCHEMA
from qigstore.database.views import VIEWS
from qigstore.errors import ConfigurationError, NotFound, StoreError

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Access", "grant", "granted", "renew", "revoke"]

Access = Literal["reader", "writer"]

# What a recording process needs, by table. Tokens and whatever else comes later are not among it.
_WRITES = (
    "session", "attempt", "writer", "metric", "telemetry", "basin", "curve", "event", "checkpoint",
    "recovery_event",
)  # fmt: skip
_REPLACES = ("telemetry", "basin", "curve")
"""Rows of a repeated step, and the buckets that held them, are replaced."""
_READS = ("store", "alembic_version")

_RELATIONS = text(
    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:schema) "
    "AND relkind IN ('r', 'p', 'v')"
).bindparams(schema=SCHEMA)
_GRANTED = text("""
SELECT r.rolname, has_table_privilege(r.oid, 'qigstore.telemetry', 'INSERT') AS writes
FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE n.nspname = 'qigstore' AND a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner
ORDER BY r.rolname""")


def grant(database: Database, role: str, access: Access, *, create: bool = False) -> str | None:
    """Give a role these rights in place of those it has; a new one's password, else None.

    Args:
        create: make the role where it is not there, with a password that is told only here.

    Raises:
        NotFound: there is no such role, and not `create`.
        StoreError: the database refuses; nothing was changed.
    """
    if access not in ("reader", "writer"):
        raise ConfigurationError(f"access {access!r}; expected reader or writer")
    with _refusals(database), database.begin() as connection:
        password = None
        if not _exists(connection, role):
            if not create:
                hint = "Pass --create, or make it with CREATE ROLE"
                raise NotFound("role", role, hint=hint)
            password = secrets.token_urlsafe(24)
            _create(connection, role, password, access)
        _revoke(connection, role)
        _grant(connection, role, access)
    return password


def revoke(database: Database, role: str) -> None:
    """Take all rights on the schema from a role; the role itself stays.

    Raises:
        NotFound: there is no such role.
        StoreError: the database refuses.
    """
    with _refusals(database), database.begin() as connection:
        if not _exists(connection, role):
            raise NotFound("role", role)
        _revoke(connection, role)


def granted(connection: sqlalchemy.Connection) -> dict[str, Access]:
    """Which roles have rights on the schema."""
    if "telemetry" not in _relations(connection):
        return {}
    return {role: "writer" if writes else "reader" for role, writes in connection.execute(_GRANTED)}


def renew(connection: sqlalchemy.Connection, roles: dict[str, Access]) -> None:
    """Give them their rights on what a migration made, too."""
    for role, access in roles.items():
        _grant(connection, role, access)


def _grant(connection: sqlalchemy.Connection, role: str, access: Access) -> None:
    there, name = _relations(connection), _quoted(connection, role)
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name}")
    for rights, relations in _rights(access):
        if some := [f"{SCHEMA}.{relation}" for relation in relations if relation in there]:
            connection.exec_driver_sql(f"GRANT {rights} ON {', '.join(some)} TO {name}")


def _rights(access: Access) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "SELECT", tuple(VIEWS)
    if access == "writer":
        yield "SELECT", (*_READS, *_WRITES)
        yield "INSERT", ("audit",)  # who asked a run to stop
        yield "INSERT, UPDATE", _WRITES
        yield "DELETE", _REPLACES


def _revoke(connection: sqlalchemy.Connection, role: str) -> None:
    name = _quoted(connection, role)
    connection.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {name}")
    connection.exec_driver_sql(f"REVOKE ALL ON SCHEMA {SCHEMA} FROM {name}")


def _create(connection: sqlalchemy.Connection, role: str, password: str, access: Access) -> None:
    driver: Any = connection.connection.driver_connection
    # Hashed here, so that the password is in no log of the server's.
    hashed = driver.pgconn.encrypt_password(
        password.encode(), role.encode(), b"scram-sha-256"
    ).decode()
    name = _quoted(connection, role)
    connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{hashed}'")
    if access == "reader":  # against a slip of the hand, and a query that never ends
        connection.exec_driver_sql(f"ALTER ROLE {name} SET default_transaction_read_only = on")
        connection.exec_driver_sql(f"ALTER ROLE {name} SET statement_timeout = '60s'")


def _exists(connection: sqlalchemy.Connection, role: str) -> bool:
    query = text("SELECT count(*) FROM pg_roles WHERE rolname = :role")
    return bool(connection.execute(query, {"role": role}).scalar())


def _relations(connection: sqlalchemy.Connection) -> set[str]:
    return set(connection.execute(_RELATIONS).scalars())


def _quoted(connection: sqlalchemy.Connection, role: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(role)


@contextmanager
def _refusals(database: Database) -> Iterator[None]:
    """What the server refuses, as one clear error."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise StoreError(
            f"the database at {database.address} refused, and nothing was changed: {reason}. "
            "Rights are given by the role that owns the schema; --create needs CREATEROLE."
        ) from error
