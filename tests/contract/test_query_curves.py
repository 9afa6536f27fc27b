"""Curves of whole sessions against a model that goes through every row, after random lives."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from figures import figure, in_parts
from senders import Sender

from qigstore.errors import InvalidInput, NotFound
from qigstore.query import POINTS_MAX, Curve, compare, curve
from qigstore.query import curves as query_curves
from qigstore.repository import Store, curve_buckets
from qigstore.repository import curves as stored_curves

pytest_plugins = ["ways"]

ODD = (math.nan, math.inf, -math.inf, -0.0, 5e-324)
LIVES = 10


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows a bucket and few parts a level: short histories have many levels."""
    monkeypatch.setattr(curve_buckets, "BUCKET_ROWS", 4)
    monkeypatch.setattr(curve_buckets, "FACTOR", 2)
    monkeypatch.setattr(stored_curves, "_RAW_ROWS_A_POINT", 2)
    monkeypatch.setattr(query_curves, "_RAW_ROWS_A_POINT", 2)
    monkeypatch.setattr(query_curves, "_ROWS_AT_ONCE", 7)


class Life:
    """A session of random attempts, and its rows by attempt, rank and step."""

    def __init__(self, store: Store, name: str, rng: random.Random) -> None:
        self.store, self.name, self.rng = store, name, rng
        self.rows: dict[tuple[int, int, int], dict[str, float]] = {}
        self.resumed: dict[int, int] = {}
        self.ranks = rng.choice([1, 1, 2, 3])
        for number in range(1, rng.randrange(2, 6)):
            self.attempt(number)

    def attempt(self, number: int) -> None:
        rng = self.rng
        first = Sender(self.store, self.name)
        self.id = first.id
        back = -1
        if rng.random() < 0.7:
            reached = max((step for _, _, step in self.rows), default=0)
            back = rng.choice([-1, rng.randrange(reached + 1), reached // 2])
            self.store.sessions.set_lineage(first.attempt.id, None, back)
            self.resumed[number] = back
        stride, gap = rng.choice([1, 1, 1, 7]), rng.random() < 0.3
        for rank in range(self.ranks):
            sender = first if rank == 0 else Sender(self.store, self.name, rank, of=first.attempt)
            at = back + 1 if rng.random() < 0.9 else rng.randrange(20)
            for _ in range(rng.choice([0, 1, 3, 6])):
                steps = [at + stride * i for i in range(rng.choice([1, 5, 40]))]
                self.send(sender, steps)
                at = steps[-1] + stride + (30 if gap else 0)
                if rng.random() < 0.1:
                    at = max(0, at - 10)

    def send(self, sender: Sender, steps: Sequence[int]) -> None:
        rng = self.rng
        odd, names = rng.choice([0.0, 0.3]), rng.choice([["loss"], ["loss", "mine"], ["phi"]])
        values = {
            name: [rng.choice(ODD) if rng.random() < odd else rng.gauss(0, 1) for _ in steps]
            for name in names
        }
        sender.send(steps, values)
        for i, step in enumerate(steps):
            row = {name: column[i] for name, column in values.items()}
            self.rows[sender.attempt.number, sender.rank, step] = row

    def values(
        self, metric: str, attempt: int | None, rank: int | None, abandoned: bool
    ) -> list[tuple[int, float]]:
        """Step and value of each row that counts, by brute force."""
        newest: dict[tuple[int, int], int] = {}
        for number, which, step in self.rows:
            newest[which, step] = max(number, newest.get((which, step), 0))
        found = []
        for (number, which, step), row in self.rows.items():
            left = any(later > number and step > at for later, at in self.resumed.items())
            canonical = newest[which, step] == number and (abandoned or not left)
            mine = canonical if attempt is None else number == attempt
            if mine and rank in (None, which) and metric in row:
                found.append((step, row[metric]))
        return sorted(found, key=lambda each: each[0])


def check(found: Curve, values: Sequence[tuple[int, float]], points: int) -> None:
    """Every value is in one bucket, and each bucket is that of its values."""
    assert len(found) <= points
    assert (found.start < found.stop).all()
    assert (found.start[1:] >= found.stop[:-1]).all()
    cells: dict[int, list[float]] = {}
    for step, value in values:
        place = int(np.searchsorted(found.start, step, side="right")) - 1
        assert place >= 0, step
        assert step < found.stop[place], step
        cells.setdefault(place, []).append(value)
    assert sorted(cells) == list(range(len(found)))
    for place, mine in cells.items():
        finite = [v for v in mine if math.isfinite(v)]
        nans = sum(map(math.isnan, mine))
        counts = (found.finite[place], found.nans[place], found.infs[place])
        assert counts == (len(finite), nans, len(mine) - len(finite) - nans)
        if finite:
            assert (found.low[place], found.high[place]) == (min(finite), max(finite))
            assert found.mean[place] == pytest.approx(math.fsum(finite) / len(finite), abs=1e-12)
        else:
            assert np.isnan([found.low[place], found.high[place], found.mean[place]]).all()


def check_lives(store: Store, rng: random.Random, lives: int) -> None:
    """Curves of so many random lives, each asked a dozen ways; of more until a span is shared."""
    shared = number = 0
    while number < lives or (not shared and number < 10 * lives):
        life = Life(store, f"life {number}", rng)
        timeline = store.timelines.find(life.name)
        assert timeline is not None
        shared += sum(span.shared for span in timeline.canonical())
        for _ in range(12):
            check_somewhere(store, life, rng)
        if any("mine" in row for row in life.rows.values()):
            found = curve(store, life.name, "mine", points=20)
            check(found, life.values("mine", None, 0, True), 20)
        number += 1
    print(f"{number} lives, {shared} shared spans")
    assert shared > 0


def check_somewhere(store: Store, life: Life, rng: random.Random) -> None:
    """One curve of a life, of a random part of it."""
    last = max((step for _, _, step in life.rows), default=0)
    attempt = rng.choice([None, None, None, 1, 2])
    rank = rng.choice([0, 0, None, 1])
    start, stop = sorted(rng.randrange(last + 2) for _ in range(2))
    if rng.random() < 0.5:
        start, stop = 0, last + 1
    points, abandoned = rng.choice([1, 2, 5, 40, 1000]), rng.random() < 0.6
    found = curve(
        store, life.name, "loss", attempt=attempt, rank=rank, start=start, stop=stop,
        points=points, abandoned=abandoned,
    )  # fmt: skip
    values = life.values("loss", attempt, rank, abandoned)
    check(found, [each for each in values if start <= each[0] < stop], points)


@pytest.mark.usefixtures("small_buckets")
def test_a_curve_of_any_life_has_every_value_of_the_timeline_once(
    store: Store, rng: random.Random
) -> None:
    check_lives(store, rng, LIVES)


@pytest.mark.long(seconds=300)
@pytest.mark.usefixtures("small_buckets")
@in_parts(1_000)
def test_a_curve_of_any_of_many_lives(store: Store, rng: random.Random, count: int) -> None:
    check_lives(store, rng, figure(count))


def test_the_timeline_is_that_of_the_view(store: Store, rng: random.Random) -> None:
    for number in range(5):
        life = Life(store, f"life {number}", rng)
        rows = store.telemetry.canonical(life.id)
        found = curve(store, life.name, "loss", points=POINTS_MAX)
        assert found.start.tolist() == [row.step for row in rows if "loss" in row.metrics]


def long_session(store: Store, name: str, steps: int) -> None:
    """Attempt 1 to `steps`; attempt 2 from the middle on, one step left out, a spike in each."""
    first = Sender(store, name)
    values = np.sin(np.arange(steps) / 50)
    values[steps // 3] = 77.0
    for at in range(0, steps, 5000):
        first.send(range(at, min(at + 5000, steps)), {"loss": values[at : at + 5000].tolist()})
    second = Sender(store, name)
    store.sessions.set_lineage(second.attempt.id, None, steps // 2)
    again = [step for step in range(steps // 2 + 1, steps) if step != steps // 2 + 100]
    second.send(again, {"loss": [math.nan if step == steps - 5 else 2.0 for step in again]})


def test_a_long_curve_keeps_spike_nan_and_tail_in_few_points(store: Store) -> None:
    long_session(store, "ocean", 20_000)
    found = curve(store, "ocean", "loss", points=100)
    assert 40 <= len(found) <= 100
    assert found.high.max() == 77.0
    assert found.nans.sum() == 1
    assert found.finite.sum() == 19_999
    assert found.stop[-1] == 20_000
    # The step that attempt 2 left out is attempt 1's.
    assert curve(store, "ocean", "loss", start=10_100, stop=10_101).mean[0] != 2.0
    assert len(curve(store, "ocean", "loss", start=10_100, stop=10_101, abandoned=False)) == 0
    tail = curve(store, "ocean", "loss", start=19_990, points=50)
    assert tail.start.tolist() == list(range(19_990, 20_000))
    assert (tail.stop - tail.start == 1).all()


def test_what_a_curve_reads_does_not_grow_with_the_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, points, lines = stored_curves._read, 50, []

    def counted(*arguments: Any) -> Any:
        found = read(*arguments)
        lines[-1] += sum(map(len, found.values()))
        return found

    monkeypatch.setattr(stored_curves, "_read", counted)
    for steps in (10_000, 40_000, 160_000):
        sender = Sender(store, f"{steps} steps")
        for at in range(0, steps, 20_000):
            batch = range(at, min(at + 20_000, steps))
            sender.send(batch, {"loss": [1.0] * len(batch)})
        lines.append(0)
        found = curve(store, f"{steps} steps", "loss", points=points)
        assert found.finite.sum() == steps
    levels = 8
    most = 2 * points + curve_buckets.FACTOR * levels + 2 * curve_buckets.BUCKET_ROWS
    print(f"{lines} lines")
    assert max(lines) <= most


def test_x_is_the_step_the_wall_clock_or_the_time_since_the_first_row(any_store: Store) -> None:
    first = Sender(any_store)
    second = 10**9
    first.send([0, 1, 2], {"loss": [1.0, 2.0, 3.0]},
               time_ns=[1000 * second, 1001 * second, 1003 * second])  # fmt: skip
    later = Sender(any_store)
    later.send([2, 3], {"loss": [4.0, 5.0]}, time_ns=[2000 * second, 2001 * second])
    assert curve(any_store, "ocean", "loss").x.tolist() == [0, 1, 2, 3]
    assert curve(any_store, "ocean", "loss", by="wall").x.tolist() == [1000, 1001, 2000, 2001]
    assert curve(any_store, "ocean", "loss", by="relative").x.tolist() == [0, 1, 1000, 1001]
    assert curve(any_store, "ocean", "loss", by="relative", start=3).x.tolist() == [1001]
    assert curve(any_store, "ocean", "phi", by="relative").x.tolist() == []


def test_sessions_are_compared_each_on_its_own_timeline(store: Store) -> None:
    for name, count in (("a", 3), ("b", 5)):
        Sender(store, name).send(range(count), {"loss": [float(count)] * count})
    found = compare(store, ["b", "a"], "loss", by="relative")
    assert list(found.curves) == ["b", "a"]
    assert [len(each) for each in found.curves.values()] == [5, 3]
    columns = found.columns()
    assert list(columns["session"]) == ["b"] * 5 + ["a"] * 3
    assert len(columns["mean"]) == len(found) == 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"points": 0}, "points"),
        ({"points": 10**9}, "100,000"),
        ({"points": 2.5}, "points"),
        ({"points": True}, "points"),
        ({"start": 5, "stop": 4}, "stop"),
        ({"start": -1}, "start"),
        ({"start": 2**63}, "start"),
        ({"stop": 2**63}, "stop"),
        ({"start": "0"}, "start"),
        ({"by": "day"}, "by"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    store: Store, given: dict[str, Any], words: str
) -> None:
    Sender(store).send([0], {"loss": [1.0]})
    with pytest.raises(InvalidInput, match=words):
        curve(store, "ocean", "loss", **given)


def test_unknown_names_are_not_found_and_nothing_recorded_is_empty(store: Store) -> None:
    with pytest.raises(NotFound, match="session"):
        curve(store, "ocean", "loss")
    store.sessions.open("ocean", {})
    with pytest.raises(NotFound, match="nearest are ocean"):
        curve(store, "oceam", "loss")
    assert len(curve(store, "ocean", "loss")) == 0
    with pytest.raises(NotFound, match="metric"):
        curve(store, "ocean", "mine")
    Sender(store).send([3], {"loss": [1.0]})
    assert len(curve(store, "ocean", "phi")) == 0
    for given in ({"attempt": 9}, {"rank": 9}, {"start": 4}, {"stop": 3}):
        assert len(curve(store, "ocean", "loss", **given)) == 0
    for name in ("a\0b", "", "x" * 501, "\ud800"):
        with pytest.raises((InvalidInput, NotFound)):
            curve(store, "ocean", name)
        with pytest.raises((InvalidInput, NotFound)):
            curve(store, name, "loss")


def test_comparing_none_too_many_or_one_twice_is_refused(store: Store) -> None:
    for names in ([], ["a"] * 2, [str(i) for i in range(101)]):
        with pytest.raises(InvalidInput, match="sessions"):
            compare(store, names, "loss")
    with pytest.raises(InvalidInput, match="50,000"):
        compare(store, ["a", "b"], "loss", points=50_001)
