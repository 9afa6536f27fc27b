"""Who may have a stream: a token that reads, sessions that it is for, room for one more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastapi import FastAPI

from qigstore.errors import StoreUnavailable
from qigstore.server.auth import Principal, authenticate_token, wiring_of
from qigstore.server.problems import Problem
from qigstore.server.stream.client import envelopes
from qigstore.server.stream.position import read_token
from qigstore.server.stream.subscription import Subscription

if TYPE_CHECKING:
    from qigstore.server.stream.envelope import Envelope
    from qigstore.server.stream.hub import Hub

__all__ = ["Admission", "Welcome"]

WELCOME_S = 60.0
"""A token that was revoked ends its streams with the first envelope after this time."""


class Admission:
    """Admits clients to a hub."""

    def __init__(self, app: FastAPI, hub: Hub) -> None:
        self._app, self._hub = app, hub
        self._of_token: Counter[UUID] = Counter()

    @asynccontextmanager
    async def stream(
        self, who: Principal, wishes: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[Envelope]]:
        """The envelopes for one client, while the block lasts.

        Raises:
            Problem: forbidden, busy.
            InvalidInput: a wish that cannot be met, a `seq` that is none.
            NotFound: there is no such session.
        """
        asked = dict(wishes)
        after = asked.pop("after", None)
        subscription = Subscription.of(asked, who.sessions)
        who.needs("read")
        for name in sorted(subscription.sessions or ()):
            who.needs_session(name)
            await self._hub.read(self._hub.store.sessions.get, name)
        with self._room(who.token_id):
            async with self._hub.channel(subscription) as channel:
                place = None
                if after is not None:
                    place = read_token(str(after), self._hub.store_id, subscription.scope)
                found = envelopes(self._hub, channel, place)
                try:
                    yield found
                finally:
                    await found.aclose()

    @contextmanager
    def _room(self, token: UUID) -> Iterator[None]:
        wiring = wiring_of(self._app)
        config, meters = wiring.config, wiring.meters
        for count, most in (
            (meters.streams, config.streams_max),
            (self._of_token[token], config.token_streams_max),
        ):
            if count >= most:
                raise Problem("busy", f"{most} streams are open")
        self._of_token[token] += 1
        try:
            with meters.stream():
                yield
        finally:
            self._of_token[token] -= 1
            if not self._of_token[token]:
                del self._of_token[token]

    async def recognise(self, secret: str, address: str | None) -> Principal:
        """The holder of a token.

        Raises:
            Problem: unauthorized, too-many-requests.
            StoreUnavailable: no database answers.
        """
        return await asyncio.to_thread(authenticate_token, self._app, secret, address)


class Welcome:
    """A client's token, looked at again every `WELCOME_S`."""

    def __init__(self, admission: Admission, secret: str, address: str | None) -> None:
        self._recognise = partial(admission.recognise, secret, address)
        self._next_at = monotonic() + WELCOME_S

    async def refusal(self) -> Problem | None:
        """Why the client may not stay, if it is time to ask and it may not."""
        if monotonic() < self._next_at:
            return None
        self._next_at = monotonic() + WELCOME_S
        try:
            await self._recognise()
        except Problem as problem:
            return problem if problem.kind == "unauthorized" else None
        except StoreUnavailable:
            return None  # nobody can be asked; the stream itself says so
        return None
