"""SQL that a person typed: statements as they are, results as they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from qigstore.errors import SqlError

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["ResultSet", "run_sql"]


@dataclass(frozen=True, slots=True)
class ResultSet:
    """What one statement gave: columns and rows, or only a status such as "UPDATE 3"."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    status: str


def run_sql(
    database: Database,
    script: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    write: bool = False,
) -> list[ResultSet]:
    """Run one statement, or without parameters several, in one transaction; read-only by default.

    Raises:
        SqlError: the server refused a statement, in its words.
        StoreUnavailable: the connection was lost.
    """
    with database.raw() as connection, connection.cursor() as cursor:
        if not write:
            cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute("SET LOCAL search_path = qigstore, public")
        try:
            # Not a literal: the statement is the user's own, which is what this is for.
            cursor.execute(script.encode(), parameters)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            raise _refused(error) from error
        return _results(cursor)


def _refused(error: psycopg.Error) -> SqlError:
    words = error.diag.message_primary or " ".join(str(error).split())
    more = [error.diag.message_detail, error.diag.message_hint]
    return SqlError(". ".join([words.rstrip("."), *(m.rstrip(".") for m in more if m)]),
                    error.sqlstate)  # fmt: skip


def _results(cursor: psycopg.Cursor[Any]) -> list[ResultSet]:
    results = []
    while True:
        columns = tuple(column.name for column in cursor.description or ())
        rows = cursor.fetchall() if cursor.description is not None else []
        results.append(ResultSet(columns, rows, cursor.statusmessage or ""))
        if not cursor.nextset():
            return results
