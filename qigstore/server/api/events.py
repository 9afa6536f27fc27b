"""Events: what was noticed in a session, and that somebody has seen it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from starlette.responses import Response

from qigstore.errors import NotFound
from qigstore.records import Event, Severity
from qigstore.server.api import route
from qigstore.server.api.route import Access, Reads, Writes, answers, encoded
from qigstore.server.api.shapes import EventShape

__all__ = ["routes"]

routes = route.router("events")

_Id = Annotated[
    UUID, Path(description="Id of the event.", examples=["5f0c2c4e-6c0a-4f0e-9a53-0c3d5b2f9b11"])
]
_Severity = Annotated[
    Severity | None, Query(description="Only of this severity.", examples=["critical"])
]
_Open = Annotated[
    bool, Query(description="Only those neither acknowledged nor resolved.", examples=[True])
]
_Limit = Annotated[int, Query(description="At most so many.", examples=[100], ge=1, le=1000)]


@routes.get(
    "/sessions/{session}/events", responses=answers("not-found"), response_model=list[EventShape]
)
def list_events(
    at: Reads, severity: _Severity = None, still_open: _Open = False, limit: _Limit = 100
) -> Response:
    """Events of a session, the newest first."""
    found = at.store.events.list(
        at.session().id, severity=severity, still_open=still_open, limit=limit
    )
    return encoded(found)


@routes.get(
    "/sessions/{session}/events/{event}",
    responses=answers("not-found"),
    response_model=EventShape,
)
def show_event(at: Reads, event: _Id) -> Response:
    """One event, with the row that raised it and what its rule knew."""
    return encoded(_event(at, event))


@routes.post(
    "/sessions/{session}/events/{event}/ack",
    responses=answers("not-found", cached=False),
    response_model=EventShape,
)
def acknowledge(at: Writes, event: _Id) -> Response:
    """Note that somebody has seen an event; the first time counts."""
    found = _event(at, event)
    at.note("event.ack", event=found.id)
    return encoded(at.store.events.acknowledge(found.id))


def _event(at: Access, event_id: UUID) -> Event:
    """An event of the path's session; one of another session is not found."""
    info = at.session()
    try:
        found: Event = at.store.events.get(event_id)
    except NotFound as error:
        raise NotFound("event", event_id) from error
    if found.session_id != info.id:
        raise NotFound("event", event_id)
    return found
