"""`qigstore recover`: what recovery would choose for a session, from what, and why."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from qigstore.cli.context import SessionName
from qigstore.cli.output import Json, print_json
from qigstore.cli.places import opened_place

__all__ = ["recover"]


def recover(
    session: SessionName,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the choice; changes nothing.")
    ] = False,
    policy: Annotated[
        Literal["best", "newest", "best_recent"],
        typer.Option(help="Which healthy checkpoint to take."),
    ] = "best",
    recent: Annotated[
        int, typer.Option(min=1, help="Among how many of the newest best_recent chooses.")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Choose the checkpoint that a session comes back from; show every candidate, and why.

    Without --dry-run what is corrupt is put aside, folders without a row get one, and the choice is
    noted as verified: the next run starts from it without a detour. The state itself is loaded by
    the training process, by `run.recover()`; that opens the next attempt and stores the decision.
    Without the database the folders and the event log decide. Status 6 where nothing is fit.
    """
    from qigstore.recovery import explain
    from qigstore.recovery import recover as choose

    with opened_place() as place:
        manager = place.manager(session)
        try:
            _, decision = choose(
                manager, place.store, policy=policy, recent=recent, dry_run=dry_run, load=False
            )
        finally:
            manager.close()
    if as_json:
        print_json(decision)
        return
    sys.stdout.write(explain(decision))
    if not dry_run:
        sys.stdout.write("  start your training again: run.recover() takes it from here\n")
