"""Requests to stop, on each way to reach the server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from qigstore.errors import InvalidInput, NotFound, NotRunning
from qigstore.records import AttemptInfo
from qigstore.repository import Store

pytest_plugins = ["ways"]


@pytest.fixture
def attempt(any_store: Store) -> AttemptInfo:
    session = any_store.sessions.open("ocean", {})
    return any_store.sessions.open_attempt(session.id, uuid4(), host="here", pid=7, config={})


def test_a_request_is_heard_acknowledged_and_answered_at_the_end(
    any_store: Store, attempt: AttemptInfo
) -> None:
    stops = any_store.stops
    assert stops.heard(attempt.id) is None
    asked = stops.request(attempt.session_id, reason="hot", by="ada", checkpoint=False)
    assert (asked.attempt, asked.rule, asked.action) == (1, "stop", "abort")
    assert (asked.message, asked.detail) == ("asked to stop by ada: hot", {"checkpoint": False})
    heard = stops.heard(attempt.id)
    assert heard is not None
    assert heard.acknowledged_at is not None
    assert stops.heard(attempt.id) == heard
    assert any_store.sessions.close_attempt(attempt.id, "aborted", exit_status=75)
    (event,) = any_store.events.list()
    assert event.resolved_at is not None
    assert event.detail == {"checkpoint": False, "result": "aborted, exit status 75"}


def test_many_who_ask_at_once_ask_once(any_store: Store, attempt: AttemptInfo) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {
            asked.id
            for asked in pool.map(lambda _: any_store.stops.request(attempt.session_id), range(32))
        }
    assert len(ids) == len(any_store.events.list()) == 1


def test_the_next_attempt_is_not_stopped_by_a_request_for_the_last(
    any_store: Store, attempt: AttemptInfo
) -> None:
    any_store.stops.request(attempt.session_id)
    any_store.sessions.close_attempt(attempt.id, "aborted")
    second = any_store.sessions.open_attempt(
        attempt.session_id, uuid4(), host="here", pid=8, config={}
    )
    assert any_store.stops.heard(second.id) is None
    assert any_store.stops.request(attempt.session_id).attempt == 2


def test_what_does_not_run_cannot_be_asked(any_store: Store, attempt: AttemptInfo) -> None:
    silent = "UPDATE qigstore.attempt SET heartbeat_at = now() - interval '31 s'"
    with any_store.database.raw() as connection:
        connection.execute(silent)
    with pytest.raises(NotRunning, match="lost"):
        any_store.stops.request(attempt.session_id)
    any_store.sessions.close_attempt(attempt.id, "failed", reason="out of memory")
    with pytest.raises(NotRunning, match=r"failed \(out of memory\)") as refused:
        any_store.stops.request(attempt.session_id)
    assert (refused.value.session, refused.value.status) == ("ocean", "failed")
    with pytest.raises(NotFound):
        any_store.stops.request(attempt.session_id + 1000)


@pytest.mark.parametrize("bad", ["nul\x00", "\ud800"])
def test_a_reason_that_cannot_be_stored_is_refused(
    any_store: Store, attempt: AttemptInfo, bad: str
) -> None:
    for words in ({"reason": bad}, {"by": bad}):
        with pytest.raises(InvalidInput):
            any_store.stops.request(attempt.session_id, **words)
    assert any_store.events.list() == []
