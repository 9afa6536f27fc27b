"""Telemetry rows, page after page."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from qigstore import query
from qigstore.server.api import route
from qigstore.server.api.route import AttemptNumber, Reads, Start, Stop, answers, encoded
from qigstore.server.api.shapes import RowPageShape

__all__ = ["routes"]

routes = route.router("rows")

_Rank = Annotated[
    int | None,
    Query(description="One rank; left out: all.", examples=[0], ge=0, le=2**31 - 1),
]
_After = Annotated[
    str | None,
    Query(
        description="`next` of the page before, the other parameters as they were.",
        examples=["MjowOjEyMDA"],
        min_length=1,
        max_length=200,
    ),
]
_Limit = Annotated[int, Query(description="Rows of a page.", examples=[100], ge=1, le=5000)]


@routes.get("/sessions/{session}/rows", responses=answers("not-found"), response_model=RowPageShape)
def rows(
    at: Reads,
    *,
    attempt: AttemptNumber = None,
    rank: _Rank = None,
    start: Start = 0,
    stop: Stop = None,
    after: _After = None,
    limit: _Limit = 1000,
) -> Response:
    """Rows by attempt, rank and step.

    Whatever is recorded between two pages, a row that was there at the first comes once.
    """
    found = query.rows(
        at.store, at.name, attempt=attempt, rank=rank, start=start, stop=stop, after=after,
        limit=limit,
    )  # fmt: skip
    return encoded(found)
