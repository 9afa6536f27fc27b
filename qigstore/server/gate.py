"""The gate before the application: what is refused unread, what every answer carries, the log.

Pure ASGI, so that it sees requests and WebSockets alike and counts bytes as they come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qigstore.repository.tokens import TOKEN_PATTERN
from qigstore.server.problems import Problem, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qigstore.server.config import ServerConfig
    from qigstore.server.wiring import Wiring

__all__ = ["CONTENT_POLICY", "Gate"]

_log = logging.getLogger("qigstore.server.access")

CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-cache",
}
_CROSS: Mapping[str, str] = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-None-Match, Last-Event-ID",
    "Access-Control-Expose-Headers": "ETag, Retry-After",
    "Access-Control-Max-Age": "600",
}
_SECRET_NAMES = frozenset(
    {"token", "access_token", "auth", "authorization", "api_key", "apikey", "bearer", "secret"}
)


class Gate:
    """Refuses, limits, marks and notes every request before and after the application."""

    def __init__(self, app: ASGIApp, wiring: Wiring) -> None:
        self._app, self._wiring = app, wiring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket, from its first byte to its last."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        # A session's name may hold a slash: the path stays as it was sent, and whoever takes a
        # name from it decodes that name.
        scope["path"] = _raw_path(scope)
        visit = _Visit(scope, self._wiring)
        answer = _refusal(scope, self._wiring)
        meters = self._wiring.meters
        meters.open += 1
        try:
            if answer is not None:
                await answer(scope, receive, visit.marking(send))
            elif scope["type"] == "http":
                limited = _Counted(receive, self._wiring.config.body_bytes_max)
                await self._app(scope, limited, visit.marking(send))
            else:
                await self._app(scope, receive, visit.marking(send))
        except Exception as error:
            if visit.status:
                raise  # half an answer is on its way: only the connection's end can tell
            _log.exception("%s", _shown(scope["path"]))
            await problem_of(error).response()(scope, receive, visit.marking(send))
        finally:
            meters.open -= 1
            visit.note()


def _raw_path(scope: Scope) -> str:
    raw = scope.get("raw_path")
    return raw.decode("ascii", "replace") if raw else quote(scope["path"])


def _refusal(scope: Scope, wiring: Wiring) -> Response | None:
    """The answer to what goes no further: a refusal, or the one to a browser's preflight."""
    try:
        headers = Headers(scope=scope)
        _without_token_in_url(scope)
        host = headers.get("host", "")
        if not wiring.config.knows_host(host):
            raise Problem("wrong-host", "the Host header names another server")
        origin = headers.get("origin")
        if origin is not None and not wiring.config.allows_origin(origin, host):
            raise Problem("foreign-origin", "start the server with --origin to allow this page")
        if wiring.meters.open >= wiring.config.requests_max:
            raise Problem("busy", f"{wiring.config.requests_max} requests are open")
        _check_length(headers, wiring.config)
    except Problem as problem:
        wiring.meters.count_refusal(problem.kind)
        return problem.response()
    asks = scope["type"] == "http" and scope["method"] == "OPTIONS"
    if asks and origin is not None and "access-control-request-method" in headers:
        return Response(status_code=204, headers=dict(_CROSS))
    return None


def _without_token_in_url(scope: Scope) -> None:
    query = scope.get("query_string", b"").decode("ascii", "replace")
    names = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
    given = unquote(scope["path"]) + " " + unquote(query)
    if names & _SECRET_NAMES or TOKEN_PATTERN.search(given):
        raise Problem(
            "token-in-url",
            "A token in a URL ends up in logs and histories. If this was one, revoke it "
            "(`qigstore token revoke`); send it as `Authorization: Bearer …`.",
        )


def _check_length(headers: Headers, config: ServerConfig) -> None:
    told = headers.get("content-length", "")
    if told.isdigit() and int(told[:20]) > config.body_bytes_max:
        raise _too_large(config.body_bytes_max)


def _too_large(limit: int) -> Problem:
    # The rest of the body is not read, so that this connection can serve nothing more.
    words = f"a body has at most {limit} bytes"
    return Problem("body-too-large", words, {"Connection": "close"}, bytes_max=limit)


class _Counted:
    """Passes on a body as it comes, up to a limit; what the client says of its length is not asked.

    Raises:
        HTTPException: 413, which the framework passes on as it is.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._got = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._got += len(message.get("body", b""))
            if self._got > self._limit:
                raise HTTPException(413) from _too_large(self._limit)
        return message


class _Visit:
    """One request: its answer marked with the headers of every answer, and noted in the log.

    Attributes:
        status: of the answer; 0: none yet.
    """

    def __init__(self, scope: Scope, wiring: Wiring) -> None:
        self._scope, self._wiring = scope, wiring
        self._started, self.status = time.perf_counter(), 0

    def marking(self, send: Send) -> Send:
        """The same `send`, which adds the headers."""
        origin = Headers(scope=self._scope).get("origin")

        async def mark(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                self.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.add_vary_header("Origin")
                if origin in self._wiring.config.origins:
                    headers["Access-Control-Allow-Origin"] = str(origin)
                    headers["Access-Control-Expose-Headers"] = _CROSS[
                        "Access-Control-Expose-Headers"
                    ]
            elif message["type"] == "websocket.accept":
                self.status = 101
            await send(message)

        return mark

    def note(self) -> None:
        """Count it, and write its line: method, path without its query, status, time, who."""
        scope, seconds = self._scope, time.perf_counter() - self._started
        method = scope.get("method", "WEBSOCKET")
        route = getattr(scope.get("route"), "path", "none")
        self._wiring.meters.count(method, route, self.status, seconds)
        who = scope.get("state", {}).get("principal")
        _log.info(
            "%s %s %s %.1f ms %s", method, _shown(scope["path"]), self.status, 1000 * seconds,
            who.name if who is not None else "-",
        )  # fmt: skip


def _shown(path: str) -> str:
    """A path for the log: of one line, still percent-encoded, and without a token in it."""
    bare = TOKEN_PATTERN.sub("qs_…", _bared(path))[:500]
    return "".join(c if c.isprintable() else "?" for c in bare)


def _bared(path: str) -> str:
    """The path; decoded only where a token hides behind percent signs."""
    decoded = unquote(path)
    hides = TOKEN_PATTERN.search(decoded) and not TOKEN_PATTERN.search(path)
    return quote(decoded) if hides else path
