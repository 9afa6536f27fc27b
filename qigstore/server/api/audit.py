"""The audit: who asked for what."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from qigstore.server.api import route
from qigstore.server.api.route import Administers, answers, encoded
from qigstore.server.api.shapes import AuditEntry
from qigstore.server.problems import Problem

__all__ = ["routes"]

routes = route.router("audit")

_Before = Annotated[
    int | None,
    Query(
        description="Only lines older than the one of this id.", examples=[12], ge=1, le=2**63 - 1
    ),
]
_Limit = Annotated[int, Query(description="At most so many.", examples=[100], ge=1, le=1000)]


@routes.get("/audit", responses=answers(), response_model=list[AuditEntry])
def audit(at: Administers, before: _Before = None, limit: _Limit = 100) -> Response:
    """Lines of the audit, the newest first: tokens made, used and revoked, runs asked to stop."""
    if at.who.sessions is not None:
        raise Problem("forbidden", "the audit is of every session, the token is not")
    return encoded(at.store.audit.list(before=before, limit=limit))
