"""`qigstore demo`: the main job on real data, in about half a minute."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from qigstore.cli.output import Json, print_json

__all__ = ["demo"]


def demo(
    context: typer.Context,
    steps: Annotated[
        int, typer.Option(min=600, max=100_000, help="Training steps of each run.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data's split and order.")] = 3,
    torch: Annotated[bool, typer.Option("--torch", help="Train with PyTorch.")] = False,
    as_json: Json = False,
) -> None:
    """Train on real data; get killed; meet a fault; recover; and check every claim by SQL.

    Everything is kept in the store under a fresh session name, to look at afterwards.
    Status 1 where a claim does not hold.
    """
    from qigstore.demo import Plan, run_demo

    given = context.parent.params if context.parent is not None else {}
    command = shlex.join(["qigstore", *(["--home", str(given["home"])] if given["home"] else [])])
    plan = Plan.of(steps=steps, seed=seed, torch=torch)
    report = run_demo(plan, quiet=as_json, command=command)
    if as_json:
        print_json(report)
    if not report["ok"]:
        raise typer.Exit(1)
