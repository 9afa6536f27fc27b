"""Checkpoints: known, verified, downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from starlette.responses import Response, StreamingResponse

from qigstore.checkpoints import CheckpointStore
from qigstore.checkpoints.archive import archive
from qigstore.checkpoints.base import BaseStore
from qigstore.errors import CheckpointCorrupt, CheckpointFormatError, NotFound
from qigstore.place import folders_only
from qigstore.records import Candidate, Checkpoint, CheckpointStatus
from qigstore.server.api import route
from qigstore.server.api.route import Access, Reads, ReadsCheckpoints, answers, encoded
from qigstore.server.api.shapes import CandidateShape, CheckpointShape, Verified, shaped
from qigstore.server.problems import Problem

__all__ = ["reading_slot", "routes", "shown_candidate", "shown_checkpoint"]

routes = route.router("checkpoints")

_Id = Annotated[
    UUID,
    Path(description="Id of the checkpoint.", examples=["0b9d5a52-2c3f-4f0a-8b7e-4a5d1c7e2f60"]),
]
_Status = Annotated[
    CheckpointStatus | None, Query(description="Only of this status.", examples=["committed"])
]
_Limit = Annotated[int, Query(description="At most so many.", examples=[100], ge=1, le=1000)]
_TAR = "application/x-tar"


@routes.get(
    "/sessions/{session}/checkpoints",
    responses=answers("not-found"),
    response_model=list[CheckpointShape],
)
def list_checkpoints(at: Reads, status: _Status = None, limit: _Limit = 100) -> Response:
    """Checkpoints of a session, the latest step first."""
    found = at.store.checkpoints.list(at.session().id, status=status, limit=limit)
    return encoded([shown_checkpoint(item) for item in found])


@routes.get(
    "/sessions/{session}/checkpoints/best",
    responses=answers("not-found"),
    response_model=CandidateShape,
)
def best_checkpoint(at: Reads) -> Response:
    """The healthy checkpoint that recovery tries first: of the highest Φ, or the newest where none
    was measured."""
    settings = at.wiring.config.settings
    found = at.store.checkpoints.candidates(
        at.session().id, settle_steps=settings.settle_steps, phi_floor=settings.phi_floor, limit=1
    )
    healthy = [item for item in found if item.healthy]
    if not healthy:
        raise NotFound("healthy checkpoint of session", at.name)
    return encoded(shown_candidate(healthy[0]))


@routes.get(
    "/sessions/{session}/checkpoints/{checkpoint}",
    responses=answers("not-found"),
    response_model=CheckpointShape,
)
def show_checkpoint(at: Reads, checkpoint: _Id) -> Response:
    """One checkpoint: its step, metrics, size, digest and status."""
    return encoded(shown_checkpoint(_checkpoint(at, checkpoint)))


@routes.post(
    "/sessions/{session}/checkpoints/{checkpoint}/verify",
    responses=answers("not-found", cached=False),
    response_model=Verified,
)
def verify(at: ReadsCheckpoints, checkpoint: _Id) -> Response:
    """Read every byte of a checkpoint and compare it with what was saved; nothing is moved."""
    found = _checkpoint(at, checkpoint)
    folders, told = _folders(at), {"id": found.id, "sound": True, "problem": None}
    path = folders.locate(at.name, found.id)
    with reading_slot(at):
        try:
            with folders.in_use(path):
                folders.verify(path)
        except (CheckpointCorrupt, CheckpointFormatError) as error:
            problem = error.brief if isinstance(error, CheckpointCorrupt) else error.reason
            return encoded({**told, "sound": False, "problem": problem})
        except NotFound:
            problem = "its folder is not where this server looks"
            return encoded({**told, "sound": False, "problem": problem})
    at.store.checkpoints.mark_verified(found.id)
    return encoded(told)


@routes.get(
    "/sessions/{session}/checkpoints/{checkpoint}/download",
    responses={
        **answers("not-found", "checkpoint-damaged", "checkpoint-elsewhere"),
        200: {
            "description": "A tar of the checkpoint's folder, `<id>/…`, with its length. "
            "`qigstore checkpoints restore <id>` takes the folder on any machine, and verifies it.",
            "content": {_TAR: {"schema": {"type": "string", "format": "binary"}}},
        },
    },
    response_class=StreamingResponse,
)
def download(at: ReadsCheckpoints, checkpoint: _Id) -> Response:
    """A checkpoint's files as they are, in one tar; its ETag is the manifest's digest.

    They are read while they are sent, and verified by whoever restores them.
    """
    found, folders = _checkpoint(at, checkpoint), _folders(at)
    if not isinstance(folders, CheckpointStore):
        where = "its files are in an object store, which gives them itself"
        raise Problem("checkpoint-elsewhere", where)
    at.note("checkpoint.download", checkpoint=found.id)
    whole = archive(folders, folders.locate(at.name, found.id))
    headers = {
        "Content-Length": str(whole.size),
        "Content-Disposition": f'attachment; filename="{found.id}.tar"',
        "ETag": f'"{whole.digest}"',
    }
    return StreamingResponse(whole.pieces, headers=headers, media_type=_TAR)


def shown_checkpoint(found: Checkpoint) -> dict[str, object]:
    """A checkpoint without its place on the server's disk."""
    return shaped(CheckpointShape, found)


def shown_candidate(found: Candidate) -> dict[str, object]:
    """A candidate, likewise."""
    return shaped(CandidateShape, found, checkpoint=shown_checkpoint(found.checkpoint))


@contextmanager
def reading_slot(at: Access) -> Iterator[None]:
    """One of the few places for those who read whole checkpoints.

    Raises:
        Problem: too-many-requests: all are taken.
    """
    readers = at.wiring.readers
    if not readers.acquire(blocking=False):
        raise Problem("too-many-requests", "other checkpoints are being read; try again")
    try:
        yield
    finally:
        readers.release()


def _folders(at: Access) -> BaseStore:
    return folders_only(at.wiring.config.settings).folders


def _checkpoint(at: Access, checkpoint_id: UUID) -> Checkpoint:
    """A checkpoint of the path's session; one of another session is not found."""
    info = at.session()
    try:
        found: Checkpoint = at.store.checkpoints.get(checkpoint_id)
    except NotFound as error:
        raise NotFound("checkpoint", checkpoint_id) from error
    if found.session_id != info.id:
        raise NotFound("checkpoint", checkpoint_id)
    return found
