"""Who asks, and whether they may: tokens, their scopes, and the sessions that they are for.

A request carries `Authorization: Bearer qs_…`; a WebSocket's first message does (`server/stream`).
A token in a URL is refused before anything else is looked at (`server/gate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from qigstore.records import Scope
from qigstore.repository.tokens import Token, matches
from qigstore.server.problems import Problem

if TYPE_CHECKING:
    from qigstore.server.wiring import Wiring

__all__ = [
    "Bearer",
    "Principal",
    "Require",
    "address_of",
    "authenticate_token",
    "require",
    "unlisted",
    "wiring_of",
]

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token as `qigstore token create` prints it. It goes into this header and "
    "nowhere else: never into a URL.",
)
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
"""What a request carries in its `Authorization`."""
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="qigstore"'}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever holds a token.

    Attributes:
        token_id, name: of the token.
        scopes: what it may do; `admin` is all of it.
        sessions: the sessions it is for (`*`: any characters); None: every one.
        address: where the request came from.
    """

    token_id: UUID
    name: str
    scopes: frozenset[str]
    sessions: str | None = None
    address: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether one of its scopes is this one, or `admin`."""
        return scope in self.scopes or "admin" in self.scopes

    def needs(self, scope: Scope) -> None:
        """Go on only with this scope.

        Raises:
            Problem: forbidden; says what the token has.
        """
        if not self.may(scope):
            has = ", ".join(sorted(self.scopes))
            raise Problem("forbidden", f"this needs the scope {scope}; the token has {has}")

    def needs_session(self, name: str) -> None:
        """Go on only where the token is for this session, whether there is one of that name or not.

        Raises:
            Problem: forbidden.
        """
        if not matches(self.sessions, name):
            raise Problem("forbidden", f"the token is for sessions named {self.sessions}")


def wiring_of(app: FastAPI) -> Wiring:
    """What the application was made with: its store, its limits, its meters."""
    found: Wiring = app.state.wiring
    return found


def authenticate_token(app: FastAPI, secret: str, address: str | None = None) -> Principal:
    """The holder of a token; asks the database, so not for the event loop's own thread.

    Args:
        secret: the token's text.
        address: where it came from, for the limits and the audit.

    Raises:
        Problem: unauthorized, or too-many-requests (of that token, or of refusals there).
        StoreUnavailable: no database answers.
    """
    wiring = wiring_of(app)
    token = wiring.store.tokens.identify(secret, address=address)
    if token is None:
        wiring.meters.count_refusal("token")
        _within(wiring.refusals.take(address))
        raise Problem("unauthorized", "the token is unknown, expired or revoked", _CHALLENGE)
    _within(wiring.rates.take(token.id))
    return _principal(token, address)


def _principal(token: Token, address: str | None) -> Principal:
    return Principal(token.id, token.name, frozenset(token.scopes), token.sessions, address)


def _within(wait_s: float) -> None:
    if wait_s > 0:
        seconds = str(math.ceil(wait_s))
        raise Problem("too-many-requests", f"wait {seconds} s", {"Retry-After": seconds})


class Require:
    """A dependency of endpoints: a token of this scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def recognise(self, request: Request, given: HTTPAuthorizationCredentials | None) -> Principal:
        """The holder of the request's token.

        Raises:
            Problem: unauthorized, forbidden or too-many-requests.
        """
        app, address = request.app, address_of(request)
        if given is None:
            _within(wiring_of(app).refusals.take(address))
            words = "send `Authorization: Bearer qs_…`; `qigstore token create` makes a token"
            raise Problem("unauthorized", words, _CHALLENGE)
        who = authenticate_token(app, given.credentials, address)
        request.state.principal = who
        who.needs(self.scope)
        return who


class _Holder(Require):
    def __call__(self, request: Request, given: Bearer) -> Principal:
        return self.recognise(request, given)


def address_of(connection: HTTPConnection) -> str | None:
    """Where a request or WebSocket came from."""
    return connection.client.host if connection.client else None


def require(scope: Scope) -> _Holder:
    """A dependency for endpoints: `Annotated[Principal, Depends(require("read"))]`."""
    return _Holder(scope)


def unlisted(request: Request) -> None:
    """A dependency: anybody, no faster than those without a valid token.

    Raises:
        Problem: too-many-requests.
    """
    _within(wiring_of(request.app).anybody.take(address_of(request)))
