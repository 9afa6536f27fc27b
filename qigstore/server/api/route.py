"""What every endpoint shares: its route, its parameters, its documented answers, who may ask."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from qigstore.encoding import json_bytes
from qigstore.repository.batches import STEP_MAX
from qigstore.repository.texts import METRIC_CHARACTERS_MAX
from qigstore.server.auth import Bearer, Principal, Require, wiring_of
from qigstore.server.problems import KINDS, Problem

if TYPE_CHECKING:
    from qigstore.records import SessionInfo
    from qigstore.server.wiring import Wiring

__all__ = [
    "Aborts",
    "Access",
    "Administers",
    "AttemptNumber",
    "Metric",
    "Points",
    "Rank",
    "Reads",
    "ReadsAll",
    "ReadsCheckpoints",
    "Start",
    "Stop",
    "Truth",
    "Whole",
    "Writes",
    "answers",
    "encoded",
    "router",
]

POINTS_MAX = 10_000
"""Buckets of one curve by REST."""
_INT4_MAX = 2**31 - 1
_COMMON = (
    "bad-request", "token-in-url", "unauthorized", "forbidden", "foreign-origin", "body-too-large",
    "wrong-host", "invalid-input", "too-many-requests", "busy",
    "store-unavailable", "query-too-long", "schema-outdated",
)  # fmt: skip


class StrictRequest(Request):
    """A request whose JSON is JSON: no bare NaN or Infinity, no number that would become one."""

    async def json(self) -> Any:
        """The body; JSONDecodeError where it is none."""
        body = await self.body()
        try:
            return json.loads(body, parse_constant=_refuse, parse_float=_finite)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error)[:100], "", 0) from error


def _refuse(word: str) -> NoReturn:
    raise ValueError(f'{word} is no JSON; send the string "{word}"')


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond ±1.8e308")
    return number


class Route(APIRoute):
    """Knows its query parameters and reads JSON strictly; marks what it answers to a GET with its
    ETag, and leaves out what the client has already."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's own, between the two."""
        inner = super().get_route_handler()
        known = set(_parameters(self.dependant))

        async def handle(request: Request) -> Response:
            if unknown := sorted(request.query_params.keys() - known):
                has = ", ".join(sorted(known)) or "none"
                words = f"query parameter {unknown[0][:80]!r} is unknown; there are: {has}"
                raise Problem("invalid-input", words)
            response = await inner(StrictRequest(request.scope, request.receive))
            return _tagged(request, response) if request.method == "GET" else response

        return handle


def _parameters(dependant: Dependant) -> Iterator[str]:
    """Names of the query parameters of an endpoint: any other is a mistake, and told."""
    yield from (parameter.alias for parameter in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _parameters(inner)


def _tagged(request: Request, response: Response) -> Response:
    if response.status_code != 200:
        return response
    tag = response.headers.get("etag")
    if tag is None:
        if isinstance(response, StreamingResponse):
            return response
        tag = f'"{blake2b(bytes(response.body), digest_size=16).hexdigest()}"'
        response.headers["ETag"] = tag
    asked = request.headers.get("if-none-match", "")
    known = {part.strip().removeprefix("W/") for part in asked.split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag})
    return response


def router(noun: str, *, prefix: str = "/v1") -> APIRouter:
    """The routes of one noun."""
    return APIRouter(prefix=prefix, tags=[noun], route_class=Route)


def encoded(value: Any, status: int = 200) -> Response:
    """The value by the one encoder."""
    return Response(json_bytes(value), status, media_type="application/json")


def answers(*kinds: str, cached: bool = True) -> dict[int | str, dict[str, Any]]:
    """The documented refusals of an endpoint: those of every one, and `kinds`;
    `cached`: also 304."""
    every = (*_COMMON, *kinds)
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({KINDS[kind][0] for kind in every}):
        named = [kind for kind in dict.fromkeys(every) if KINDS[kind][0] == status]
        found[status] = {
            "description": "; ".join(f"`{kind}`: {KINDS[kind][1]}" for kind in named),
            "content": {"application/problem+json": {"schema": {"$ref": _PROBLEM}}},
        }
    if cached:
        found[304] = {"description": "What `If-None-Match` names is still so"}
    return found


_PROBLEM = "#/components/schemas/Problem"


@dataclass(frozen=True, slots=True)
class Access:
    """An endpoint's view: who asks, and what it works on.

    Attributes:
        name: the session in the path, "" where there is none; the token is for it.
    """

    wiring: Wiring
    who: Principal
    name: str

    @property
    def store(self) -> Any:
        """The repository."""
        return self.wiring.store

    def session(self) -> SessionInfo:
        """The session of the path.

        Raises:
            NotFound: there is none of that name.
        """
        found: SessionInfo = self.wiring.store.sessions.get(self.name)
        return found

    def note(self, action: str, **detail: Any) -> None:
        """A line of the audit; written before the deed, so that none is without its line."""
        who = self.who
        self.store.audit.add(
            action, who.name, token_id=who.token_id, session=self.name or None,
            address=who.address, detail=detail,
        )  # fmt: skip


_SESSION = Path(
    description="Name of the session, percent-encoded (a slash as `%2F`).",
    examples=["ocean-7"],
    max_length=2400,
)


class OfSession(Require):
    """A dependency: access to the session of the path, for a token of this scope."""

    def __call__(
        self, request: Request, given: Bearer, session: Annotated[str, _SESSION]
    ) -> Access:
        """Recognise the token; it must be for this session, whether there is one or not.

        Raises:
            Problem: unauthorized, forbidden, too-many-requests, invalid-input.
        """
        who = self.recognise(request, given)
        try:
            name = unquote(session, errors="strict")
        except UnicodeDecodeError as error:
            raise Problem("invalid-input", "the session's name is no UTF-8") from error
        who.needs_session(name)
        return Access(wiring_of(request.app), who, name)


class OfAll(Require):
    """A dependency: access to what is not of one session."""

    def __call__(self, request: Request, given: Bearer) -> Access:
        """Recognise the token.

        Raises:
            Problem: unauthorized, forbidden, too-many-requests.
        """
        return Access(wiring_of(request.app), self.recognise(request, given), "")


Reads = Annotated[Access, Depends(OfSession("read"))]
ReadsAll = Annotated[Access, Depends(OfAll("read"))]
Writes = Annotated[Access, Depends(OfSession("write"))]
ReadsCheckpoints = Annotated[Access, Depends(OfSession("checkpoint"))]
Aborts = Annotated[Access, Depends(OfSession("abort"))]
Administers = Annotated[Access, Depends(OfAll("admin"))]

Whole = Annotated[int, Field(strict=True)]
"""An integer of a body: not 1.0, not "1", not true."""
Truth = Annotated[bool, Field(strict=True)]
"""A boolean of a body, likewise."""

# PostgreSQL's text holds no NUL, so that no metric has it in its name.
Metric = Annotated[
    str,
    Query(
        description="Name of the metric, standard or custom.",
        examples=["loss"],
        min_length=1,
        max_length=METRIC_CHARACTERS_MAX,
        pattern=r"^[^\x00]+$",
    ),
]
AttemptNumber = Annotated[
    int | None,
    Query(
        description="One attempt; left out: the canonical timeline.",
        examples=[2],
        ge=1,
        le=_INT4_MAX,
    ),
]
Rank = Annotated[int, Query(description="The rank.", examples=[0], ge=0, le=_INT4_MAX)]
Start = Annotated[
    int, Query(description="First step of the span.", examples=[0], ge=0, le=STEP_MAX)
]
Stop = Annotated[
    int | None,
    Query(
        description="The step after the last of the span; left out: to its end.",
        examples=[2000],
        ge=0,
        le=STEP_MAX,
    ),
]
Points = Annotated[
    int,
    Query(description="At most so many points.", examples=[500], ge=1, le=POINTS_MAX),
]
