"""Errors as a client sees them: RFC 9457 problem documents, without a word of our insides.

A problem's `type` is `urn:qigstore:problem:<kind>`; programs go by it, people by `detail`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qigstore import errors
from qigstore.encoding import json_bytes

__all__ = ["KINDS", "Problem", "add_handlers", "problem_of"]

_log = logging.getLogger("qigstore.server")
RETRY_AFTER_S = 2

KINDS: Mapping[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "token-in-url": (400, "A token must not be in a URL"),
    "unauthorized": (401, "A valid token is needed"),
    "forbidden": (403, "The token may not do this"),
    "foreign-origin": (403, "Pages of this origin may not ask"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This address has no such method"),
    "conflict": (409, "Its state does not allow this"),
    "session-busy": (409, "Another process records this session"),
    "not-running": (409, "The session is not running"),
    "stale-writer": (409, "It is not this batch's turn"),
    "checkpoint-damaged": (409, "The checkpoint is not what was saved"),
    "checkpoint-elsewhere": (409, "The checkpoint's files are not on this server"),
    "body-too-large": (413, "The body is too large"),
    "wrong-host": (421, "This server has another name"),
    "invalid-input": (422, "A value cannot be used"),
    "too-many-requests": (429, "Too many requests"),
    "internal": (500, "The server failed"),
    "busy": (503, "The server is busy"),
    "store-unavailable": (503, "The database does not answer"),
    "query-too-long": (503, "The database took too long"),
    "schema-outdated": (503, "The database's schema is not this version's"),
}
"""Status and title of every kind of problem."""

_OF_STATUS = {400: "bad-request", 404: "not-found", 405: "method-not-allowed"}
_QUERY_CANCELED = "57014"


class Problem(Exception):
    """A refusal with its kind, a sentence for people and fields for programs."""

    def __init__(
        self, kind: str, detail: str, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> None:
        self.kind, self.detail, self.fields = kind, detail, fields
        self.status, self.title = KINDS[kind]
        self.headers = dict(headers or {})
        if self.status in {429, 503}:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        super().__init__(detail)

    def response(self) -> Response:
        """The document, with the media type of RFC 9457."""
        document = {
            "type": f"urn:qigstore:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.fields,
        }
        media = "application/problem+json"
        return Response(json_bytes(document), self.status, self.headers, media)


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error: no path, no address, no traceback."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, errors.QigstoreError):
        return _of_ours(error)
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_framework(error)
    return Problem("internal", "Something failed in the server; its log says what.")


def _of_ours(error: errors.QigstoreError) -> Problem:
    match error:
        case errors.NotFound():
            found = Problem("not-found", f"no {error.kind} named {str(error.name)[:120]!r}")
            if error.near:
                found.fields["near"] = list(error.near)
        case errors.InvalidInput() | errors.ConfigurationError():
            found = Problem("invalid-input", str(error))
        case errors.SessionBusy():
            found = Problem("session-busy", f"session {error.session!r} is being recorded")
        case errors.NotRunning():
            found = Problem("not-running", str(error), status_of_attempt=error.status)
        case errors.StaleWriter():
            found = Problem("stale-writer", str(error), epoch=error.current)
        case errors.CheckpointCorrupt():
            found = Problem("checkpoint-damaged", error.brief)
        case errors.CheckpointFormatError():
            found = Problem("checkpoint-damaged", error.reason)
        case errors.CheckpointError():
            found = Problem("conflict", "the checkpoint cannot be used; the server's log says why")
        case errors.StoreUnavailable():
            found = _of_database(error)
        case errors.SchemaOutdated():
            words = f"it needs {error.expected}; `qigstore db upgrade` makes it so"
            found = Problem("schema-outdated", words)
        case _:
            found = Problem("internal", "Something failed in the server; its log says what.")
    return found


def _of_database(error: errors.StoreUnavailable) -> Problem:
    driver = getattr(error.__cause__, "orig", error.__cause__)
    if getattr(driver, "sqlstate", None) == _QUERY_CANCELED:
        return Problem("query-too-long", "The answer would take too long; ask for less.")
    return Problem("store-unavailable", "The database does not answer; try again.")


def _of_validation(error: RequestValidationError) -> Problem:
    problems = [
        {"where": ".".join(map(str, item["loc"])), "what": str(item["msg"])}
        for item in error.errors()[:20]
    ]
    words = "; ".join(f"{item['where']}: {item['what']}" for item in problems)
    return Problem("invalid-input", words[:2000], errors=problems)


def _of_framework(error: HTTPException) -> Problem:
    if isinstance(error.__cause__, Problem):
        return error.__cause__
    kind = _OF_STATUS.get(error.status_code, "bad-request")
    return Problem(kind, str(error.detail), error.headers)


async def _answer(request: Request, error: Exception) -> Response:
    found = problem_of(error)
    if found.status >= 500 or found.kind == "conflict":
        method = request.scope.get("method", "WEBSOCKET")
        _log.error("%s %s: %s", method, request.scope["path"], error)
    who = getattr(request.state, "principal", None)
    if who is not None and who.sessions is not None:
        found.fields.pop("near", None)  # names of sessions that this token must not see
    return found.response()


def add_handlers(app: FastAPI) -> None:
    """Every error of the application, the framework's included, becomes a problem document.

    What nobody foresaw is the gate's to answer.
    """
    handler = cast("Any", _answer)
    for kind in (Problem, errors.QigstoreError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
