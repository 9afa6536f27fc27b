"""Events, decisions and configurations: kept once, found again, refused with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from qigstore.errors import InvalidInput, NotFound
from qigstore.records import Candidate, Checkpoint, Decision, Event
from qigstore.repository import Store

pytest_plugins = ["ways"]

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def an_event(session_id: int, **more: Any) -> Event:
    values: dict[str, Any] = {
        "id": uuid4(),
        "session_id": session_id,
        "attempt": 1,
        "rank": 0,
        "step": 12,
        "rule": "loss.ewma",
        "severity": "critical",
        "message": "loss rose",
        "raised_at": NOW,
    }
    return Event(**values | more)


def a_checkpoint(session_id: int, step: int = 1) -> Checkpoint:
    return Checkpoint(
        id=uuid4(),
        session_id=session_id,
        attempt=1,
        step=step,
        kind="regular",
        status="committed",
        path=Path("/data/checkpoints/1"),
        bytes=123,
        digest="ab" * 32,
        weights_finite=True,
        created_at=NOW,
        phi=0.7,
        metadata={"tensors": 3},
    )


@pytest.fixture
def session_id(any_store: Store) -> int:
    return any_store.sessions.open("ocean", {}).id


def test_an_event_is_kept_once_and_comes_back_whole(any_store: Store, session_id: int) -> None:
    event = an_event(
        session_id,
        metric="loss",
        value=math.inf,
        threshold=-0.0,
        action="abort",
        checkpoint_id=uuid4(),
        detail={"window": [1, 2.5], "why": {"z": None}},
    )
    assert any_store.events.add(event)
    assert not any_store.events.add(replace(event, message="another"))
    assert any_store.events.get(event.id) == event
    assert any_store.events.list() == [event]


def test_a_nan_that_raised_an_event_is_kept(any_store: Store, session_id: int) -> None:
    event = an_event(session_id, value=math.nan, detail={"last": [math.nan, math.inf, -math.inf]})
    any_store.events.add(event)
    found = any_store.events.get(event.id)
    assert found.value is not None
    assert math.isnan(found.value)
    assert found.detail == {"last": ["NaN", "Infinity", "-Infinity"]}


def test_events_are_listed_newest_first_by_session_and_severity(
    any_store: Store, session_id: int
) -> None:
    other = any_store.sessions.open("other", {}).id
    made = [
        an_event(session_id, raised_at=NOW + timedelta(seconds=i), severity=severity)
        for i, severity in enumerate(["critical", "info", "warning", "critical"])
    ]
    for event in (*made, an_event(other)):
        any_store.events.add(event)
    events = any_store.events
    assert events.list(session_id) == made[::-1]
    assert events.list(session_id, severity="critical", limit=1) == [made[3]]
    assert len(events.list()) == 5
    with pytest.raises(InvalidInput):
        events.list(severity="bad")  # type: ignore[arg-type]


def test_an_event_is_acknowledged_once(any_store: Store, session_id: int) -> None:
    event = an_event(session_id)
    any_store.events.add(event)
    seen = any_store.events.acknowledge(str(event.id)[:8])
    assert seen.acknowledged_at is not None
    assert any_store.events.acknowledge(event.id) == seen
    with pytest.raises(NotFound):
        any_store.events.acknowledge(uuid4())


def test_the_first_digits_of_an_id_are_enough_where_they_are_one_s(
    any_store: Store, session_id: int
) -> None:
    ids = [UUID(f"abcd{i:04x}-0000-4000-8000-00000000000{i}") for i in range(3)]
    for event_id in ids:
        any_store.events.add(an_event(session_id, id=event_id))
    get = any_store.events.get
    for given in ("abcd0001", "ABCD0001-0000", "abcd00010", str(ids[1]), ids[1].hex):
        assert get(given).id == ids[1]
    with pytest.raises(NotFound) as caught:
        get("abcd")
    assert caught.value.near == tuple(map(str, ids))
    assert "3 ids begin so" in str(caught.value)
    for given in ("abc", "abcd9", "xyz1", "", "%%%%", "abcd0001" * 5):
        with pytest.raises(NotFound):
            get(given)


def test_a_decision_comes_back_with_every_candidate_and_reason(
    any_store: Store, session_id: int
) -> None:
    chosen, refused = a_checkpoint(session_id, 100), a_checkpoint(session_id, 200)
    decision = Decision(
        id=uuid4(),
        session_id=session_id,
        policy="best",
        chosen=chosen,
        candidates=(Candidate(chosen, True, "Φ 0.7"), Candidate(refused, False, "damaged")),
        reason="the best of 2",
        decided_at=NOW,
        attempt=2,
        skip_steps=(150, 170),
    )
    fresh = replace(
        decision, id=uuid4(), chosen=None, candidates=(), skip_steps=None, attempt=3,
        decided_at=NOW + timedelta(days=1),
    )  # fmt: skip
    assert any_store.decisions.add(decision)
    assert not any_store.decisions.add(decision)
    assert any_store.decisions.add(fresh)
    assert any_store.decisions.list(session_id) == [fresh, decision]
    with pytest.raises(InvalidInput, match="dry run"):
        any_store.decisions.add(replace(decision, id=uuid4(), attempt=None))
    with pytest.raises(InvalidInput, match="candidates"):
        any_store.decisions.add(replace(decision, id=uuid4(), chosen=a_checkpoint(session_id)))


@pytest.mark.parametrize(
    "make",
    [
        lambda i: an_event(i, message="a\0b"),
        lambda i: an_event(i, rule="\ud800"),
        lambda i: an_event(i, metric="x" * 200_000),
        lambda i: an_event(i, severity="fatal"),
        lambda i: an_event(i, detail={"a": {"b": "\0"}}),
        lambda i: an_event(i, detail={"a\0": 1}),
        lambda i: an_event(i, detail={1: 1}),
        lambda i: an_event(i, detail={"a": object()}),
        lambda i: an_event(i, detail={"a": b"bytes"}),
        lambda i: an_event(i, detail=[1]),
    ],
)
def test_what_postgresql_refuses_is_refused_by_name_before_it(
    store: Store, make: Callable[[int], Event]
) -> None:
    event = make(store.sessions.open("ocean", {}).id)
    with pytest.raises(InvalidInput):
        store.events.add(event)
    assert store.events.list() == []


def test_an_endless_document_is_refused(store: Store) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(InvalidInput, match="levels"):
        store.sessions.open("ocean", endless)


def test_a_configuration_of_numpy_scalars_paths_and_times_is_kept_as_json(store: Store) -> None:
    run = uuid4()
    config = {
        "lr": np.float32(0.5),
        "seed": np.int64(7),
        "on": np.bool_(True),
        "where": Path("/data/x"),
        "when": NOW,
        "run": run,
        "sizes": (1, 2**70),
        "not a number": np.float64("nan"),
    }
    assert store.sessions.open("ocean", config).config == {
        "lr": 0.5,
        "seed": 7,
        "on": True,
        "where": "/data/x",
        "when": "2026-01-02 03:04:05.678901+00:00",
        "run": str(run),
        "sizes": [1, 2**70],
        "not a number": "NaN",
    }


def test_what_belongs_to_no_session_is_not_kept(any_store: Store) -> None:
    decision = Decision(uuid4(), 10**9, "best", None, (), "nothing", NOW, attempt=1)
    for attempt in (
        lambda: any_store.events.add(an_event(10**9)),
        lambda: any_store.checkpoints.add(a_checkpoint(10**9)),
        lambda: any_store.decisions.add(decision),
    ):
        with pytest.raises(NotFound, match="session"):
            attempt()
