"""Stops: asking a running process to stop, from afar."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from qigstore.server.api import route
from qigstore.server.api.route import Aborts, Truth, answers, encoded
from qigstore.server.api.shapes import EventShape

__all__ = ["routes"]

routes = route.router("stops")


class StopRequest(BaseModel):
    """Why a run should stop, and whether it saves first."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "too hot"}]}
    )
    reason: str | None = Field(
        None, description="Shown wherever the session's end is.", max_length=2000
    )
    checkpoint: Truth = Field(True, description="Save the state before leaving.")


@routes.post(
    "/sessions/{session}/abort",
    status_code=202,
    responses=answers("not-found", "not-running", cached=False),
    response_model=EventShape,
)
def abort(at: Aborts, wanted: StopRequest) -> Response:
    """Ask the running process of a session to stop at its next safe point.

    It hears of it within a second. Asked twice, it is asked once.
    """
    info = at.session()
    at.note("abort", reason=wanted.reason, checkpoint=wanted.checkpoint)
    request = at.store.stops.request(
        info.id,
        reason=wanted.reason,
        by=f"token {at.who.name}",
        checkpoint=wanted.checkpoint,
    )
    return encoded(request, 202)
