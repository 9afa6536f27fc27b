"""The one thread of a server that hears the database and reads what is new, once for everybody.

It keeps no place of its own: the hub says from where to read, and takes each page before the next
is read, so that no more than a page is ever in memory. Notifications say when to look, and a look
every `POLL_S` makes sure; a database that is away is asked again until it is back, and the hub goes
on from where it stood.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from qigstore.errors import StoreUnavailable
from qigstore.repository.feed import Change, Look, Mark, Page, Seen, WriterKey

if TYPE_CHECKING:
    from qigstore.repository.feed import Feed

__all__ = ["CHANGES_A_PAGE", "GAP_S", "POLL_S", "ROWS_A_PAGE", "Listener", "Tail"]

_log = logging.getLogger("qigstore.server")

POLL_S = 1.0
"""A look is never further apart, whatever was heard."""
GAP_S = 0.05
"""Nor nearer."""
ROWS_A_PAGE = 2_000
CHANGES_A_PAGE = 200
_BACK_OFF_S = (0.1, 2.0)
_ASLEEP_S = 0.5

T = TypeVar("T")


class Listener(Protocol):
    """What the tail tells, in the event loop's thread."""

    def looked(self, look: Look) -> Mapping[WriterKey, Mark]:
        """The writers whose rows are wanted, and from where."""

    def take_rows(self, key: WriterKey, session: str, page: Page) -> None:
        """Rows that follow what it has of a writer."""

    def take_changes(self, changes: list[Change], seen: Seen) -> None:
        """Events and checkpoints that follow what it has."""

    def where(self) -> Seen | None:
        """What of them it has; None: it starts with the next look."""

    def tell(self, reason: str | None) -> None:
        """The database answers, or why it does not."""


class _Stopped(Exception):
    """The server leaves."""


class Tail:
    """Follows the database from `start` to `stop`, as long as anybody listens."""

    def __init__(self, feed: Feed, listener: Listener) -> None:
        self._feed, self._listener = feed, listener
        self._loop = asyncio.get_running_loop()
        self._stopping, self._awake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="qigstore-tail", daemon=True)

    def start(self) -> None:
        """Begin, asleep."""
        self._thread.start()

    def wake(self) -> None:
        """Somebody listens."""
        self._awake.set()

    def sleep(self) -> None:
        """Nobody does."""
        self._awake.clear()

    async def stop(self) -> None:
        """End the thread; it may be inside a call to the database."""
        self._stopping.set()
        self._awake.set()
        await asyncio.to_thread(self._thread.join)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            if not self._awake.wait(_ASLEEP_S):
                continue
            started = monotonic()
            try:
                self._follow()
            except _Stopped:
                return
            except Exception as error:
                # Every place is the hub's: nothing is lost, and the next look goes on from there.
                failures = 0 if monotonic() - started > _BACK_OFF_S[1] else failures + 1
                expected = isinstance(error, StoreUnavailable)
                log = _log.warning if expected else _log.exception
                log("the stream waits for the database: %s", error)
                self._told(error)
                least, most = _BACK_OFF_S
                self._stopping.wait(min(most, least * 2 ** min(failures, 8)))

    def _told(self, error: Exception) -> None:
        away = isinstance(error, StoreUnavailable)
        reason = "the database does not answer" if away else "the database refuses"
        try:
            self._call(self._listener.tell, reason)
        except _Stopped:
            return

    def _follow(self) -> None:
        with self._feed.listening() as heard:
            while self._awake.is_set():
                began = monotonic()
                left = self._round()
                self._stopping.wait(0.0 if left else max(0.0, began + GAP_S - monotonic()))
                if self._stopping.is_set():
                    raise _Stopped
                heard(0.0 if left else max(0.0, began + POLL_S - monotonic()))

    def _round(self) -> bool:
        """A page of each writer at most, so that one does not hold up the others; whether more is
        left."""
        look = self._feed.look()
        if not look.durable and self._call(self._listener.where) is None:
            self._feed.make_durable()
        wanted = self._call(self._listener.looked, look)
        self._call(self._listener.tell, None)
        self._changes(look)
        left = False
        for key, mark in wanted.items():
            progress = look.writers[key]
            page = self._feed.page(key, mark, progress, ROWS_A_PAGE)
            self._call(self._listener.take_rows, key, progress.session, page)
            left |= page.mark.seq < progress.mark.seq
        return left

    def _changes(self, look: Look) -> None:
        seen = self._call(self._listener.where)
        durable = look.durable
        while seen is not None and seen != Seen(look.snapshot):
            changes, seen = self._feed.changes(seen, look.snapshot, CHANGES_A_PAGE)
            if not durable:
                if not changes:
                    return  # the place is not worth a write to the disk
                self._feed.make_durable()
                durable = True
            self._call(self._listener.take_changes, changes, seen)

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in the loop's thread, and wait: so nothing piles up between the two."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

        if self._stopping.is_set() or self._loop.is_closed():
            raise _Stopped
        self._loop.call_soon_threadsafe(call)
        while True:
            try:
                return done.result(timeout=_ASLEEP_S)
            except TimeoutError:
                if self._stopping.is_set() or self._loop.is_closed():
                    raise _Stopped from None
