"""The feed: read on from any place, in pages of any size, it leaves out and repeats nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from processes import wait_until
from senders import Sender

from qigstore.database.engine import Database
from qigstore.records import Checkpoint, Event
from qigstore.repository import Store
from qigstore.repository.feed import Mark, Progress, Seen, WriterKey

pytest_plugins = ["ways"]

ADD = """INSERT INTO qigstore.event (id, session_id, attempt, rule, severity, message)
         VALUES (%s, %s, 1, 'test', 'info', '')"""


class Follower:
    """Reads on from a place; now and then it is cut off in the middle of a page."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store, self.rng = store, rng
        self.seen = Seen(store.feed.look().snapshot)
        self.had: dict[UUID, int] = {}
        self.versions: set[tuple[UUID, int]] = set()
        self.repeats: list[UUID] = []

    def read(self) -> None:
        """Everything that is there now; cut off, it goes on from the last that it had."""
        until = self.store.feed.look().snapshot
        while self.seen != Seen(until):
            changes, seen = self.store.feed.changes(self.seen, until, self.rng.randint(1, 4))
            kept = changes[: self.rng.randint(0, len(changes))] if changes else []
            for change in kept:
                # A later change may be of a transaction that began before, so of a smaller number.
                version = (change.record.id, change.transaction)
                if version in self.versions:
                    self.repeats.append(change.record.id)
                self.versions.add(version)
                self.had[change.record.id] = change.transaction
            if len(kept) == len(changes):
                self.seen = seen
            elif kept:
                self.seen = kept[-1].seen
            if self.rng.random() < 0.2:
                until = self.store.feed.look().snapshot


@contextmanager
def connections(dsn: str, count: int) -> Iterator[list[psycopg.Connection]]:
    opened = [psycopg.connect(dsn) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


def test_overlapping_transactions_that_commit_in_any_order(
    any_store: Store, any_dsn: str, rng: random.Random
) -> None:
    sender = Sender(any_store)
    follower = Follower(any_store, rng)
    known: list[UUID] = []
    held: list[list[UUID]] = [[] for _ in range(4)]
    with connections(any_dsn, 4) as open_ones:
        for _ in range(150):
            number = rng.randrange(4)
            connection, act = open_ones[number], rng.random()
            if act < 0.45:
                held[number].append(uuid4())
                connection.execute(ADD, (held[number][-1], sender.id))
            elif act < 0.55 and known:
                # Each connection touches its own, so that none waits for another.
                mine = [one for n, one in enumerate(known) if n % 4 == number]
                change = "UPDATE qigstore.event SET acknowledged_at = now() WHERE id = ANY(%s)"
                connection.execute(change, (mine[-2:],))
            elif act < 0.7:
                connection.commit()
                known += held[number]
                held[number] = []
            elif act < 0.8:
                connection.rollback()
                held[number] = []
            else:
                follower.read()
        for connection in open_ones:
            for _ in range(3):
                connection.execute(ADD, (uuid4(), sender.id))
            connection.commit()
    follower.read()
    with any_store.database.begin() as reading:
        found = reading.exec_driver_sql("SELECT id, changed_in FROM qigstore.change")
        stored = {row[0]: row[1] for row in found}
    assert len(stored) >= 12
    assert follower.had == stored
    assert follower.repeats == []


def test_one_transaction_of_many_events_can_be_left_anywhere(
    store: Store, dsn: str, rng: random.Random
) -> None:
    sender = Sender(store)
    follower = Follower(store, rng)
    with psycopg.connect(dsn) as connection:
        ids = [uuid4() for _ in range(40)]
        for one in ids:
            connection.execute(ADD, (one, sender.id))
    follower.read()
    assert set(follower.had) == set(ids)
    assert follower.repeats == []


def test_one_transaction_known_in_part_while_an_older_one_commits(store: Store, dsn: str) -> None:
    sender = Sender(store)
    seen = Seen(store.feed.look().snapshot)
    late, first, second = uuid4(), *sorted((uuid4(), uuid4()))
    with connections(dsn, 2) as (slow, quick):
        slow.execute(ADD, (late, sender.id))
        quick.execute(ADD, (first, sender.id))
        quick.execute(ADD, (second, sender.id))
        quick.commit()
        (change,), _ = store.feed.changes(seen, store.feed.look().snapshot, 1)
        assert change.record.id == first
        slow.commit()
        had, seen = [first], change.seen
        for most in (1, 5):  # cut off after one, and not at all
            changes, end = store.feed.changes(seen, store.feed.look().snapshot, most)
            had += [one.record.id for one in changes]
            seen = changes[-1].seen if most == 1 else end
    assert sorted(had) == sorted([first, second, late])
    assert store.feed.changes(seen, store.feed.look().snapshot, 5)[0] == []


def test_what_the_repository_changes_comes_as_it_is_now(store: Store) -> None:
    sender = Sender(store)
    seen = Seen(store.feed.look().snapshot)

    def news() -> list[tuple[str, str, UUID]]:
        nonlocal seen
        changes, seen = store.feed.changes(seen, store.feed.look().snapshot, 100)
        return [(change.kind, change.session, change.record.id) for change in changes]

    event = Event(
        id=uuid4(), session_id=sender.id, attempt=1, rank=0, step=3, rule="finite",
        severity="critical", message="loss is NaN", raised_at=datetime.now(UTC),
    )  # fmt: skip
    store.events.add(event)
    assert news() == [("event", "ocean", event.id)]
    assert news() == []
    store.events.acknowledge(event.id)
    assert news() == [("event", "ocean", event.id)]
    store.events.resolve(event.id, "over")
    assert news() == [("event", "ocean", event.id)]
    saved = Checkpoint(
        id=uuid4(), session_id=sender.id, attempt=1, step=3, kind="regular", status="committed",
        path=Path("somewhere"), bytes=1, digest="d", weights_finite=True,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    store.checkpoints.add(saved)
    assert news() == [("checkpoint", "ocean", saved.id)]
    store.checkpoints.set_status(saved.id, "quarantined", "damaged")
    assert news() == [("checkpoint", "ocean", saved.id)]
    store.checkpoints.put(saved)
    assert news() == [("checkpoint", "ocean", saved.id)]


def _follow(
    store: Store, key: WriterKey, mark: Mark, progress: Progress, most: int
) -> Iterator[tuple[Mark, Mark, list[tuple[int, int]]]]:
    while mark.seq < progress.mark.seq:
        page = store.feed.page(key, mark, progress, most)
        yield mark, page.mark, [(row.seq, row.step) for row in page.rows]
        mark = page.mark


def test_rows_come_once_in_the_order_of_their_records_whatever_their_steps(
    any_store: Store, rng: random.Random
) -> None:
    sender = Sender(any_store)
    key = WriterKey(sender.id, 1, 0)
    mark, had, latest = Mark(), [], {}
    step = 0
    for _ in range(25):
        back = rng.random() < 0.2  # now and then it goes back, and repeats steps
        step = max(0, step - rng.randint(1, 15)) if back else step + 1
        steps = []
        for _ in range(rng.randint(1, 12)):
            steps.append(step)
            step += rng.choice((0, 1, 1, 2) if rng.random() < 0.9 else (-2,))
            step = max(step, 0)
        sender.send(steps)
        if rng.random() < 0.6:
            continue
        progress = any_store.feed.look().writers[key]
        assert progress.mark.seq == sender.acked
        for before, after, rows in _follow(any_store, key, mark, progress, rng.randint(1, 9)):
            assert all(before.seq < seq <= after.seq for seq, _ in rows)
            had += [seq for seq, _ in rows]
            latest.update({step: seq for seq, step in rows})
            mark = after
    progress = any_store.feed.look().writers[key]
    for _, after, rows in _follow(any_store, key, mark, progress, 7):
        had += [seq for seq, _ in rows]
        latest.update({step: seq for seq, step in rows})
        mark = after
    assert mark.seq == sender.acked
    assert had == sorted(set(had))
    assert latest == {row.step: row.seq for row in any_store.telemetry.rows(sender.id)}


def test_steps_in_order_are_found_by_the_key(store: Store) -> None:
    sender = Sender(store)
    for first in range(0, 300, 10):
        sender.send(list(range(first, first + 10)))
    progress = store.feed.look().writers[WriterKey(sender.id, 1, 0)]
    assert progress.reordered_seq == 0
    assert progress.mark == (300, 299)
    sender.send([300, 300, 301])
    sender.send([301, 302])
    assert store.feed.look().writers[WriterKey(sender.id, 1, 0)].reordered_seq == 0
    sender.send([303, 302, 304])
    assert store.feed.look().writers[WriterKey(sender.id, 1, 0)].reordered_seq == 308
    sender.send([305])
    sender.send([9])
    assert store.feed.look().writers[WriterKey(sender.id, 1, 0)].reordered_seq == 310


def test_a_look_names_the_writers_heard_of_last_and_those_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders = [Sender(store, f"s{n}") for n in range(5)]
    for sender in (*senders, senders[1]):
        sender.send([len(store.telemetry.rows(sender.id))])
    keys = [WriterKey(sender.id, 1, 0) for sender in senders]
    assert set(store.feed.look().writers) == set(keys)
    assert set(store.feed.look([senders[0].id]).writers) == {keys[0]}
    assert set(store.feed.look([], keys[2:4]).writers) == set(keys[2:4])
    assert store.feed.look([], [WriterKey(10**6, 1, 0)]).writers == {}
    monkeypatch.setattr("qigstore.repository.feed.FOLLOWED_MAX", 2)
    assert set(store.feed.look().writers) == {keys[1], keys[4]}
    assert set(store.feed.look(keys=[keys[0]]).writers) == {keys[0], keys[1], keys[4]}


def test_a_batch_and_an_event_are_heard_once_committed(any_database: Database) -> None:
    store = Store(any_database)
    sender = Sender(store)
    with store.feed.listening() as heard:
        assert not heard(0.0)
        sender.send([0, 1])
        assert heard(60.0)
        store.events.add(
            Event(
                id=uuid4(), session_id=sender.id, attempt=1, rank=0, step=None, rule="r",
                severity="info", message="m", raised_at=datetime.now(UTC),
            )
        )  # fmt: skip
        assert heard(60.0)
        assert not heard(0.0)


def test_a_look_says_whether_a_crash_could_undo_it(any_store: Store) -> None:
    def durable() -> bool:
        any_store.feed.make_durable()
        return any_store.feed.look().durable  # unless somebody else logged something meanwhile

    wait_until(durable, "what was logged is on the disk", 60)
