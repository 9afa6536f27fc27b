"""Where tests work: a folder with a short path, a database of its own."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo


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
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    try:
        yield make_conninfo(server_dsn, dbname=name)
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
