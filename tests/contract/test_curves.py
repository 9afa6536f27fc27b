"""Curves against a model that rolls up the stored rows by brute force, after random histories."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from senders import Sender, rows

from qigstore.errors import InvalidInput, NotFound, StaleWriter
from qigstore.repository import Curve, Store, curve_buckets, curves

pytest_plugins = ["ways"]

NAMES = ("loss", "phi", "mine/a", "mine/b")
ODD = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7e308, -1.7e308)
HISTORIES = 25

Told = tuple[float, float, float, int, int, int]


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows a bucket and few parts a level: short histories have many levels."""
    monkeypatch.setattr(curve_buckets, "BUCKET_ROWS", 4)
    monkeypatch.setattr(curve_buckets, "FACTOR", 2)
    monkeypatch.setattr(curve_buckets, "_CELLS_READ_AT_ONCE", 700)
    monkeypatch.setattr(curves, "_RAW_ROWS_A_POINT", 2)


def roll(values: Sequence[float]) -> Told:
    """Least, greatest and mean of the finite values; how many are finite, NaN and ±inf."""
    finite = [v for v in values if math.isfinite(v)]
    nans = sum(map(math.isnan, values))
    if not finite:
        return (math.nan, math.nan, math.nan, 0, nans, len(values) - nans)
    mean = math.fsum(v / len(finite) for v in finite)
    return (min(finite), max(finite), mean, len(finite), nans, len(values) - len(finite) - nans)


def same(found: Sequence[Any], expected: Told, scale: float) -> bool:
    """Counts and extremes to the bit, means to rounding."""
    if [*map(int, found[3:])] != [*expected[3:]]:
        return False
    if not expected[3]:
        return all(map(math.isnan, found[:3]))
    close = abs(found[2] - expected[2]) <= 1e-13 * scale + 1e-320
    return close and (found[0], found[1]) == expected[:2]


def scale_of(values: Sequence[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


class Model:
    """The stored rows of a sender, by step, and what a roll-up of them must be."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.rows = {row.step: dict(row.metrics) for row in sender.read()}

    def values(self, name: str, start: int, stop: int) -> list[float]:
        return [m[name] for s, m in self.rows.items() if start <= s < stop and name in m]

    def check_table(self) -> int:
        """Every closed bucket with rows is stored, once, right, and no other."""
        sender = self.sender
        with sender.store.database.raw() as connection:
            width, number = connection.execute(
                "SELECT bucket_steps, number FROM qigstore.writer WHERE id = %s", (sender.writer,)
            ).fetchone() or (None, None)
            positions = dict(connection.execute(
                "SELECT name, position FROM qigstore.metric WHERE session_id = %s", (sender.id,)
            ).fetchall())  # fmt: skip
            stored = {
                (w, start): rest
                for w, start, *rest in connection.execute(
                    "SELECT width, start, rows, low, high, mean, finite, nans, infs "
                    "FROM qigstore.curve WHERE writer = %s",
                    (number,),
                )
            }
        places = {"loss": 0, "phi": 4} | {n: 31 + p for n, p in positions.items()}
        expected = set(self.closed(width))
        assert set(stored) == expected
        for (w, start), (count, *arrays) in stored.items():
            assert count == sum(start <= s < start + w for s in self.rows)
            for name, place in places.items():
                values = self.values(name, start, start + w)
                found = unpacked(count, arrays, place)
                assert same(found, roll(values), scale_of(values)), (w, start, name)
        return len(stored)

    def closed(self, width: int | None) -> Iterator[tuple[int, int]]:
        if len(self.rows) >= curve_buckets.BUCKET_ROWS:
            assert width
        while width and max(self.rows) // width:
            last = max(self.rows) // width
            yield from {(width, s // width * width) for s in self.rows if s // width < last}
            width *= curve_buckets.FACTOR

    def check_read(self, name: str, start: int, stop: int, points: int) -> None:
        """Every value of the span is in one element, and each element is right."""
        curve = read(self.sender, name, start=start, stop=stop, points=points)
        assert (np.diff(curve.start) > 0).all()
        assert len(curve.start) <= points or curve.width == 1
        cells: dict[int, list[float]] = {}
        for step, metrics in self.rows.items():
            if start <= step < stop and name in metrics:
                cells.setdefault(step // curve.width * curve.width, []).append(metrics[name])
        assert curve.start.tolist() == sorted(cells)
        told = zip(curve.low, curve.high, curve.mean, curve.finite, curve.nans, curve.infs,
                   strict=True)  # fmt: skip
        for at, found in zip(curve.start.tolist(), told, strict=True):
            assert same(found, roll(cells[at]), scale_of(cells[at])), (at, curve.width)


def unpacked(count: int, arrays: Sequence[Any], place: int) -> tuple[Any, ...]:
    low, high, mean, finite, nans, infs = (
        None if array is None or len(array) <= place else array[place] for array in arrays
    )
    if low is None:
        return (math.nan, math.nan, math.nan, 0, 0, 0)
    return (low, high, mean, *((count, 0, 0) if arrays[3] is None else (finite, nans, infs)))


def read(sender: Sender, name: str, **where: Any) -> Curve:
    key = {"attempt": sender.attempt.number, "rank": sender.rank}
    return sender.store.curves.read(sender.id, name, **(key | where))


def some_steps(rng: random.Random, before: int, count: int) -> list[int]:
    """Mostly onwards; now and then back, across what is stored, far on, or the same again."""
    stride = rng.choice([1, 1, 1, 3, 1000])
    start = max(0, before + rng.choice([1, 1, 1, 1, 0, -5, -40, -before, 97]))
    steps = [start + stride * i for i in range(count)]
    if rng.random() < 0.2:
        rng.shuffle(steps)
    if rng.random() < 0.2:
        steps += rng.choices(steps, k=3)
    return steps


def a_batch(rng: random.Random, sender: Sender, before: int) -> int:
    """Store a few groups with changing metrics; the greatest step since."""
    groups, seq = [], sender.acked + 1
    for _ in range(rng.choice([1, 1, 2, 3])):
        steps = some_steps(rng, before, rng.choice([1, 2, 5, 17, 60]))
        names = rng.sample(NAMES, rng.choice([0, 1, 2, 4, 4]))
        odd = rng.choice([0.0, 0.0, 0.3, 1.0])
        values = {
            name: [rng.choice(ODD) if rng.random() < odd else rng.gauss(0, 1) for _ in steps]
            for name in names
        }
        groups.append(rows(steps, values, first_seq=seq))
        seq += len(steps)
        before = max(before, *steps) if rng.random() < 0.9 else max(0, steps[-1])
    sender.ship(*groups)
    return before


@pytest.mark.usefixtures("small_buckets")
def test_after_any_history_the_buckets_and_every_read_are_those_of_the_rows(
    any_store: Store, rng: random.Random
) -> None:
    stored = 0
    for history in range(HISTORIES):
        first = Sender(any_store, f"ocean-{history}")
        senders = [first, Sender(any_store, f"ocean-{history}", rank=1, of=first.attempt)]
        before = [0, rng.choice([0, 10**6])]
        for _ in range(rng.choice([1, 3, 12])):
            which = rng.randrange(2)
            before[which] = a_batch(rng, senders[which], before[which])
        for model in map(Model, senders):
            if not model.rows:
                continue
            stored += model.check_table()
            last = max(model.rows) + 2
            for _ in range(6):
                start, stop = sorted(rng.randrange(last + 1) for _ in range(2))
                model.check_read("loss", start, stop, rng.choice([1, 2, 5, 30]))
                model.check_read("phi", 0, last, rng.choice([1, 3, 20, 100]))
    print(f"{HISTORIES} histories, {stored} buckets")
    assert stored > 100


def test_a_long_curve_keeps_every_spike_and_few_rows_come_one_by_one(store: Store) -> None:
    sender, values = Sender(store), np.sin(np.arange(40_000) / 500)
    values[12_345] = 99.0
    for first in range(0, 40_000, 10_000):
        some = values[first : first + 10_000].tolist()
        sender.send(range(first, first + 10_000), {"loss": some, "mine": some})
    for name in ("loss", "mine"):
        curve = read(sender, name, points=100)
        assert 50 <= len(curve.start) <= 100
        assert curve.high.max() == 99.0
        assert curve.finite.sum() == 40_000
        np.testing.assert_allclose(np.average(curve.mean, weights=curve.finite), values.mean())
    rows_alone = read(sender, "loss", start=39_990, points=100)
    assert rows_alone.width == 1
    assert rows_alone.mean.tolist() == values[39_990:].tolist()


def test_sparse_steps_take_no_more_buckets_than_dense_ones(store: Store) -> None:
    counts = []
    for name, stride in (("dense", 1), ("sparse", 1000)):
        sender = Sender(store, name)
        for first in range(0, 2000, 100):
            sender.send([stride * s for s in range(first, first + 100)], {"loss": [1.0] * 100})
        counts.append(Model(sender).check_table())
    assert counts[0] == counts[1] > 0


def test_buckets_are_stored_exactly_when_their_rows_are(store: Store) -> None:
    sender = Sender(store)
    sender.send(range(300), {"loss": [1.0] * 300})
    batch = sender.batch(rows(range(300, 600), {"loss": [2.0] * 300}, first_seq=301))
    store.telemetry.append(batch)
    again = store.telemetry.append(batch)
    assert again.rows == 0
    sender.acked = batch.last_seq
    store.writers.take_over(sender.writer)
    with pytest.raises(StaleWriter):
        sender.send(range(600, 900), {"loss": [3.0] * 300})
    Model(sender).check_table()
    sender.epoch = 2
    sender.send(range(600, 900), {"loss": [3.0] * 300})
    model = Model(sender)
    assert model.check_table() > 5
    model.check_read("loss", 0, 10_000, 20)


def test_a_metric_nobody_recorded_is_refused_and_one_without_rows_is_empty(store: Store) -> None:
    sender = Sender(store)
    assert len(read(sender, "phi").start) == 0
    sender.send([1], {"loss": [1.0]})
    assert len(read(sender, "phi").start) == 0
    assert len(read(sender, "loss", start=5).start) == 0
    with pytest.raises(NotFound, match="metric"):
        read(sender, "los")
    with pytest.raises(InvalidInput, match="points"):
        read(sender, "loss", points=0)
