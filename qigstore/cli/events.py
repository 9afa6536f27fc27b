"""`qigstore events`: what rules, signals and people raised."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from qigstore.cli.context import MaybeSessionName, opened_store
from qigstore.cli.output import Json, print_json, print_table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Events: what rules, signals and people raised.")


@app.command("list")
def list_events(
    session: MaybeSessionName = None,
    severity: Annotated[
        Literal["info", "warning", "critical"] | None, typer.Option(help="Only these.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List events, the newest first; of one session, or of all."""
    with opened_store() as store:
        session_id = store.sessions.get(session).id if session is not None else None
        found = store.events.list(session_id, severity=severity, limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "raised (UTC)", "severity", "rule", "attempt", "step", "message"),
        [(e.id, e.raised_at, e.severity, e.rule, e.attempt, e.step, e.message) for e in found],
        empty="no events",
    )
