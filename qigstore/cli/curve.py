"""`qigstore curve`: a metric over steps, as a line of bars and a table."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, print_json, print_table
from qigstore.cli.sparkline import sparkline

__all__ = ["curve"]

_COLUMNS = ("start", "stop", "low", "mean", "high", "finite", "nans", "infs")
_POINTS = 20


def curve(
    session: SessionName,
    metric: Annotated[str, typer.Argument(metavar="METRIC", help="Such as loss or phi.")],
    *,
    points: Annotated[int, typer.Option(help="At most so many buckets.")] = _POINTS,
    start: Annotated[int, typer.Option(help="From this step on.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Up to this step, without it.")] = None,
    attempt: Annotated[
        int | None, typer.Option(help="One attempt; else the canonical timeline.")
    ] = None,
    rank: Annotated[int, typer.Option(help="One rank.")] = 0,
    all_ranks: Annotated[
        bool, typer.Option("--all-ranks", help="All ranks together, instead of one.")
    ] = False,
    by: Annotated[
        Literal["step", "wall", "relative"],
        typer.Option(help="What x is: the step, or seconds since 1970 or the first row."),
    ] = "step",
    as_json: Json = False,
) -> None:
    """Show a metric: least, mean and greatest value of each bucket, NaN and ±inf counted.

    The canonical timeline has, for each step, the newest attempt that reached it.
    """
    from qigstore import query

    with opened_store() as store:
        found = query.curve(
            store,
            session,
            metric,
            attempt=attempt,
            rank=None if all_ranks else rank,
            start=start,
            stop=stop,
            points=points,
            by=by,
        )
    if as_json:
        print_json(found.to_dict())
        return
    if sys.stdout.isatty() and len(found):
        sys.stdout.write(f"{sparkline(found.mean.tolist())}\n")
    names = (*_COLUMNS[:2], *(() if by == "step" else ("x",)), *_COLUMNS[2:])
    columns = found.to_dict()
    table = list(zip(*(columns[name] for name in names), strict=True))
    print_table(names, table, empty=f"nothing of {metric!r} is stored there", whole="")
