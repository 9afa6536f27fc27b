"""A channel: what it sends, when, and what it keeps for whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from qigstore.records import TelemetryRow
from qigstore.repository.feed import Look, Mark, Page, Progress, Seen, WriterKey
from qigstore.repository.snapshots import Snapshot
from qigstore.server.stream import channel as channels
from qigstore.server.stream.channel import Channel, Subscriber
from qigstore.server.stream.position import read_token
from qigstore.server.stream.subscription import Subscription

KEY, STORE = WriterKey(1, 1, 0), UUID(int=7)
START = Seen(Snapshot(10))


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@contextmanager
def one_moment() -> Iterator[None]:
    """The loop's clock stands still: what is told in here comes at once, however long it takes."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(loop, "time", lambda: now)
        yield


def page(first: int, last: int) -> Page:
    now = datetime.now(UTC)
    rows = [TelemetryRow(1, 0, n, n, now, None, {"loss": float(n)}) for n in range(first, last + 1)]
    return Page(rows, Mark(last, last))


def opened(**wishes: Any) -> Channel:
    return Channel(Subscription.of(wishes), STORE, START, {KEY: Mark()})


async def had(subscriber: Subscriber, count: int) -> list[dict[str, Any]]:
    return [json.loads(one.text) for _ in range(count) if (one := await subscriber.get())]


@in_loop
async def test_every_row_comes_at_once_where_all_are_asked_for() -> None:
    channel = opened(rate="all")
    subscriber = channel.attach()
    channel.take_rows(KEY, "ocean", page(1, 3))
    channel.take_rows(KEY, "ocean", page(4, 4))
    first, second = await had(subscriber, 2)
    (part,) = first["data"]["parts"]
    assert (part["first_seq"], part["last_seq"], len(part["rows"])) == (1, 3, 3)
    (part,) = second["data"]["parts"]
    assert (part["first_seq"], part["last_seq"]) == (4, 4)
    place = read_token(second["seq"], STORE, channel.subscription.scope)
    assert place == channel.position
    assert place.marks == {KEY: Mark(4, 4)}


@in_loop
async def test_what_comes_faster_waits_as_one_bucket_and_is_not_yet_had() -> None:
    channel = opened(rate=10)
    subscriber = channel.attach()
    with one_moment():
        channel.take_rows(KEY, "ocean", page(1, 1))  # the first goes at once
        for n in range(2, 202):
            channel.take_rows(KEY, "ocean", page(n, n))
        assert channel.position.marks == {KEY: Mark(1, 1)}
    first, second = await had(subscriber, 2)
    assert first["data"]["parts"][0]["rows"][0]["metrics"] == {"loss": 1.0}
    (part,) = second["data"]["parts"]
    assert (part["first_seq"], part["last_seq"]) == (2, 201)
    (bucket,) = part["buckets"]
    assert (bucket["rows"], bucket["first_step"], bucket["last_step"]) == (200, 2, 201)
    assert bucket["metrics"]["loss"] == {"min": 2.0, "max": 201.0, "mean": 101.5, "count": 200}
    assert channel.position.marks == {KEY: Mark(201, 201)}
    channel.close()


@in_loop
async def test_one_that_takes_nothing_keeps_a_bounded_queue_and_holds_up_nobody() -> None:
    channel = opened(rate="all")
    silent, reading = channel.attach(), channel.attach()
    most = channels.QUEUE_ENVELOPES_MAX
    for n in range(1, 3 * most):
        channel.take_rows(KEY, "ocean", page(n, n))
        (one,) = await had(reading, 1)
        assert one["data"]["parts"][0]["last_seq"] == n
        assert len(silent._queue) <= most
    assert silent.slow
    assert len(silent._queue) == 0
    assert await silent.get() is None
    assert not reading.slow


@in_loop
async def test_a_queue_is_bounded_by_its_characters_too() -> None:
    channel = opened(rate="all")
    silent = channel.attach()
    last = kept = 0
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(channels, "QUEUE_CHARACTERS_MAX", 100_000)
        while not silent.slow:
            kept = max(kept, sum(len(one.text) for one in silent._queue))
            channel.take_rows(KEY, "ocean", page(last + 1, last + 100))
            last += 100
            assert last < 10**5
    assert 50_000 < kept <= 100_000


@in_loop
async def test_a_part_too_large_for_one_envelope_is_several() -> None:
    keys = [WriterKey(1, 1, rank) for rank in range(4)]
    channel = Channel(Subscription.of({"rate": 1}), STORE, START, {k: Mark() for k in keys})
    subscriber = channel.attach()
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(channels, "_POINTS_AN_ENVELOPE", 2)
        with one_moment():
            for key in keys:
                channel.take_rows(key, "ocean", page(1, 1))
        _, *rest = await had(subscriber, 3)
    assert [len(one["data"]["parts"]) for one in rest] == [2, 1]
    # Each envelope's place is that of itself, not of the whole flush.
    place = read_token(rest[0]["seq"], STORE, channel.subscription.scope)
    assert [place.marks[key].seq for key in keys] == [1, 1, 1, 0]
    channel.close()


@in_loop
async def test_a_server_that_leaves_lets_what_waits_be_taken_first() -> None:
    channel = opened(rate="all")
    subscriber = channel.attach()
    channel.take_rows(KEY, "ocean", page(1, 1))
    subscriber.leave()
    assert len(await had(subscriber, 1)) == 1
    assert await subscriber.get() is None
    assert subscriber.left
    assert not subscriber.slow


def progress(seq: int, created_in: int = 1, session: str = "ocean") -> Progress:
    return Progress(session, Mark(seq, seq), 0, created_in)


@in_loop
async def test_the_hub_follows_new_writers_from_their_first_row_and_old_ones_from_now() -> None:
    from qigstore.server.stream.hub import Hub

    class NoStore:
        feed: Any = None

    hub = Hub(NoStore())  # type: ignore[arg-type]
    hub.streams = 1
    other, third = WriterKey(1, 2, 0), WriterKey(2, 1, 0)
    assert hub.looked(Look(Snapshot(10), True, {KEY: progress(5)})) == {}
    assert hub._ready.is_set()
    asked = Subscription.of({"sessions": ["ocean"], "rate": "all"})
    channel = hub._opened(asked)
    hub._channels[asked] = channel
    # One made by a transaction that the hub had not seen, and one of an older transaction that
    # was not among those followed.
    found: Sequence[tuple[WriterKey, Progress]] = [
        (KEY, progress(8)), (other, progress(3, created_in=12)), (third, progress(9, session="x")),
    ]  # fmt: skip
    wanted = hub.looked(Look(Snapshot(15), True, dict(found)))
    assert wanted == {KEY: Mark(5, 5), other: Mark()}
    assert channel.position.marks == {KEY: Mark(5, 5), other: Mark()}
    hub.take_rows(KEY, "ocean", page(6, 8))
    assert channel.position.marks[KEY] == Mark(8, 8)
    # A writer that is gone is forgotten, and rows of it that were on the way go nowhere.
    hub.looked(Look(Snapshot(16), True, {KEY: progress(8)}))
    hub.take_rows(other, "ocean", page(1, 3))
    assert set(channel.position.marks) == {KEY}
