"""Curves: a metric over steps, of one session or of several."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from qigstore import query
from qigstore.query import COMPARED_MAX, By
from qigstore.server.api import route
from qigstore.server.api.route import (
    AttemptNumber,
    Metric,
    Points,
    Rank,
    Reads,
    ReadsAll,
    Start,
    Stop,
    answers,
    encoded,
)
from qigstore.server.api.shapes import ComparisonShape, CurveShape

__all__ = ["routes"]

routes = route.router("curves")

_Merged = Annotated[
    bool, Query(description="All ranks together, whatever `rank` says.", examples=[False])
]
_By = Annotated[
    By,
    Query(
        description="The x axis: the step, seconds since 1970, or seconds since the first row.",
        examples=["step"],
    ),
]
_Abandoned = Annotated[
    bool,
    Query(
        description="Also steps that a later attempt resumed before and has not reached.",
        examples=[True],
    ),
]
_Compared = Annotated[
    list[str],
    Query(
        description="Names of the sessions, each once.",
        examples=[["ocean-7", "ocean-8"]],
        min_length=1,
        max_length=COMPARED_MAX,
    ),
]


@routes.get("/sessions/{session}/curve", responses=answers("not-found"), response_model=CurveShape)
def curve(
    at: Reads,
    *,
    metric: Metric,
    attempt: AttemptNumber = None,
    rank: Rank = 0,
    merged: _Merged = False,
    start: Start = 0,
    stop: Stop = None,
    points: Points = 1000,
    by: _By = "step",
    abandoned: _Abandoned = True,
) -> Response:
    """A metric over steps, as at most `points` buckets with its least, greatest and mean value.

    The cost does not grow with the number of steps, and no spike and no NaN is lost.
    """
    found = query.curve(
        at.store, at.name, metric, attempt=attempt, rank=None if merged else rank, start=start,
        stop=stop, points=points, by=by, abandoned=abandoned,
    )  # fmt: skip
    return encoded(found)


@routes.get("/compare", responses=answers("not-found"), response_model=ComparisonShape)
def compare(
    at: ReadsAll,
    *,
    session: _Compared,
    metric: Metric,
    rank: Rank = 0,
    merged: _Merged = False,
    points: Points = 1000,
    by: _By = "step",
) -> Response:
    """The same metric of several sessions, each on its canonical timeline."""
    for name in session:
        at.who.needs_session(name)
    rank_or_all = None if merged else rank
    found = query.compare(at.store, session, metric, by=by, rank=rank_or_all, points=points)
    return encoded(found)
