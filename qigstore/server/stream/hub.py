"""The hub: one tail of the database, a channel for each different subscription, its clients.

Runs in the event loop's thread. What the server knows is bounded: at most `FOLLOWED_MAX` writers, a
page of rows on the way, `STREAMS_MAX` clients with a bounded queue each, and in each channel a
bucket or some for each writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from qigstore.errors import StoreUnavailable
from qigstore.repository.feed import Change, Look, Mark, Page, Seen, WriterKey
from qigstore.server.stream.channel import Channel
from qigstore.server.stream.subscription import Subscription
from qigstore.server.stream.tail import Tail

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["STREAMS_MAX", "Hub"]

STREAMS_MAX = 1_000
HEALTH_S = 10.0
"""Everybody hears so often that the server lives, and gets a fresh `seq`."""
_READERS = 2
"""Threads that read for clients who come back: each has one connection at most."""
_READY_S = 10.0

T = TypeVar("T")


class Hub:
    """All streams of one server.

    Attributes:
        store: where the rows are. store_id: which one it is.
        streams: clients that are connected.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.store_id = UUID(int=0)
        self.streams = 0
        self._channels: dict[Subscription, Channel] = {}
        self._marks: dict[WriterKey, Mark] = {}
        self._sessions: dict[WriterKey, str] = {}
        self._seen: Seen | None = None
        self._asleep = True
        self._away: str | None = None
        self._ready = asyncio.Event()
        self._tail = Tail(store.feed, self)
        self._pulse: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="qigstore-catch-up")

    def start(self) -> None:
        """Begin, asleep until somebody comes."""
        self._tail.start()
        self._pulse = asyncio.create_task(self._beat())

    def leave(self) -> None:
        """End every stream: the server leaves."""
        for channel in self._channels.values():
            for subscriber in channel.subscribers:
                subscriber.leave()

    async def close(self) -> None:
        """End every thread."""
        if self._pulse is not None:
            self._pulse.cancel()
        for channel in self._channels.values():
            channel.close()
        await self._tail.stop()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Ask the store something, apart from the loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: function(*arguments))

    @asynccontextmanager
    async def channel(self, subscription: Subscription) -> AsyncIterator[Channel]:
        """The channel of a subscription, while the block lasts.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        self.streams += 1
        try:
            if not self._ready.is_set():
                await self._wake()
            channel = self._channels.get(subscription) or self._opened(subscription)
            channel.users += 1
            try:
                yield channel
            finally:
                channel.users -= 1
                if not channel.users:
                    channel.close()
                    del self._channels[subscription]
        finally:
            self.streams -= 1
            if not self.streams:
                # What is stored from now on is nobody's: the next one starts where it comes.
                self._tail.sleep()
                self._asleep = True
                self._ready.clear()

    async def _wake(self) -> None:
        self.store_id = await self.read(lambda: self.store.id)
        self._tail.wake()
        try:
            await asyncio.wait_for(self._ready.wait(), _READY_S)
        except TimeoutError:
            raise StoreUnavailable(self.store.database.address, "no answer in time") from None

    def _opened(self, subscription: Subscription) -> Channel:
        assert self._seen is not None
        marks = self._covered(subscription)
        channel = Channel(subscription, self.store_id, self._seen, marks)
        self._channels[subscription] = channel
        return channel

    def _covered(self, subscription: Subscription) -> dict[WriterKey, Mark]:
        if "telemetry" not in subscription.kinds:
            return {}
        covers = subscription.covers
        return {key: mark for key, mark in self._marks.items() if covers(self._sessions[key])}

    @property
    def health(self) -> dict[str, Any]:
        """What a `health` envelope says."""
        state = {"database": "up"} if self._away is None else {"database": "down"}
        return state | {"reason": self._away, "streams": self.streams}

    # -- what the tail tells -------------------------------------------------------------------

    def looked(self, look: Look) -> Mapping[WriterKey, Mark]:
        """See which writers are new, gone, or further; returns whose rows are wanted."""
        if not self.streams:
            return {}
        first, self._asleep = self._asleep, False
        if first:
            self._marks.clear()
            self._sessions.clear()
            self._seen = Seen(look.snapshot)
        self._forget([key for key in self._marks if key not in look.writers])
        wanted: dict[WriterKey, Mark] = {}
        assert self._seen is not None
        for key, progress in look.writers.items():
            mark = self._marks.get(key)
            if mark is None:
                new = not first and not self._seen.snapshot.sees(progress.created_in)
                mark = Mark() if new else progress.mark
                self._follow(key, progress.session, mark)
            if mark.seq < progress.mark.seq:
                if any(c.wants_rows and c.subscription.covers(progress.session)
                       for c in self._channels.values()):  # fmt: skip
                    wanted[key] = mark
                else:
                    self._marks[key] = progress.mark
        self._ready.set()
        return wanted

    def _follow(self, key: WriterKey, session: str, mark: Mark) -> None:
        self._marks[key], self._sessions[key] = mark, session
        for channel in self._channels.values():
            if channel.subscription.covers(session):
                channel.follow(key, mark)

    def _forget(self, gone: list[WriterKey]) -> None:
        for key in gone:
            del self._marks[key], self._sessions[key]
        for channel in self._channels.values() if gone else ():
            channel.forget(gone)

    def take_rows(self, key: WriterKey, session: str, page: Page) -> None:
        """Pass on rows that follow all that is known of their writer."""
        if key not in self._marks:
            return
        self._marks[key] = page.mark
        for channel in self._channels.values():
            if channel.wants_rows and channel.subscription.covers(session):
                channel.take_rows(key, session, page)

    def take_changes(self, changes: list[Change], seen: Seen) -> None:
        """Pass on events and checkpoints that follow all that is known."""
        self._seen = seen
        for channel in self._channels.values():
            channel.take_changes(changes, seen)

    def where(self) -> Seen | None:
        """What of events and checkpoints is known; None: it starts where the next look is."""
        return None if self._asleep else self._seen

    def tell(self, reason: str | None) -> None:
        """The database answers, or why it does not; said once."""
        if reason != self._away:
            self._away = reason
            self._say_how_it_is()

    def _say_how_it_is(self) -> None:
        for channel in self._channels.values():
            channel.tell(self.health)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_S)
            self._say_how_it_is()
