"""A channel: everybody who asked for the same things gets the same envelopes, written once.

Its position is that of what it sent. Rows that came faster than its rate wait in it, as buckets.
Everything here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from qigstore.repository.feed import Change, Mark, Page, Seen, WriterKey
from qigstore.server.stream.envelope import Envelope, change_data, envelope
from qigstore.server.stream.points import Pending
from qigstore.server.stream.position import Position, write_token
from qigstore.server.stream.subscription import Subscription

__all__ = ["Channel", "Subscriber", "part", "points_of"]

QUEUE_ENVELOPES_MAX = 256
"""Envelopes that wait for one client; one that is further behind is slow."""
QUEUE_CHARACTERS_MAX = 4_000_000
_POINTS_AN_ENVELOPE = 500
_FLUSH_S = 0.1
"""A rate above ten points a second is met by several points at once."""


class Subscriber:
    """One client's place in a channel: a bounded queue.

    Attributes:
        slow: it did not take what it was sent; nothing more is kept for it.
        left: the server leaves; nothing more comes.
    """

    def __init__(self) -> None:
        self._queue: deque[Envelope] = deque()
        self._characters = 0
        self._news = asyncio.Event()
        self.slow = self.left = False

    def put(self, one: Envelope) -> None:
        """Add an envelope, unless too many wait."""
        self._characters += len(one.text)
        if len(self._queue) >= QUEUE_ENVELOPES_MAX or self._characters > QUEUE_CHARACTERS_MAX:
            self.slow = True
            self._queue.clear()
        if not self.slow:
            self._queue.append(one)
        self._news.set()

    def leave(self) -> None:
        """Say that the server leaves."""
        self.left = True
        self._news.set()

    async def get(self) -> Envelope | None:
        """The next envelope; None: there is no further one, `slow` or `left`."""
        while not self._queue:
            if self.slow or self.left:
                return None
            self._news.clear()
            await self._news.wait()
        one = self._queue.popleft()
        self._characters -= len(one.text)
        return one


class Channel:
    """What one subscription gets, from where the hub stands now.

    Attributes:
        subscribers: who gets it. users: those and the ones who have yet to catch up.
        moved: set, and made anew, each time that its position changes.
    """

    def __init__(
        self,
        subscription: Subscription,
        store: UUID,
        seen: Seen,
        marks: Mapping[WriterKey, Mark],
    ) -> None:
        self.subscription = subscription
        self.subscribers: set[Subscriber] = set()
        self.users = 0
        self.moved = asyncio.Event()
        self._store, self._scope = store, subscription.scope
        self._seen, self._marks = seen, dict(marks)
        self._pending: dict[WriterKey, tuple[str, Pending, Mark]] = {}
        rate = subscription.rate
        self._interval_s = 0.0 if math.isinf(rate) else max(1 / rate, _FLUSH_S)
        self._most = 10**9 if math.isinf(rate) else max(1, round(rate * self._interval_s))
        self._flushed_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def position(self) -> Position:
        """What its subscribers have."""
        return Position(self._seen, dict(self._marks))

    @property
    def wants_rows(self) -> bool:
        """Whether it sends telemetry."""
        return "telemetry" in self.subscription.kinds

    def attach(self) -> Subscriber:
        """A place for a client that has everything up to `position`."""
        subscriber = Subscriber()
        self.subscribers.add(subscriber)
        return subscriber

    def close(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    # -- what the hub tells ------------------------------------------------------------------

    def follow(self, key: WriterKey, mark: Mark) -> None:
        """A writer that is new."""
        if self.wants_rows:
            self._marks[key] = mark

    def skip(self, key: WriterKey, mark: Mark) -> None:
        """A writer whose rows nobody wants came so far."""
        if key in self._marks:
            self._marks[key] = mark

    def forget(self, keys: Iterable[WriterKey]) -> None:
        """Writers that are no longer there."""
        for key in keys:
            self._marks.pop(key, None)
            self._pending.pop(key, None)

    def take_rows(self, key: WriterKey, session: str, page: Page) -> None:
        """Rows that follow all that it has of this writer."""
        _, pending, _ = self._pending.get(
            key, (session, Pending(self.subscription.metrics, self._most), page.mark)
        )
        pending.add(page.rows)
        self._pending[key] = (session, pending, page.mark)
        self._flush_in_time()

    def take_changes(self, changes: Sequence[Change], seen: Seen) -> None:
        """Events and checkpoints that follow all that it has, and what is known after them."""
        for change in changes:
            self._seen = change.seen
            if change.kind in self.subscription.kinds and self.subscription.covers(change.session):
                self._send(change.kind, change_data(change))
        self._seen = seen
        self._has_moved()

    def tell(self, health: Mapping[str, Any]) -> None:
        """Something about the server itself."""
        self._send("health", health)

    def write(self, kind: str, data: Any, position: Position) -> Envelope:
        """An envelope for one client alone, who then has everything up to a position."""
        return envelope(write_token(position, self._store, self._scope), kind, data)

    # -- telemetry, as fast as it was asked for ------------------------------------------------

    def _flush_in_time(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._flushed_at + self._interval_s
        if loop.time() >= due:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_at(due, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flushed_at = asyncio.get_running_loop().time()
        waiting, self._pending = self._pending, {}
        parts: list[dict[str, Any]] = []
        points = 0
        for key, (session, pending, mark) in waiting.items():
            before = self._marks.get(key, Mark())
            if points and points + len(pending) > _POINTS_AN_ENVELOPE:
                self._send("telemetry", {"parts": parts})
                parts, points = [], 0
            parts.append(part(key, session, before, mark, pending))
            points += len(pending)
            self._marks[key] = mark
        if parts:
            self._send("telemetry", {"parts": parts})
        self._has_moved()

    def _send(self, kind: str, data: Any) -> None:
        if self.subscribers:
            one = self.write(kind, data, Position(self._seen, self._marks))
            for subscriber in self.subscribers:
                subscriber.put(one)

    def _has_moved(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


def part(
    key: WriterKey, session: str, before: Mark, after: Mark, pending: Pending
) -> dict[str, Any]:
    """The records after one mark up to another, of one writer."""
    whose = {"session": session, "attempt": key.attempt, "rank": key.rank}
    return whose | {"first_seq": before.seq + 1, "last_seq": after.seq, **pending.shown()}


def points_of(page: Page, subscription: Subscription) -> Pending:
    """A page as points that are no denser, in the time of its rows, than the rate asked for."""
    most = max(len(page.rows), 1)
    if page.rows and not math.isinf(subscription.rate):
        span = page.rows[-1].recorded_at - page.rows[0].recorded_at
        most = max(1, min(most, math.ceil(abs(span.total_seconds()) * subscription.rate)))
    pending = Pending(subscription.metrics, most)
    pending.add(page.rows)
    return pending
