"""`qigstore query`: one SQL statement that reads, its rows as a table, JSON or CSV."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.output import Json, as_json, print_json, print_table
from qigstore.errors import ConfigurationError

if TYPE_CHECKING:
    from qigstore.repository.console import Answer

__all__ = ["query"]

_ROWS_MAX = 1_000_000


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help='One statement; "-": standard input.')],
    limit: Annotated[
        int, typer.Option(min=1, max=_ROWS_MAX, help="At most so many rows; stderr says of more.")
    ] = 1000,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=3600, help="Seconds that the statement may take.")
    ] = 30.0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_document: Json = False,
) -> None:
    """Ask the store in SQL: one statement, in a transaction that only reads.

    `qigstore` is on the search path, so `select * from session_stats` just works; docs/sql.md has
    more. Where there are more than --limit rows, the rest is left out and stderr says so.
    """
    if as_csv and as_document:
        raise ConfigurationError("--csv and --json: choose one")
    from qigstore.database.engine import open_database
    from qigstore.repository.console import ask
    from qigstore.settings import load_settings

    statement = sys.stdin.read() if sql == "-" else sql
    settings = load_settings()
    database = open_database(settings, check=settings.dsn is None)
    try:
        found = ask(database, statement, limit=limit, timeout_s=timeout)
    finally:
        database.dispose()
    _print(found, as_csv, as_document)
    if found.more:
        sys.stderr.write(f"qigstore: only the first {limit:,} rows; --limit shows more\n")


def _print(found: Answer, as_csv: bool, as_document: bool) -> None:
    if as_document:
        print_json({"columns": found.columns, "rows": found.rows, "more": found.more})
    elif as_csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(found.columns)
        table.writerows([_cell(value) for value in row] for row in found.rows)
    else:
        print_table(found.columns, found.rows, whole="")


def _cell(value: Any) -> Any:
    """NULL is empty, a time is ISO 8601, a document is JSON."""
    plain = value if isinstance(value, float) else as_json(value)
    if isinstance(plain, list | dict):
        import json

        return json.dumps(plain, ensure_ascii=False)
    return plain.isoformat() if isinstance(plain, datetime) else plain
