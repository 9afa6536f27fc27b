"""One client: caught up from where it left off to where its channel stands, then part of it.

A place that a client brings may be behind its channel, and also before it: another server, or a
channel of another rate, may have told it more. So it first waits until the channel has everything
that it has, reads the difference by itself, and joins in the same moment in which the difference
that is left is known. What the channel sends from then on waits in its queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from qigstore.errors import InvalidInput
from qigstore.repository.feed import Look, Mark, Progress, WriterKey
from qigstore.server.problems import Problem
from qigstore.server.stream.channel import Channel, Subscriber, part, points_of
from qigstore.server.stream.envelope import Envelope, change_data
from qigstore.server.stream.position import Position
from qigstore.server.stream.tail import CHANGES_A_PAGE, ROWS_A_PAGE

if TYPE_CHECKING:
    from qigstore.server.stream.hub import Hub

__all__ = ["envelopes"]

_NEAR_S = 0.5
"""A difference that took no longer to read leaves one that is small."""
_REACH_S = 30.0


async def envelopes(
    hub: Hub, channel: Channel, after: Position | None
) -> AsyncGenerator[Envelope, None]:
    """Everything after a position, or from now on; ends where the client is too slow.

    Raises:
        Problem: busy: the server leaves.
    """
    subscriber: Subscriber | None = None
    own = after or channel.position
    try:
        if after is None:
            subscriber = channel.attach()
        yield channel.write("health", hub.health | {"resumed": after is not None}, own)
        while subscriber is None:
            await _reached(channel, own)
            began = asyncio.get_running_loop().time()
            target = channel.position
            async for one in _between(hub, channel, own, target):
                yield one
            own = target
            if asyncio.get_running_loop().time() - began < _NEAR_S and _whole(channel):
                subscriber, target = channel.attach(), channel.position
                async for one in _between(hub, channel, own, target):
                    yield one
        while (live := await subscriber.get()) is not None:
            yield live
        if subscriber.left:
            raise Problem("busy", "the server leaves; come back with the last seq")
    finally:
        if subscriber is not None:
            channel.subscribers.discard(subscriber)


async def _reached(channel: Channel, own: Position) -> None:
    """Wait until the channel has everything that the client has, and stands between transactions.

    Raises:
        InvalidInput: it does not come so far; a database that was set back may not.
    """
    try:
        async with asyncio.timeout(_REACH_S):
            while not (_whole(channel) and channel.position.reaches(own)):
                await channel.moved.wait()
    except TimeoutError:
        raise InvalidInput("after", "it", "a place that this store has come to") from None


def _whole(channel: Channel) -> bool:
    return not channel.position.seen.transaction


async def _between(
    hub: Hub, channel: Channel, own: Position, target: Position
) -> AsyncIterator[Envelope]:
    """What is in one position beyond another."""
    covers, kinds = channel.subscription.covers, channel.subscription.kinds
    feed, seen, marks = hub.store.feed, own.seen, dict(own.marks)
    behind: list[tuple[WriterKey, Progress]] = []
    if channel.wants_rows:
        look = await hub.read(feed.look, (), {*own.marks, *target.marks})
        behind = [item for item in _behind(look, own, target) if covers(item[1].session)]
        # First of all: what is known of changes tells of new writers, whose rows are yet to come.
        marks |= {key: _start(own, key, progress) for key, progress in behind}
    while seen != target.seen:
        changes, seen = await hub.read(feed.changes, seen, target.seen.snapshot, CHANGES_A_PAGE)
        for change in changes:
            if change.kind in kinds and covers(change.session):
                at = Position(change.seen, marks)
                yield channel.write(change.kind, change_data(change), at)
    for key, progress in behind:
        while (mark := marks[key]).seq < progress.mark.seq:
            page = await hub.read(feed.page, key, mark, progress, ROWS_A_PAGE)
            points = points_of(page, channel.subscription)
            data = {"parts": [part(key, progress.session, mark, page.mark, points)]}
            marks[key] = page.mark
            yield channel.write("telemetry", data, Position(seen, marks))


def _behind(look: Look, own: Position, target: Position) -> list[tuple[WriterKey, Progress]]:
    """The writers to read, each with how far; one that the channel does not follow any more is
    read up to now, for the last time."""
    return [
        (key, progress._replace(mark=target.marks.get(key, progress.mark)))
        for key, progress in look.writers.items()
        if key in own.marks or key in target.marks
    ]


def _start(own: Position, key: WriterKey, progress: Progress) -> Mark:
    """Where to read on: a writer that is new from its first row, one that was not followed from
    where it is."""
    known = own.marks.get(key)
    if known is not None:
        return known
    return progress.mark if own.seen.snapshot.sees(progress.created_in) else Mark()
