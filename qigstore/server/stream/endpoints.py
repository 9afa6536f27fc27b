"""The two ways to a stream: a WebSocket, and server-sent events; what each refusal looks like.

A WebSocket is closed with 4000 and the status that REST would answer with: 4401 no valid token,
4403 not for this token, 4404 no such session, 4408 no first message in time, 4422 a wish that
cannot be met, 4429 and 4503 come again later; and 4008: too slow, come back with the last `seq`.
A page's origin, a token in the URL and a foreign host are refused before, by the gate.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request, WebSocket
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect

from qigstore.server.auth import wiring_of
from qigstore.server.problems import Problem, problem_of
from qigstore.server.stream.admission import Admission, Welcome
from qigstore.server.stream.envelope import Envelope
from qigstore.server.stream.hub import Hub

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["FRAME_BYTES_MAX", "SLOW", "leave", "opened", "routes"]

_log = logging.getLogger("qigstore.server")

FRAME_BYTES_MAX = 1 << 16
"""Of what a client sends; `qigstore serve` has the protocol itself refuse more."""
SLOW = 4008
_TOO_BIG, _UNREADABLE = 1009, 4400
_FIRST_MESSAGE_S = 10.0
SEND_S = 10.0
"""A client that takes nothing for so long is slow."""
_CLOSE_S = 5.0
_REASON_BYTES_MAX = 120

routes = APIRouter(include_in_schema=False)


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """The application's hub, while the block lasts."""
    hub = app.state.hub = Hub(wiring_of(app).store)
    app.state.admission = Admission(app, hub)
    hub.start()
    try:
        yield
    finally:
        await hub.close()


def leave(app: FastAPI) -> None:
    """End every stream, as the server is about to: for the event loop's own thread."""
    app.state.hub.leave()


class _End(NamedTuple):
    """Why a stream ends: a code of WebSocket's, and words."""

    code: int
    reason: str


def _end_of(error: Exception) -> _End:
    problem = problem_of(error)
    if problem.status >= 500 and problem.kind == "internal":
        _log.exception("stream: %s", error)
    return _End(4000 + problem.status, problem.detail)


# -- WebSocket ---------------------------------------------------------------------------------


@routes.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    """The first message asks: `{"token": …, "sessions": […], "rate": 10, "after": …}`."""
    await socket.accept()
    try:
        end = await _serve(socket)
    except WebSocketDisconnect:
        return
    except Exception as error:
        end = _end_of(error)
    reason = end.reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
    try:
        async with asyncio.timeout(_CLOSE_S):
            await socket.close(end.code, reason)
    except (TimeoutError, RuntimeError, WebSocketDisconnect):
        _log.info("a stream's client was gone before it could be told: %s", end.reason)


async def _serve(socket: WebSocket) -> _End:
    admission: Admission = socket.app.state.admission
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            wishes = await _first(socket)
    except TimeoutError:
        return _End(4408, f"no first message within {_FIRST_MESSAGE_S:g} s")
    if isinstance(wishes, _End):
        return wishes
    address = socket.client.host if socket.client else None
    secret = str(wishes.pop("token", None) or _bearer(socket))
    who = await admission.recognise(secret, address)
    socket.state.principal = who
    welcome = Welcome(admission, secret, address)
    async with admission.stream(who, wishes) as envelopes:
        return await _first_end(
            partial(_send, socket, envelopes, welcome),
            partial(_hear, socket),
        )


async def _first(socket: WebSocket) -> dict[str, Any] | _End:
    text = await _message(socket)
    if len(text) > FRAME_BYTES_MAX:
        return _End(_TOO_BIG, f"a message has at most {FRAME_BYTES_MAX} bytes")
    try:
        wishes = json.loads(text)
    except (ValueError, RecursionError):
        wishes = None
    if not isinstance(wishes, dict):
        return _End(_UNREADABLE, "the first message is a JSON object")
    return wishes


async def _message(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    return str(message.get("text") or bytes(message.get("bytes") or b"").decode(errors="replace"))


def _bearer(socket: WebSocket) -> str:
    return socket.headers.get("authorization", "").removeprefix("Bearer ")


async def _send(socket: WebSocket, envelopes: AsyncIterator[Envelope], welcome: Welcome) -> _End:
    async for one in envelopes:
        try:
            async with asyncio.timeout(SEND_S):
                await socket.send_text(one.text)
        except TimeoutError:
            break
        if refusal := await welcome.refusal():
            return _end_of(refusal)
    return _End(SLOW, "too slow; come back with the last seq")


async def _hear(socket: WebSocket) -> _End:
    text = await _message(socket)
    return _End(_UNREADABLE, f"one message is expected; got another of {len(text)} characters")


async def _first_end(*parts: Callable[[], Awaitable[_End]]) -> _End:
    """The end, or the error, that comes first; the others are called off."""
    ends: list[_End | Exception] = []

    async def run(part: Callable[[], Awaitable[_End]]) -> None:
        try:
            ends.append(await part())
        except Exception as error:
            ends.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for part in parts:
            group.start_soon(run, part)
    first = ends[0]
    if isinstance(first, Exception):
        raise first
    return first


# -- server-sent events ------------------------------------------------------------------------

_Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
_Names = Annotated[list[str] | None, Query()]


@routes.get("/v1/stream/sse")
async def server_sent(
    request: Request,
    given: _Bearer,
    *,
    session: _Names = None,
    metric: _Names = None,
    kind: _Names = None,
    rate: str = "10",
    after: str | None = None,
) -> StreamingResponse:
    """The same envelopes as server-sent events; `Last-Event-ID` goes before `after`."""
    admission: Admission = request.app.state.admission
    if given is None:
        raise Problem("unauthorized", "send `Authorization: Bearer qs_…`")
    address = request.client.host if request.client else None
    who = await admission.recognise(given.credentials, address)
    request.state.principal = who
    wishes: dict[str, Any] = {"sessions": session, "metrics": metric, "kinds": kind}
    wishes |= {"rate": _number(rate), "after": request.headers.get("last-event-id", after)}
    async with AsyncExitStack() as stack:
        envelopes = await stack.enter_async_context(admission.stream(who, wishes))
        welcome = Welcome(admission, given.credentials, address)
        return _Events(_events(envelopes, welcome), stack.pop_all())


class _Events(StreamingResponse):
    """Server-sent events, and what is open as long as they are sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        async with self._stack:
            try:
                await super().__call__(scope, receive, in_time)
            except TimeoutError:
                _log.info("a stream's client took nothing for %g s", SEND_S)


async def _events(envelopes: AsyncIterator[Envelope], welcome: Welcome) -> AsyncIterator[str]:
    try:
        async for one in envelopes:
            yield one.server_sent
            if await welcome.refusal():
                return
    except Problem as problem:
        _log.info("a stream ends: %s", problem.detail)


def _number(rate: str) -> float | str:
    try:
        return float(rate)
    except ValueError:
        return rate
