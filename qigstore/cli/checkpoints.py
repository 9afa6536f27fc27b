"""`qigstore checkpoints`: the states a session can come back to, and which of them are healthy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, fields_of, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from uuid import UUID

    from qigstore.records import Candidate
    from qigstore.repository import Store

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Checkpoints: saved states, ranked by Φ.")


@app.command("list")
def list_checkpoints(
    session: SessionName,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that retention has removed.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List a session's checkpoints: the healthy ones first, the best Φ first among them."""
    with opened_store() as store:
        found = store.sessions.get(session)
        health = _health(store, found.id)
        rows = store.checkpoints.list(found.id, limit=100_000)
    place = {id_: number for number, id_ in enumerate(health)}
    rows.sort(key=lambda checkpoint: place.get(checkpoint.id, len(place)))
    kept = [row for row in rows if everything or row.status != "deleted"][:limit]
    listed = [_with_health(checkpoint, health) for checkpoint in kept]
    if as_json:
        print_json(listed)
        return
    print_table(
        ("id", "step", "attempt", "phi", "kind", "status", "healthy"),
        [
            (c["id"], c["step"], c["attempt"], c["phi"], c["kind"], c["status"], c["healthy"])
            for c in listed
        ],
        empty=f"session {session!r} has no checkpoints",
    )


@app.command()
def show(
    checkpoint: Annotated[str, typer.Argument(metavar="ID", help="Id, or the start of one.")],
    as_json: Json = False,
) -> None:
    """Show one checkpoint: what it holds, where it lies, whether recovery would take it and why."""
    with opened_store() as store:
        found = store.checkpoints.get(checkpoint)
        data = _with_health(found, _health(store, found.session_id))
    if as_json:
        print_json(data)
    else:
        print_pairs({**data, "metadata": data["metadata"] or None})


def _health(store: Store, session_id: int) -> dict[UUID, Candidate]:
    """Each candidate of recovery by id, in the order in which recovery would try them."""
    from qigstore.settings import load_settings

    settings = load_settings()
    candidates = store.checkpoints.candidates(
        session_id, settle_steps=settings.settle_steps, phi_floor=settings.phi_floor
    )
    return {candidate.checkpoint.id: candidate for candidate in candidates}


def _with_health(checkpoint: Any, health: dict[UUID, Candidate]) -> dict[str, Any]:
    candidate = health.get(checkpoint.id)
    return {
        **fields_of(checkpoint),
        "healthy": candidate is not None and candidate.healthy,
        "reason": candidate.reason if candidate else f"it is {checkpoint.status}",
    }
