"""`qigstore sql`: SQL on the store, in psql where there is one, else at a prompt of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qigstore.cli.output import Json, print_json, print_table
from qigstore.errors import ConfigurationError

if TYPE_CHECKING:
    from qigstore.database.engine import Database
    from qigstore.repository.console import ResultSet
    from qigstore.settings import Settings

__all__ = ["sql"]

_TABLES = """SELECT c.relname AS name, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END AS kind
FROM pg_class c WHERE c.relnamespace = 'qigstore'::regnamespace AND c.relkind IN ('r', 'v', 'p')
ORDER BY kind DESC, name"""
_HELP = """\
Statements end with a semicolon, on one line or several.
  \\d   tables and views      \\q or Ctrl-D   leave      Ctrl-C   drop what is typed
"""


def sql(
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="Run these statements, then leave.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Allow statements that change something.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Open SQL on the store; read-only, unless --write is given.

    With -c, or with statements on standard input, they run in one transaction, each result is
    printed, and the command ends. On a terminal it opens psql (from the server's own programs, or
    the PATH), or else a simple prompt. `qigstore` is on the search path: `select * from
    session_stats` just works. Read-only protects from a slip of the hand, not from intent: \
give people you do not trust a database role of their own.
    """
    from qigstore.database.engine import open_database
    from qigstore.settings import load_settings

    settings = load_settings()
    script = command
    if script is None and not sys.stdin.isatty():
        script = sys.stdin.read()
    if script is None and as_json:
        raise ConfigurationError("--json needs -c, or statements on standard input")
    # An outdated schema elsewhere is no reason to refuse SQL; the embedded one is ours to make.
    database = open_database(settings, check=settings.dsn is None)
    try:
        if script is not None and not script.strip():
            return
        if script is not None:
            _run(database, script, write=write, as_json=as_json)
            return
        psql = _find_psql(settings)
        if psql is not None:
            raise typer.Exit(_open_psql(psql, database, settings, write=write))
        _prompt(database, write=write)
    finally:
        database.dispose()


def _run(database: Database, script: str, *, write: bool, as_json: bool) -> None:
    from qigstore.repository.console import run_sql

    results = run_sql(database, script, write=write)
    if as_json:
        print_json([
            {"columns": r.columns, "rows": r.rows, "status": r.status} for r in results
        ])  # fmt: skip
        return
    for number, result in enumerate(results):
        if number:
            sys.stdout.write("\n")
        _show(result)


def _show(result: ResultSet) -> None:
    if not result.columns:
        sys.stdout.write(f"{result.status}\n")
        return
    print_table(result.columns, result.rows, whole="")
    rows = len(result.rows)
    if sys.stdout.isatty():
        sys.stdout.write(f"({rows} row{'' if rows == 1 else 's'})\n")


def _find_psql(settings: Settings) -> Path | None:
    """psql of the embedded server's own folder, else of the PATH."""
    from qigstore.database.embedded_binaries import find_binaries
    from qigstore.errors import EmbeddedServerError

    if settings.dsn is None:
        with contextlib.suppress(EmbeddedServerError):
            own = find_binaries(settings.server_root, settings.pg_bin).folder / "psql"
            if os.access(own, os.X_OK):
                return own
    found = shutil.which("psql")
    return Path(found) if found else None


def _open_psql(psql: Path, database: Database, settings: Settings, *, write: bool) -> int:
    with database.raw() as connection:
        # The password travels in the environment: arguments are there for all to see.
        place, password = connection.info.dsn, connection.info.password
        options = connection.info.get_parameters().get("options", "")
    if settings.prepare_threshold is not None:
        options += " -c search_path=qigstore,public -c statement_timeout=0"
        options += "" if write else " -c default_transaction_read_only=on"
        # Of two values for one keyword libpq takes the later.
        escaped = options.replace("\\", "\\\\").replace("'", "\\'")
        place += f" options='{escaped}'"
    else:
        sys.stderr.write("behind a pooler, psql starts with its own settings: not read-only\n")
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    # Ctrl-C belongs to psql: it cancels a query there and must not end us, who hold the server.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(
            [str(psql), "--no-password", "--dbname", place],
            env=environment,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        ).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _prompt(database: Database, *, write: bool) -> None:
    from qigstore.errors import StoreError
    from qigstore.repository.console import run_sql

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() editing and history
    sys.stdout.write(f"{database.address} ({'writing' if write else 'read-only'})\n{_HELP}")
    typed: list[str] = []
    while True:
        try:
            typed.append(input("       -> " if typed else "qigstore=> "))
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            typed.clear()
            sys.stdout.write("\n")
            continue
        text = "\n".join(typed).strip()
        if text in {"\\q", "exit", "quit"}:
            return
        if text and text != "\\d" and not text.endswith(";"):
            continue
        typed.clear()
        if not text:
            continue
        try:
            for result in run_sql(database, _TABLES if text == "\\d" else text, write=write):
                _show(result)
        except StoreError as error:
            sys.stderr.write(f"{error}\n")
