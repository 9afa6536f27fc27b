"""`qigstore recover`: what recovery would choose for a session, from what, and why."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, print_json
from qigstore.errors import ConfigurationError

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
    as_json: Json = False,
) -> None:
    """Show which checkpoint a session would come back from, from which candidates, and why.

    The recovery itself happens in the training process, by `run.recover()`: only it can load the
    state. Status 6 where no checkpoint is fit to load.
    """
    from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention
    from qigstore.recovery import explain
    from qigstore.recovery import recover as choose
    from qigstore.settings import load_settings

    if not dry_run:
        raise ConfigurationError(
            "recovery happens in the training process, by run.recover(): start your training "
            f"again. To see what it would choose: qigstore recover {session} --dry-run"
        )
    settings = load_settings()
    with opened_store(settings) as store:
        found = store.sessions.get(session)
        manager = CheckpointManager(
            CheckpointStore(settings.checkpoint_root),
            store.checkpoints,
            session_id=found.id,
            session_name=found.name,
            attempt=found.attempts,
            retention=Retention(settle_steps=settings.settle_steps),
            phi_floor=settings.phi_floor,
        )
        try:
            _, decision = choose(manager, store, policy=policy, has_default=False, dry_run=True)
        finally:
            manager.close()
    if as_json:
        print_json(decision)
    else:
        sys.stdout.write(explain(decision))
