"""Newest rows, statistics, shares of regimes and pages of rows, against the rows themselves."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from senders import Sender, rows

from qigstore import query
from qigstore.database.views import REGIMES
from qigstore.errors import InvalidInput, NotFound
from qigstore.records import TelemetryRow
from qigstore.repository import Store

pytest_plugins = ["ways"]


def same(found: TelemetryRow, expected: TelemetryRow) -> bool:
    """Equal, NaN to NaN."""
    return repr(found) == repr(expected)


def test_latest_is_the_newest_row_of_each_session_in_the_order_asked_for(any_store: Store) -> None:
    for name, steps in (("a", [1, 2]), ("b", [9]), ("c", [])):
        sender = Sender(any_store, name)
        if steps:
            values = {"loss": [math.nan] * len(steps), f"of {name}": [0.5] * len(steps)}
            sender.send(steps, values, regime=[1] * len(steps))
    Sender(any_store, "a").send([0], {"phi": [0.25]})  # a later attempt, at an earlier step
    found = query.latest(any_store, ["b", "c", "a"])
    assert [each.session for each in found.rows] == ["b", "a"]
    for each in found.rows:
        expected = any_store.telemetry.latest(any_store.sessions.get(each.session).id)
        assert expected is not None
        assert same(each.row, expected)
    assert [each.session for each in query.latest(any_store).rows] == ["b", "a"]
    assert [each.session for each in query.latest(any_store, limit=2).rows] == ["b"]
    assert [each.session for each in query.latest(any_store, []).rows] == []


def test_latest_names_a_session_that_does_not_exist(store: Store) -> None:
    Sender(store, "ocean").send([0])
    with pytest.raises(NotFound, match=r"'oceam'.*ocean"):
        query.latest(store, ["ocean", "oceam"])
    with pytest.raises(InvalidInput, match="session name"):
        query.latest(store, ["a\0b"])
    for given in ({"limit": 0}, {"limit": 10**9}, {"sessions": ["a"] * 10_001}):
        with pytest.raises(InvalidInput, match="10,000"):
            query.latest(store, **given)


def test_statistics_count_what_is_there(store: Store) -> None:
    sender = Sender(store)
    sender.send(range(10), {"loss": [1.0] * 10, "mine": [2.0] * 10})
    Sender(store, rank=1, of=sender.attempt).send([3, 3, 4], {"phi": [0.5] * 3})
    found = query.statistics(store, "ocean")
    assert (found.rows, found.repeated_rows, found.first_step) == (12, 1, 0)
    assert (found.session.name, found.session.last_step) == ("ocean", 9)
    assert [(c.rank, c.rows) for c in found.counts] == [(0, 10), (1, 2)]
    assert found.metrics == ("loss", "phi", "mine")
    assert (found.critical, found.checkpoints, found.best_phi) == (0, 0, None)
    assert [attempt.number for attempt in found.attempts] == [1]
    store.sessions.open("empty", {})
    assert query.statistics(store, "empty").metrics == ()
    with pytest.raises(NotFound, match="ocean"):
        query.statistics(store, "ocea")


def test_statistics_name_every_metric_however_rarely_it_was_recorded(
    store: Store, rng: random.Random
) -> None:
    first = Sender(store)
    rare = rng.sample(range(3, 4990), 5)
    names = rng.sample(["accuracy", "phi", "curvature", "grounding", "coherence_drift"], 5)
    for at in range(0, 5000, 500):
        for step in range(at, at + 500, 100):
            first.send(range(step, step + 100), {"loss": [1.0] * 100})
    for step, name in zip(rare, names, strict=True):
        first.send([step], {"loss": [1.0], name: [math.nan]})
    second = Sender(store)
    second.send([7], {"kappa_eff": [64.0]})
    found = query.statistics(store, "ocean").metrics
    assert set(found) == {"loss", "kappa_eff", *names}
    before = len(query.statistics(store, "ocean").metrics)
    first.send([5000], {"learning_rate": [0.1]})
    assert len(query.statistics(store, "ocean").metrics) == before + 1


def test_regime_shares_are_those_of_the_timeline(store: Store, rng: random.Random) -> None:
    expected: dict[int, int | None] = {}
    for back in (0, 30, 55):
        sender = Sender(store)
        steps = [step for step in range(back, 90) if step != 60 or back != 55]
        codes = [rng.randrange(-1, len(REGIMES)) for _ in steps]
        sender.ship(rows(steps, {"loss": [0.0] * len(steps)}, regime=codes))
        expected |= dict(zip(steps, codes, strict=True))
    counts = Counter(None if code == -1 else REGIMES[code or 0] for code in expected.values())
    found = query.regime_shares(store, "ocean")
    assert dict(zip(found.regime, found.rows.tolist(), strict=True)) == counts
    assert found.share.sum() == pytest.approx(1.0)
    assert (found.rows[:-1] >= found.rows[1:]).all()
    assert query.regime_shares(store, "ocean", start=60, stop=61).rows.tolist() == [1]
    assert len(query.regime_shares(store, "ocean", attempt=7)) == 0


def test_pages_have_every_row_once_whatever_is_stored_between_them(
    store: Store, rng: random.Random
) -> None:
    senders = []
    for _ in range(3):
        first = Sender(store)
        senders += [first, Sender(store, rank=1, of=first.attempt)]
    for sender in senders[:-1]:  # the last one has nothing yet
        sender.send(range(rng.randrange(1, 40)), regime=None)
    there = [row for each in senders for row in each.read()]
    there.sort(key=lambda row: (row.attempt, row.rank, row.step))
    found: list[TelemetryRow] = []
    after = None
    while True:
        page = query.rows(store, "ocean", after=after, limit=rng.choice([1, 3, 11]))
        found += page.rows
        sender = rng.choice(senders)
        sender.send([max([row.step for row in sender.read()], default=0) + 1])
        after = page.next
        if after is None:
            break
    keys = [(row.attempt, row.rank, row.step) for row in found]
    assert keys == sorted(set(keys))
    assert {(row.attempt, row.rank, row.step) for row in there} <= set(keys)


def test_pages_of_a_part_are_that_part(store: Store) -> None:
    first = Sender(store)
    first.send(range(10), {"loss": [float(i) for i in range(10)]})
    Sender(store, rank=1, of=first.attempt).send(range(10))
    Sender(store).send(range(5, 8))
    page = query.rows(store, "ocean", attempt=1, rank=0, start=2, stop=7, limit=3)
    assert [row.step for row in page.rows] == [2, 3, 4]
    page = query.rows(store, "ocean", attempt=1, rank=0, start=2, stop=7, limit=3, after=page.next)
    assert [row.step for row in page.rows] == [5, 6]
    assert page.next is None
    assert page.rows[0].metrics == {"loss": 5.0}
    exact = query.rows(store, "ocean", attempt=2, limit=3)
    assert (len(exact.rows), exact.next) == (3, None)


def test_a_cursor_is_opaque_stable_and_of_its_session(store: Store) -> None:
    for name in ("ocean", "other"):
        Sender(store, name).send(range(3))
    cursor = query.rows(store, "ocean", limit=1).next
    assert cursor is not None
    assert cursor == query.rows(store, "ocean", limit=1).next
    changed = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for bad in ("", "x", "=", "é", changed, cursor + "A", cursor[:-1], "A" * 100_000, None):
        if bad is None:
            continue
        with pytest.raises(InvalidInput, match="after"):
            query.rows(store, "ocean", after=bad)
    with pytest.raises(InvalidInput, match="after"):
        query.rows(store, "other", after=cursor)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10**9}, "10,000"),
        ({"start": 3, "stop": 2}, "stop"),
        ({"start": -3}, "start"),
    ],
)
def test_pages_out_of_bounds_are_refused(store: Store, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        query.rows(store, "ocean", **given)
    with pytest.raises(NotFound, match="session"):
        query.rows(store, "ocean")
