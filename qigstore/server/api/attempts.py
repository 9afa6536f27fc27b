"""Attempts of training nodes without a way to the database: opened, kept alive, closed."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from qigstore.attempt import Newcomer, claim_from_afar
from qigstore.errors import NotFound
from qigstore.records import AttemptInfo
from qigstore.repository import WriterState
from qigstore.server.api import route
from qigstore.server.api.route import Access, Reads, Truth, Whole, Writes, answers, encoded
from qigstore.server.api.shapes import Attempt, Beat, Claimed, Writer, shaped

__all__ = ["routes"]

routes = route.router("attempts")

_ATTEMPT_ID = "5f0c2c4e-6c0a-4f0e-9a53-0c3d5b2f9b11"
_WRITER_ID = "0b9d5a52-2c3f-4f0a-8b7e-4a5d1c7e2f60"
_Id = Annotated[UUID, Path(description="Id of the attempt.", examples=[_ATTEMPT_ID])]
_WriterId = Annotated[UUID, Path(description="Id of the writer.", examples=[_WRITER_ID])]


class Claim(BaseModel):
    """A process that wants to record; the ids are its own, so that it may ask again."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "attempt": _ATTEMPT_ID, "writer": _WRITER_ID, "rank": 0, "host": "node-3",
                    "pid": 4121, "config": {"lr": 0.0003}, "takeover": False,
                }
            ]
        },
    )  # fmt: skip
    attempt: UUID = Field(description="Made by the run, the same for each of its ranks.")
    writer: UUID = Field(description="Made by this rank, for it alone.")
    rank: Whole = Field(0, ge=0, le=2**31 - 1)
    host: str = Field(description="Where it runs.", max_length=255)
    pid: Whole = Field(0, ge=0, le=2**63 - 1)
    config: dict[str, Any] = Field({}, description="Kept with the session's first attempt.")
    takeover: Truth = Field(
        False, description="Shut out a living process; needs the scope `abort` too."
    )


class End(BaseModel):
    """How an attempt ended."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"status": "completed"}]}
    )
    status: Literal["completed", "aborted", "failed"]
    reason: str | None = Field(None, max_length=2000)
    exit_status: Whole | None = Field(None, ge=-(2**31) + 1, le=2**31 - 1)


@routes.get(
    "/sessions/{session}/attempts", responses=answers("not-found"), response_model=list[Attempt]
)
def list_attempts(at: Reads) -> Response:
    """Attempts of a session, by number."""
    found = at.store.sessions.attempts(at.session().id)
    return encoded([shaped(Attempt, item) for item in found])


@routes.post(
    "/sessions/{session}/attempts",
    status_code=201,
    responses=answers("session-busy", "not-running", "not-found", cached=False),
    response_model=Claimed,
)
def claim(at: Writes, wanted: Claim) -> Response:
    """Open the session's next attempt, and its writer; sent again, it answers the same.

    The session is made where there is none. Where another process records it, only a takeover
    opens it: the other can store nothing from then on. Send a heartbeat every few seconds, or the
    attempt is shown as lost.
    """
    if wanted.takeover:
        at.who.needs("abort")
    at.note("attempt.open", attempt=wanted.attempt, rank=wanted.rank, takeover=wanted.takeover)
    newcomer = Newcomer(wanted.attempt, wanted.writer, wanted.rank, wanted.host, wanted.pid)
    attempt, state = claim_from_afar(
        at.store, at.wiring.config.settings, at.name, wanted.config, newcomer,
        takeover=wanted.takeover,
    )  # fmt: skip
    told = {
        "session": at.name,
        "attempt": shaped(Attempt, attempt),
        "rank": wanted.rank,
        "writer": _shown(wanted.writer, state),
    }
    return encoded(told, 201)


@routes.post(
    "/sessions/{session}/attempts/{attempt}/heartbeat",
    responses=answers("not-found", cached=False),
    response_model=Beat,
)
def heartbeat(at: Writes, attempt: _Id) -> Response:
    """Say that an attempt lives; the answer says whether it was closed or asked to stop."""
    found = _attempt(at, attempt)
    alive = at.store.sessions.heartbeat(found.id)
    return encoded({"alive": alive, "stop": at.store.stops.heard(found.id)})


@routes.post(
    "/sessions/{session}/attempts/{attempt}/close",
    responses=answers("not-found", cached=False),
    response_model=Attempt,
)
def close(at: Writes, attempt: _Id, end: End) -> Response:
    """Note how an attempt ended; the first end counts, unless that was only "lost"."""
    found = _attempt(at, attempt)
    at.note("attempt.close", attempt=found.id, status=end.status)
    at.store.sessions.close_attempt(
        found.id, end.status, reason=end.reason, exit_status=end.exit_status
    )
    return encoded(shaped(Attempt, _attempt(at, attempt)))


@routes.get(
    "/sessions/{session}/attempts/{attempt}/writers/{writer}",
    responses=answers("not-found"),
    response_model=Writer,
)
def show_writer(at: Writes, attempt: _Id, writer: _WriterId) -> Response:
    """How far a writer came: after a refused batch, go on from `acked_seq` + 1."""
    found = _attempt(at, attempt)
    if writer not in at.store.writers.of_attempt(found.id):
        raise NotFound("writer", writer)
    return encoded(_shown(writer, at.store.writers.state(writer)))


def _attempt(at: Access, attempt_id: UUID) -> AttemptInfo:
    """An attempt of the path's session; one of another session is not found."""
    found: AttemptInfo | None = at.store.sessions.attempt(attempt_id)
    if found is None or found.session_id != at.session().id:
        raise NotFound("attempt", attempt_id)
    return found


def _shown(writer: UUID, state: WriterState) -> dict[str, object]:
    return shaped(Writer, state, id=writer)
