"""`qigstore abort`: ask a running session to stop, from anywhere that reaches the database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, fields_of, print_json
from qigstore.cli.token import who

if TYPE_CHECKING:
    from qigstore.records import AttemptInfo, Event
    from qigstore.repository import Store

__all__ = ["abort"]

_ASK_EVERY_S = 0.1


def abort(
    session: SessionName,
    reason: Annotated[str | None, typer.Option(help="Why; shown with the session's end.")] = None,
    no_checkpoint: Annotated[
        bool, typer.Option("--no-checkpoint", help="Leave without saving the state first.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for its end.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Ask the running process of a session to stop at its next safe point.

    It hears of it within a second and saves a checkpoint first. Asked twice, it is asked once.
    """
    from qigstore.settings import load_settings

    with opened_store(load_settings()) as store:
        info = store.sessions.get(session)
        store.audit.add("abort", who(), session=session, detail={"reason": reason})
        request = store.stops.request(
            info.id,
            reason=reason,
            by=who(),
            checkpoint=not no_checkpoint,
        )
        attempt = _await_end(store, request, wait)
    if as_json:
        print_json({"request": request, "attempt": fields_of(attempt)})
        return
    typer.echo(f"attempt {attempt.number} of {session} (process {attempt.pid} on {attempt.host})")
    typer.echo(f"  {request.message}")
    if attempt.status == "running":
        typer.echo(f"  it stops at its next safe point; see `qigstore sessions show {session}`")
    else:
        status = "" if attempt.exit_status is None else f", exit status {attempt.exit_status}"
        typer.echo(f"  {attempt.status}{status}")


def _await_end(store: Store, request: Event, wait_s: float) -> AttemptInfo:
    end = time.monotonic() + wait_s
    while True:
        attempts = store.sessions.attempts(request.session_id)
        mine = next(attempt for attempt in attempts if attempt.number == request.attempt)
        if mine.status != "running" or time.monotonic() >= end:
            return mine
        time.sleep(_ASK_EVERY_S)
