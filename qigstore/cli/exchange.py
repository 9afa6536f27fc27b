"""`qigstore export` and `qigstore import`: a session as a file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, print_json
from qigstore.cli.progress import Progress

__all__ = ["export", "import_file"]

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Its suffix says how: .jsonl, .parquet or .csv.")
]


def export(
    session: SessionName,
    file: _File,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    spooled: Annotated[
        bool,
        typer.Option(
            "--spooled", help="What waits in offline spools; asks no database (as in mode offline)."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a session into a file, exactly: .jsonl and .parquet hold all of it, .csv its rows.

    The checkpoints themselves are not in it (copy their folder). Status 2 where the file is there
    already, 5 where there is no such session.
    """
    from qigstore.exchange import export_session, export_spools
    from qigstore.settings import load_settings

    settings = load_settings()
    with Progress("export") as progress:
        if spooled or settings.mode == "offline":
            report = export_spools(settings, session, file, force=force, progress=progress)
        else:
            with opened_store(settings) as store:
                report = export_session(store, session, file, force=force, progress=progress)
    if as_json:
        print_json(report)
    else:
        typer.echo(
            f"{report.path}: {report.rows:,} rows of {report.attempts} attempts of session "
            f"{report.session!r}, {report.bytes:,} bytes"
        )


def import_file(
    file: _File,
    session: Annotated[
        str | None, typer.Option("--session", metavar="NAME", help="Another name for the session.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store what an export wrote; again, or after an interruption, nothing is stored twice.

    Status 2 where the file is no whole export, or a session of that name is another one.
    """
    from qigstore.exchange import import_session

    with opened_store() as store, Progress("import") as progress:
        report = import_session(store, file, session=session, progress=progress)
    if as_json:
        print_json(report)
        return
    if report.rows or report.records:
        words = f"{report.rows:,} rows stored"
        words += f", {report.known_rows:,} were there already" if report.known_rows else ""
    else:
        words = "everything in it is there already; nothing was stored"
    if report.left_out:
        words += f"; {report.left_out} checkpoints stay with the session's first name"
    typer.echo(f"session {report.session!r}: {words}")
