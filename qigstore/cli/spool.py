"""`qigstore spool`: rows that are recorded and not stored yet, and the way to store them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.context import opened_store
from qigstore.cli.output import Json, fields_of, print_json, print_table
from qigstore.cli.progress import Progress

if TYPE_CHECKING:
    from qigstore.recording import DrainReport

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Spools: rows that are recorded and not yet in the database."
)


@app.command()
def status(as_json: Json = False) -> None:
    """Show what waits in this data folder: rows, owner, damage; asks no database.

    `rows` are those in the spool's files: some of them may be stored already. A spool that is held
    belongs to a living process, which ships it itself.
    """
    from qigstore.leftovers import waiting_events
    from qigstore.recording.spool.survey import quarantined, survey
    from qigstore.settings import load_settings

    settings = load_settings()
    spools, refused = survey(settings.spool_root), quarantined(settings.spool_root)
    events = waiting_events(settings)
    if as_json:
        print_json({"root": settings.spool_root, "spools": spools, "quarantine": refused,
                    "events": events})  # fmt: skip
        return
    print_table(
        ("session", "rank", "rows", "lost", "bytes", "owner", "held", "goes to", "spool"),
        [
            (s.session, s.rank, s.rows, s.gap_rows, s.bytes, s.owner, s.held,
             s.waits_for or s.place, s.spool)
            for s in spools
        ],
        empty=f"no spools in {settings.spool_root}",
        whole="session",
    )  # fmt: skip
    for spool in spools:
        if spool.error is not None:
            typer.echo(spool.error)
    for file in refused:
        typer.echo(f"{file.rows} rows that a database refused are in {file.path}")
    if events:
        typer.echo(f"{events} events wait in {settings.event_root}")


@app.command()
def drain(
    session: Annotated[str | None, typer.Option("--session", help="Only this session's.")] = None,
    anywhere: Annotated[
        bool,
        typer.Option(
            "--anywhere",
            help="Also what waits for a database at another address, such as one that has moved; "
            "never what another database has heard of already.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Store what dead processes left; each row once, however often this is interrupted.

    Status 1 where something stays that could not be shipped, with the reason. A spool that a
    living process holds, or that waits for another database, is left and is no error.
    """
    from qigstore.database.engine import address_of
    from qigstore.leftovers import settle_leftovers
    from qigstore.recording import Draining
    from qigstore.settings import load_settings

    settings = load_settings()
    done: dict[Path, int] = {}
    with opened_store(settings) as store, Progress("shipping") as progress:

        def count(spool: Path, rows: int) -> None:
            done[spool] = rows
            progress(sum(done.values()))

        address = None if anywhere else address_of(settings)
        how = Draining(only=session, address=address, progress=count)
        reports = settle_leftovers(store, settings, how)
    failed = [report for report in reports if report.error is not None]
    if as_json:
        print_json({
            "rows": sum(report.rows for report in reports),
            "spools": [{**fields_of(report), "settled": report.settled} for report in reports],
        })  # fmt: skip
    else:
        _print(reports)
    if failed:
        raise typer.Exit(1)


def _print(reports: tuple[DrainReport, ...]) -> None:
    print_table(
        ("session", "rows", "lost", "refused", "what became of it", "spool"),
        [(r.session, r.rows, r.gap_rows, r.refused_rows, _words(r), r.spool) for r in reports],
        empty="nothing was left to store",
        whole="session",
    )


def _words(report: DrainReport) -> Any:
    if report.busy:
        return f"left: {report.owner} holds it"
    if report.elsewhere is not None:
        return f"left: it waits for {report.elsewhere}"
    return "stored" if report.error is None else f"left: {report.error}"
