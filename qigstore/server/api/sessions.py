"""Sessions: all of them, one in numbers, their newest rows."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from qigstore import query
from qigstore.errors import NotFound
from qigstore.server.api import route
from qigstore.server.api.route import (
    AttemptNumber,
    Rank,
    Reads,
    ReadsAll,
    Start,
    Stop,
    answers,
    encoded,
)
from qigstore.server.api.shapes import (
    LatestShape,
    RegimeSharesShape,
    SessionShape,
    StatisticsShape,
)

__all__ = ["routes"]

routes = route.router("sessions")

_Limit = Annotated[int, Query(description="At most so many.", examples=[20], ge=1, le=1000)]
_Offset = Annotated[
    int, Query(description="Leave out so many first.", examples=[0], ge=0, le=10_000_000)
]
_Sessions = Annotated[
    list[str] | None,
    Query(
        description="Only these, in this order; left out: the newest sessions.",
        examples=[["ocean-7", "ocean-8"]],
        max_length=1000,
    ),
]


@routes.get("/sessions", responses=answers(), response_model=list[SessionShape])
def list_sessions(at: ReadsAll, limit: _Limit = 50, offset: _Offset = 0) -> Response:
    """Sessions, the newest first; only those that the token is for."""
    return encoded(at.store.sessions.list(limit, offset, like=at.who.sessions))


@routes.get("/latest", responses=answers("not-found"), response_model=list[LatestShape])
def latest_rows(at: ReadsAll, session: _Sessions = None, limit: _Limit = 100) -> Response:
    """The newest row of each session that has one."""
    for name in session or ():
        at.who.needs_session(name)
    if session is None and at.who.sessions is not None:
        session = [one.name for one in at.store.sessions.list(limit, like=at.who.sessions)]
    return encoded(query.latest(at.store, session, limit=limit).rows)


@routes.get("/sessions/{session}", responses=answers("not-found"), response_model=StatisticsShape)
def show_session(at: Reads) -> Response:
    """One session in numbers: its attempts, rows, events and best checkpoint."""
    return encoded(query.statistics(at.store, at.name))


@routes.get(
    "/sessions/{session}/regimes",
    responses=answers("not-found"),
    response_model=RegimeSharesShape,
)
def regimes(
    at: Reads,
    *,
    attempt: AttemptNumber = None,
    rank: Rank = 0,
    start: Start = 0,
    stop: Stop = None,
) -> Response:
    """How often each regime was; null: in no known one. Reads every row of the span."""
    found = query.regime_shares(
        at.store, at.name, attempt=attempt, rank=rank, start=start, stop=stop
    )
    return encoded(found)


@routes.get(
    "/sessions/{session}/latest", responses=answers("not-found"), response_model=LatestShape
)
def latest_row(at: Reads) -> Response:
    """The newest row: the greatest step of the newest attempt that stored any."""
    found = query.latest(at.store, [at.name]).rows
    if not found:
        raise NotFound("row of session", at.name)
    return encoded(found[0])
