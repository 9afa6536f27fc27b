"""`qigstore events`: what rules, signals and people raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qigstore.cli.context import MaybeSessionName, opened_store
from qigstore.cli.output import Json, print_json, print_pairs, print_table, shown

if TYPE_CHECKING:
    from qigstore.records import Event

__all__ = ["app"]

EventId = Annotated[str, typer.Argument(metavar="ID", help="Id, or the start of one.")]

app = typer.Typer(no_args_is_help=True, help="Events: what rules, signals and people raised.")


@app.command("list")
def list_events(
    session: MaybeSessionName = None,
    severity: Annotated[
        Literal["info", "warning", "critical"] | None, typer.Option(help="Only these.")
    ] = None,
    still_open: Annotated[
        bool, typer.Option("--open", help="Neither acknowledged nor resolved.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List events, the newest first; of one session, or of all."""
    with opened_store() as store:
        session_id = store.sessions.get(session).id if session is not None else None
        found = store.events.list(session_id, severity=severity, still_open=still_open, limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "raised (UTC)", "severity", "rule", "attempt", "step", "state", "message"),
        [
            (e.id, e.raised_at, e.severity, e.rule, e.attempt, e.step, _state(e), e.message)
            for e in found
        ],
        empty="no events",
    )


@app.command()
def show(event: EventId, as_json: Json = False) -> None:
    """Show one event: the row that raised it, what its rule knew, the action and its result."""
    with opened_store() as store:
        found = store.events.get(event)
        session = store.sessions.by_id(found.session_id)
    if as_json:
        print_json({"session": session.name, "event": found})
    else:
        print_pairs(_pairs(session.name, found))


@app.command()
def ack(
    events: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or starts of them.")],
    as_json: Json = False,
) -> None:
    """Acknowledge events: somebody has seen them. The first time counts."""
    with opened_store() as store:
        seen = [store.events.acknowledge(event) for event in events]
    if as_json:
        print_json(seen)
        return
    for event in seen:
        typer.echo(f"{event.id}  {event.rule}: acknowledged {shown(event.acknowledged_at)} UTC")


def _state(event: Event) -> str:
    if event.resolved_at is not None:
        return "resolved"
    return "open" if event.acknowledged_at is None else "acknowledged"


def _pairs(session: str, event: Event) -> dict[str, Any]:
    known = dict(event.detail)
    return {
        "id": event.id,
        "session": session,
        "attempt": event.attempt,
        "rank": event.rank or None,
        "step": event.step,
        "rule": event.rule,
        "severity": event.severity,
        "message": event.message,
        "state": _state(event),
        "metric": event.metric,
        "value": event.value,
        "threshold": event.threshold,
        "action": event.action,
        "result": known.pop("result", None),
        "checkpoint": event.checkpoint_id,
        "raised (UTC)": event.raised_at,
        "acknowledged (UTC)": event.acknowledged_at,
        "resolved (UTC)": event.resolved_at,
        "row": known.pop("row", None),
        "rule's state": known.pop("rule", None),
        "detail": known or None,
    }
