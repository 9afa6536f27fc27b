"""Basins: the path that a session's took, and the recorded ones that are nearest to one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from qigstore import query
from qigstore.query import NEIGHBOURS_MAX
from qigstore.recording.geometry import BASIN_DIMENSION_MAX
from qigstore.server.api import route
from qigstore.server.api.route import (
    AttemptNumber,
    Points,
    Rank,
    Reads,
    ReadsAll,
    Start,
    Stop,
    Whole,
    answers,
    encoded,
)
from qigstore.server.api.shapes import NeighboursShape, TrajectoryShape
from qigstore.server.problems import Problem

__all__ = ["routes"]

routes = route.router("basins")

_Dimensions = Annotated[
    int, Query(description="Axes of the projected path.", examples=[2], ge=2, le=3)
]


class Wanted(BaseModel):
    """What the neighbours of are asked for."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"basin": [0.5, 0.25, 0.25], "k": 5}]}
    )
    basin: list[Annotated[float, Field(strict=True)]] = Field(
        description="A distribution: entries of at least 0 whose sum is 1.",
        min_length=2,
        max_length=BASIN_DIMENSION_MAX,
    )
    k: Whole = Field(10, description="How many neighbours.", ge=1, le=NEIGHBOURS_MAX)
    session: str | None = Field(
        None, description="Search only this one; left out: every session.", max_length=200
    )


@routes.get(
    "/sessions/{session}/trajectory",
    responses=answers("not-found"),
    response_model=TrajectoryShape,
)
def trajectory(
    at: Reads,
    *,
    attempt: AttemptNumber = None,
    rank: Rank = 0,
    start: Start = 0,
    stop: Stop = None,
    points: Points = 1000,
    dimensions: _Dimensions = 2,
) -> Response:
    """Φ, κ, regime and the basin's path, projected to a few axes, at up to `points` steps."""
    found = query.trajectory(
        at.store, at.name, attempt=attempt, rank=rank, start=start, stop=stop, points=points,
        dimensions=dimensions,
    )  # fmt: skip
    return encoded(found)


@routes.post(
    "/nearest", responses=answers("not-found", cached=False), response_model=NeighboursShape
)
def nearest(at: ReadsAll, wanted: Wanted) -> Response:
    """The recorded basins nearest to a distribution, by Fisher-Rao distance.

    A token that is for some sessions only names one of them.
    """
    if wanted.session is not None:
        at.who.needs_session(wanted.session)
    elif at.who.sessions is not None:
        words = f"name a session: the token is for sessions named {at.who.sessions}"
        raise Problem("forbidden", words)
    return encoded(query.nearest(at.store, wanted.basin, k=wanted.k, session=wanted.session))
