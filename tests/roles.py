"""Roles for tests (the fixture `role` gives a name)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from qigstore.database import access
from qigstore.database.engine import Database


@contextmanager
def new_role(server_dsn: str) -> Iterator[str]:
    """A name no role has, one that must be quoted; removed at the end with what it owns."""
    name = f'qigstore "test" {secrets.token_hex(4)}'
    yield name
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        made = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        databases = connection.execute(
            "SELECT d.datname FROM pg_database d JOIN pg_shdepend s ON s.dbid = d.oid "
            "JOIN pg_roles r ON r.oid = s.refobjid WHERE r.rolname = %s GROUP BY 1",
            (name,),
        ).fetchall()
        if made is None:
            return
    for (database,) in databases:
        with psycopg.connect(make_conninfo(server_dsn, dbname=database)) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_role(dsn: str, database: Database, role: str, kind: access.Access) -> str:
    """The role made with these rights: its own way to the database."""
    password = access.grant(database, role, kind, create=True)
    assert password is not None
    return make_conninfo(dsn, user=role, password=password)
