"""SQL that a person typed: statements as they are, results as they come."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import psycopg

from qigstore.errors import InvalidInput, SqlError

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Answer", "ResultSet", "ask", "run_sql"]


@dataclass(frozen=True, slots=True)
class ResultSet:
    """What one statement gave: columns and rows, or only a status such as "UPDATE 3"."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    status: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The first rows that a statement gave, and whether there were more."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool


def ask(database: Database, statement: str, *, limit: int, timeout_s: float) -> Answer:
    """Run one statement that reads, and take its first `limit` rows; no other row is kept.

    Raises:
        InvalidInput: there is no statement.
        SqlError: the server refused it, or it took longer than `timeout_s`.
        StoreUnavailable: the connection was lost.
    """
    if not statement.strip():
        raise InvalidInput("statement", statement, "one SQL statement")
    with database.raw() as connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(
            "SELECT set_config('search_path', 'qigstore, public', true), "
            "set_config('statement_timeout', %s, true)",
            (f"{timeout_s * 1000:.0f}ms",),
        )
        rows: list[tuple[Any, ...]] = []
        try:
            # Not a literal: the statement is the user's own, which is what this is for.
            with closing(cast("Generator[Any]", cursor.stream(statement.encode()))) as found:
                rows = list(islice(found, limit + 1))
                columns = tuple(column.name for column in cursor.description or ())
            columns = columns if rows else _columns_of(connection, statement)
        except psycopg.errors.QueryCanceled as error:
            limit_words = f"the statement took longer than {timeout_s:g} s"
            raise SqlError(f"{limit_words}; --timeout gives it more", error.sqlstate) from error
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            raise _refused(error) from error
    return Answer(columns, rows[:limit], len(rows) > limit)


def _columns_of(connection: psycopg.Connection[Any], statement: str) -> tuple[str, ...]:
    """What columns a statement gives, without running it: of no rows, a stream does not tell."""
    server = connection.pgconn
    server.prepare(b"", statement.encode())
    told = server.describe_prepared(b"")
    return tuple((told.fname(i) or b"").decode() for i in range(told.nfields))


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
