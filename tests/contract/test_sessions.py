"""Sessions, attempts and writers: opened once, numbered without gaps, closed for good."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from senders import Sender

from qigstore.errors import InvalidInput, NotFound
from qigstore.records import AttemptInfo
from qigstore.repository import Store, WriterState

pytest_plugins = ["ways"]


def opened(
    store: Store, session_id: int, attempt_id: UUID | None = None, **more: Any
) -> AttemptInfo:
    return store.sessions.open_attempt(
        session_id, attempt_id or uuid4(), host="here", pid=7, config={"lr": 0.1}, **more
    )


def age(store: Store, attempt_id: UUID, seconds: float) -> None:
    """Put an attempt's last heartbeat back in time."""
    with store.database.raw() as connection:
        connection.execute(
            "UPDATE qigstore.attempt SET heartbeat_at = now() - %s WHERE id = %s",
            (timedelta(seconds=seconds), attempt_id),
        )


def test_opening_a_session_twice_gives_the_same_and_keeps_its_first_config(
    any_store: Store,
) -> None:
    first = any_store.sessions.open("ocean-7", {"lr": 3e-4, "layers": [1, {"b": None}]})
    again = any_store.sessions.open("ocean-7", {"lr": 9.9})
    assert again.id == first.id
    assert again.config == {"lr": 3e-4, "layers": [1, {"b": None}]}
    assert (first.attempts, first.status, first.last_step, first.last_seen_at) == (0,) + (None,) * 3
    assert first.created_at.tzinfo is not None
    assert any_store.sessions.by_id(first.id) == any_store.sessions.get("ocean-7") == again


def test_many_threads_open_one_session_and_number_their_attempts_without_gaps(
    any_store: Store,
) -> None:
    found: list[AttemptInfo] = []

    def work() -> None:
        session = any_store.sessions.open("shared", {})
        found.append(opened(any_store, session.id))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({attempt.session_id for attempt in found}) == 1
    assert sorted(attempt.number for attempt in found) == [1, 2, 3, 4, 5, 6]


def test_the_same_attempt_id_again_gives_the_same_attempt(any_store: Store) -> None:
    session = any_store.sessions.open("a", {})
    first = opened(any_store, session.id)
    assert opened(any_store, session.id, first.id) == first
    assert (first.number, first.pid, first.host, first.config) == (1, 7, "here", {"lr": 0.1})
    with pytest.raises(InvalidInput, match="attempt"):
        opened(any_store, any_store.sessions.open("b", {}).id, first.id)
    with pytest.raises(NotFound, match="session"):
        opened(any_store, 10**9)


def test_an_unknown_session_is_reported_with_the_nearest_names(any_store: Store) -> None:
    for name in ("ocean-7", "ocean-8", "forest"):
        any_store.sessions.open(name, {})
    with pytest.raises(NotFound) as caught:
        any_store.sessions.get("ocaen-7")
    assert set(caught.value.near) == {"ocean-7", "ocean-8"}
    assert "ocean-7" in str(caught.value)
    with pytest.raises(NotFound):
        any_store.sessions.by_id(10**9)


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a\0b", "a\nb", "tab\t", "\u200b", "\ud800", "\x7f", 7, None]
)
def test_a_session_name_is_one_to_two_hundred_printable_characters(
    store: Store, name: object
) -> None:
    with pytest.raises(InvalidInput):
        store.sessions.open(name, {})  # type: ignore[arg-type]
    assert store.sessions.list() == []


def test_any_printable_name_is_kept_as_it_is(any_store: Store) -> None:
    names = ["x" * 200, "Φ 🌊 ocean", "%s'\"\\;--", "NULL", " "]
    for name in names:
        assert any_store.sessions.open(name, {}).name == name
    assert [session.name for session in any_store.sessions.list()] == names[::-1]
    assert [session.name for session in any_store.sessions.list(2, 1)] == names[::-1][1:3]


@pytest.mark.parametrize("limit_s", [30.0, 20.0, 3600.0])
def test_a_running_attempt_silent_for_longer_than_its_own_limit_is_shown_as_lost(
    any_store: Store, limit_s: float
) -> None:
    """By every reader: the limit is the attempt's, whatever the reader's settings."""
    session = any_store.sessions.open("a", {})
    more = {} if limit_s == 30.0 else {"heartbeat_limit_s": limit_s}
    attempt = opened(any_store, session.id, **more)
    assert attempt.heartbeat_limit_s == limit_s
    sessions = any_store.sessions

    def shown() -> set[str | None]:
        (mine,) = sessions.attempts(session.id)
        alone = sessions.attempt(attempt.id)
        assert alone is not None
        with any_store.database.raw() as connection:
            view = connection.execute("SELECT status FROM qigstore.session_stats").fetchone()
        assert view is not None
        listed, one = sessions.list()[0].status, sessions.get("a").status
        return {listed, one, sessions.by_id(session.id).status, mine.status, alone.status, *view}

    age(any_store, attempt.id, limit_s / 2)
    assert shown() == {"running"}
    age(any_store, attempt.id, limit_s + 1)
    assert shown() == {"lost"}
    assert sessions.heartbeat(attempt.id)
    age(any_store, attempt.id, limit_s / 2)
    assert shown() == {"running"}


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_heartbeat_limit_that_is_none_is_refused(any_store: Store, limit_s: float) -> None:
    session = any_store.sessions.open("a", {})
    with pytest.raises(InvalidInput, match="heartbeat_limit_s"):
        opened(any_store, session.id, heartbeat_limit_s=limit_s)
    assert any_store.sessions.attempts(session.id) == []


def test_an_attempt_ends_once_but_a_lost_one_may_still_say_how(any_store: Store) -> None:
    session = any_store.sessions.open("a", {})
    attempt = opened(any_store, session.id)
    age(any_store, attempt.id, 100)
    close = any_store.sessions.close_attempt
    assert close(attempt.id, "lost", reason="silent")
    assert not close(attempt.id, "lost", reason="again")
    (lost,) = any_store.sessions.attempts(session.id)
    assert (lost.status, lost.reason, lost.ended_at) == ("lost", "silent", lost.heartbeat_at)
    assert not any_store.sessions.heartbeat(attempt.id)
    assert close(attempt.id, "aborted", reason="it came back", exit_status=75)
    assert not close(attempt.id, "completed")
    (ended,) = any_store.sessions.attempts(session.id)
    assert (ended.status, ended.reason, ended.exit_status) == ("aborted", "it came back", 75)
    assert ended.ended_at is not None
    assert datetime.now(UTC) - ended.ended_at < timedelta(minutes=5)
    with pytest.raises(InvalidInput):
        close(attempt.id, "running")
    with pytest.raises(NotFound):
        close(uuid4(), "lost")


def test_lineage_names_the_checkpoint_and_its_step(any_store: Store) -> None:
    session = any_store.sessions.open("a", {})
    attempt = opened(any_store, session.id)
    assert (attempt.resumed_from, attempt.resumed_step) == (None, None)
    source = uuid4()
    any_store.sessions.set_lineage(attempt.id, source, 500)
    (found,) = any_store.sessions.attempts(session.id)
    assert (found.resumed_from, found.resumed_step) == (source, 500)
    any_store.sessions.set_lineage(attempt.id, None, -1)
    assert any_store.sessions.attempts(session.id)[0].resumed_step == -1
    with pytest.raises(NotFound):
        any_store.sessions.set_lineage(uuid4(), None, 0)


def test_a_session_tells_how_far_its_newest_attempt_came(any_store: Store) -> None:
    first = Sender(any_store, "a")
    first.send(range(100))
    second = Sender(any_store, "a")
    assert any_store.sessions.get("a").last_step == 99
    second.send(range(40, 50))
    other_rank = Sender(any_store, "a", rank=1, of=second.attempt)
    other_rank.send(range(40, 53))
    found = any_store.sessions.get("a")
    assert (found.attempts, found.status, found.last_step) == (2, "running", 52)
    assert found.last_seen_at is not None
    assert found == any_store.sessions.list()[0]


def test_a_writer_is_registered_once_for_its_attempt_and_rank(any_store: Store) -> None:
    session = any_store.sessions.open("a", {})
    attempt, other = opened(any_store, session.id), opened(any_store, session.id)
    writers, mine, second = any_store.writers, uuid4(), uuid4()
    assert writers.register(mine, attempt.id, 0) == WriterState(epoch=1, acked_seq=0)
    assert writers.take_over(mine) == WriterState(epoch=2, acked_seq=0)
    assert writers.register(mine, attempt.id, 0) == writers.state(mine)
    for writer_id, attempt_id, rank in (
        (uuid4(), attempt.id, 0),
        (mine, attempt.id, 1),
        (mine, other.id, 0),
    ):
        with pytest.raises(InvalidInput, match="one writer"):
            writers.register(writer_id, attempt_id, rank)
    writers.register(second, attempt.id, 1)
    assert writers.of_attempt(attempt.id) == [mine, second]
    assert writers.of_attempt(other.id) == []
    for unknown in (writers.state, writers.take_over):
        with pytest.raises(NotFound, match="writer"):
            unknown(uuid4())
    with pytest.raises(NotFound, match="attempt"):
        writers.register(uuid4(), uuid4(), 0)
    with pytest.raises(InvalidInput):
        writers.register(uuid4(), attempt.id, -1)


def test_take_overs_at_once_give_each_its_own_epoch(any_store: Store, rng: random.Random) -> None:
    sender = Sender(any_store)
    epochs: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: epochs.append(any_store.writers.take_over(sender.writer).epoch)
        )
        for _ in range(rng.randrange(4, 7))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(2, len(threads) + 2))


def test_the_list_finds_those_whose_newest_attempt_stands_so(any_store: Store) -> None:
    for name, ends in (("a", ["lost", None]), ("b", [None]), ("c", ["failed"]), ("d", [])):
        session = any_store.sessions.open(name, {})
        for end in ends:
            attempt = uuid4()
            any_store.sessions.open_attempt(session.id, attempt, host="h", pid=1, config={})
            if end is not None:
                any_store.sessions.close_attempt(attempt, end)
    listed = any_store.sessions.list
    assert [each.name for each in listed(status="running")] == ["b", "a"]
    assert [each.name for each in listed(1, 1, status="running")] == ["a"]
    assert [each.name for each in listed(status="failed")] == ["c"]
    assert listed(status="completed") == []
