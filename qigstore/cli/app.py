"""Puts the command groups together, with the options that every command knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from qigstore.cli import (
    EXIT_CODES,
    abort,
    checkpoints,
    curve,
    db,
    demo,
    events,
    exchange,
    query,
    recover,
    serve,
    sessions,
    spool,
    sql,
    token,
    top,
    version,
)

__all__ = ["app"]

_EPILOG = "\n".join(
    [
        "Exit statuses:",
        *(f"{code:>4}  {meaning}" for code, meaning in EXIT_CODES.items()),
        "",
        "With --json: one document on stdout, times in ISO 8601 UTC, numbers that JSON has no word "
        'for as the strings "NaN", "Infinity" and "-Infinity".',
        "QIGSTORE_DEBUG=1 shows the traceback of an error.",
    ]
)

app = typer.Typer(
    name="qigstore",
    no_args_is_help=True,
    help="The flight recorder and the autopilot of a training run.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def global_options(
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            metavar="DSN",
            help="PostgreSQL to use, as a URL or libpq keywords (as QIGSTORE_DSN, which keeps a "
            "password out of the process list). Unset: the embedded server.",
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", metavar="FOLDER", help="Data folder to use (as QIGSTORE_HOME)."),
    ] = None,
) -> None:
    """The flight recorder and the autopilot of a training run."""
    # Through the environment, so that processes started by a command see the same settings.
    if dsn is not None:
        os.environ["QIGSTORE_DSN"] = dsn
    if home is not None:
        os.environ["QIGSTORE_HOME"] = str(home.absolute())


app.command("demo")(demo.demo)
app.add_typer(sessions.app, name="sessions")
app.command("show")(sessions.show)
app.command("top")(top.top)
app.command("curve")(curve.curve)
app.command("query")(query.query)
app.add_typer(checkpoints.app, name="checkpoints")
app.command("abort")(abort.abort)
app.command("recover")(recover.recover)
app.add_typer(events.app, name="events")
app.command("export")(exchange.export)
app.command("import")(exchange.import_file)
app.add_typer(spool.app, name="spool")
app.command("serve")(serve.serve)
app.add_typer(token.app, name="token")
app.command("sql")(sql.sql)
app.add_typer(db.app, name="db")
app.command("version")(version.version)
