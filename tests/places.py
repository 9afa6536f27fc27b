"""Where tests work: a folder with a short path, a database of its own."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

CONNECT_S, STATEMENT_S = 60, 180.0
"""Patience with a server that other tests keep busy: no verdict is about how long it takes."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder below /tmp: pytest's own are too long for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_database(server_dsn: str, template: str = "template0") -> Iterator[str]:
    """The DSN of a fresh copy of `template`, dropped afterwards, open connections or not."""
    name = f"qigstore_test_{secrets.token_hex(6)}"
    database, like = sql.Identifier(name), sql.Identifier(template)
    _ask(server_dsn, sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, like))
    try:
        yield make_conninfo(server_dsn, dbname=name)
    finally:
        _ask(server_dsn, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def _ask(server_dsn: str, statement: sql.Composed) -> None:
    """Run it; again while somebody still leaves: the server itself waits for that 5 s only."""
    end = time.monotonic() + 60
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        while True:
            try:
                admin.execute(statement)
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > end:
                    raise
            else:
                return
