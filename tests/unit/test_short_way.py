"""The short way of `record()` leaves what the long way leaves, or nothing."""

from __future__ import annotations

import gc
import math
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigkernels.regimes import RegimeDetector, RegimeThresholds
from qigstore.errors import InvalidInput
from qigstore.recording.recorder import Recorder
from qigstore.recording.short_way import PurePythonShortWay, ShortWay
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.reader import SpoolReader

KINDS: list[type[Any]] = [ShortWay, PurePythonShortWay]
BOUNDS = RegimeThresholds(0.45, 0.75, 0.9, 64.0, 10.0, 0.15)
EDGES = [0.45, 0.75, 0.9, 64.0, 54.0, 74.0, 0.15, 0.0, 1.0, math.inf, -math.inf, math.nan]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    told = SpoolIdentity(uuid4(), uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
    made = Spool.create(tmp_path, told)
    yield made
    made.close()


def rows_of(spool: Spool) -> list[tuple[int, int, tuple[str, ...], tuple[str, ...]]]:
    """Step, regime, names and values of all rows, in the order of their records."""
    reader, found = SpoolReader(spool, spool.identity.writer), []
    while (take := reader.take(1 << 20)) is not None:
        assert take.gap == 0
        for group in take.groups:
            for seq, step, regime, values in zip(
                group.seq, group.step, group.regime, group.values, strict=True
            ):
                told = (int(step), int(regime), group.names, tuple(map(repr, values.tolist())))
                found.append((int(seq), told))
    return [told for _, told in sorted(found)]


class _Spool:
    """What a short way needs of a spool; remembers the regime that it is given."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.regimes: list[int] = []

    def put(self, layout: Any, step: int, regime: int, row: dict[str, Any]) -> Any:
        self.regimes.append(regime)
        return tuple(row.values())


numbers = st.one_of(
    st.sampled_from(EDGES),
    st.sampled_from(EDGES).map(lambda x: float(np.nextafter(x, -math.inf))),
    st.floats(),
    st.integers(-100, 100),
    st.booleans(),
)


@pytest.mark.parametrize("kind", KINDS)
@given(row=st.fixed_dictionaries({}, optional={
    "phi": numbers, "kappa_eff": numbers, "basin_distance": numbers, "loss": numbers,
}))  # fmt: skip
def test_the_regime_is_the_one_of_the_detector(kind: type[Any], row: dict[str, float]) -> None:
    spool = _Spool()
    way = kind(spool, BOUNDS)
    way.layout, way.has_phi = "a layout", True
    assert way.record_plain(3, row) == ()
    told = (row.get(name) for name in ("phi", "kappa_eff", "basin_distance"))
    assert spool.regimes == [RegimeDetector(BOUNDS).code(*told)]
    assert way.last_row == ("a layout", 3, tuple(row.values()), spool.regimes[0])


def any_row(rng: random.Random) -> tuple[Any, dict[str, Any]]:
    """Mostly a usual one."""
    names = rng.choice([("phi", "loss"), ("loss", "phi", "kappa_eff", "x"), ("a",), ()])
    step: Any = rng.randrange(1 << 40)
    row: dict[str, Any] = {name: rng.choice([rng.random(), rng.randrange(3)]) for name in names}
    if row and rng.random() < 0.2:
        row[rng.choice(names)] = rng.choice(
            [math.nan, np.float64(0.5), np.float32(0.25), np.int16(4), None, 10**400, "text", True]
        )
    if rng.random() < 0.02:
        step = rng.choice([-1, 2**62, 1.5, np.int64(7), "1"])
    return step, row


def test_any_rows_arrive_as_they_do_by_the_long_way(tmp_path: Path, rng: random.Random) -> None:
    recorders = []
    for _ in range(2):
        told = SpoolIdentity(uuid4(), uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
        spool = Spool.create(tmp_path, told, segment_bytes=1 << 16)
        judged: list[tuple[Any, ...]] = []

        def bind(names: tuple[str, ...], judged: list[Any] = judged) -> Any:
            def check(step: int, values: Sequence[float]) -> Sequence[str]:
                judged.append((names, step, *map(repr, map(float, values))))
                return (f"{step}",) if step % 5 == 0 else ()

            return check

        recorders.append((spool, Recorder[str](spool, bind_rules=bind, preset=BOUNDS), judged))
    (spool, short, judged), (other, long, judged_slowly) = recorders
    refused = 0
    for _ in range(3_000):
        step, row = any_row(rng)
        said: list[Any] = []
        for way in (short.record, long._record_slowly):
            try:
                said.append(way(step, row))
            except InvalidInput as error:
                said.append(str(error))
        refused += isinstance(said[0], str)
        assert said[0] == said[1]
        assert (short.last_step, short.last_regime) == (long.last_step, long.last_regime)
        assert repr({k: float(v) for k, v in short.last.items()}) == repr(dict(long.last))
    assert refused > 20
    assert judged == judged_slowly
    assert rows_of(spool) == rows_of(other)
    for one in (spool, other):
        one.close()


@pytest.mark.parametrize("kind", KINDS)
def test_it_leaves_a_row_while_another_thread_holds_the_lock(kind: type[Any]) -> None:
    spool = _Spool()
    way = kind(spool, BOUNDS)
    way.layout = "a layout"
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with spool.lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert way.record_plain(1, {"x": 1.0}) is None
    done.set()
    thread.join()
    assert way.record_plain(1, {"x": 1.0}) == ()
    with spool.lock:  # one's own is no obstacle
        assert way.record_plain(1, {"x": 1.0}) == ()
    assert len(spool.regimes) == 2


def test_a_row_waits_for_the_thread_that_holds_the_lock(spool: Spool) -> None:
    recorder = Recorder[Any](spool)
    recorder.record(0, {"x": 0.0})
    held, recorded = threading.Event(), threading.Event()

    def record() -> None:
        held.wait(60)
        recorder.record(1, {"x": 1.0})
        recorded.set()

    thread = threading.Thread(target=record)
    thread.start()
    with spool.lock:
        held.set()
        assert not recorded.wait(0.05)
        recorder.record(2, {"x": 2.0})
    thread.join(60)
    assert recorded.is_set()
    assert [step for step, *_ in rows_of(spool)] == [0, 2, 1]


@pytest.mark.parametrize("where", ["put", "check"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_through_and_the_lock_is_free(kind: type[Any], where: str) -> None:
    def fails(*_: Any) -> Any:
        raise KeyboardInterrupt(where)

    class Failing(_Spool):
        if where == "put":
            put = fails

    spool = Failing()
    way = kind(spool, BOUNDS)
    way.layout, way.check = "a layout", fails
    with pytest.raises(KeyboardInterrupt, match=where):
        way.record_plain(1, {"x": 1.0})
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(spool.lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert taken == [True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "row", [None, [], 3, {"phi": "text"}, {"phi": [1.0]}, {"phi": 1j}], ids=repr
)
def test_what_is_no_usual_row_is_left(kind: type[Any], row: Any) -> None:
    spool = _Spool()
    way = kind(spool, BOUNDS)
    assert way.record_plain(1, {"x": 1.0}) is None  # no layout is in use
    way.layout, way.has_phi = "a layout", True
    assert way.record_plain(1, row) is None
    assert (spool.regimes, way.last_row) == ([], None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [(), (1,), (1, {}, 3)], ids=repr)
def test_misuse_is_an_error_and_no_crash(kind: type[Any], given: tuple[Any, ...]) -> None:
    way = kind(_Spool(), BOUNDS)
    for call in (way.record, way.record_plain):
        with pytest.raises(TypeError):
            call(*given)
    with pytest.raises(TypeError):
        kind(None)


@pytest.mark.skipif(ShortWay is PurePythonShortWay, reason="nothing can be unset in Python")
def test_one_that_was_never_begun_records_nothing() -> None:
    way = ShortWay.__new__(ShortWay)
    assert way.record_plain(1, {"x": 1.0}) is None
    for spool, bounds in ((None, BOUNDS), (_Spool(), None)):
        with pytest.raises(AttributeError):
            way.__init__(spool, bounds)  # type: ignore[misc, arg-type]
        assert way.record_plain(1, {"x": 1.0}) is None
    for name in ("layout", "check"):
        way = ShortWay(_Spool(), BOUNDS)  # type: ignore[arg-type]
        way.layout = "a layout"  # type: ignore[assignment]
        delattr(way, name)
        assert way.record_plain(1, {"x": 1.0}) is None


def test_it_keeps_nothing_alive(spool: Spool) -> None:
    recorder = Recorder[Any](spool, bind_rules=lambda _: lambda *_: ())
    row = {"phi": 0.5, "loss": 1.5}
    for step in range(3):
        recorder.record(step, row)
    kept = (row, row["phi"], recorder, recorder.layout, recorder.check)
    before = [sys.getrefcount(thing) for thing in kept]
    for step in range(100):
        recorder.record(step, row)
        with pytest.raises(InvalidInput):
            recorder.record(step, {**row, "loss": "text"})
    assert [sys.getrefcount(thing) for thing in kept] == before


def test_a_recorder_in_a_ring_of_references_is_collected(spool: Spool) -> None:
    gone: list[bool] = []

    class Rules:
        def bind(self, names: tuple[str, ...]) -> Any:
            return self.check

        def check(self, step: int, values: Sequence[float]) -> Sequence[Any]:
            return ()

        def __del__(self) -> None:
            gone.append(True)

    rules = Rules()
    recorder = Recorder[Any](spool, bind_rules=rules.bind)
    recorder.record(1, {"x": 1.0})
    rules.recorder = recorder  # type: ignore[attr-defined]
    del rules, recorder
    gc.collect()
    assert gone == [True]


def test_a_finalizer_that_records_another_row_in_the_middle_of_one_mixes_nothing(
    spool: Spool,
) -> None:
    recorder, told = Recorder[Any](spool), [0]
    names = [tuple(f"m{i}" for i in range(25)), ("x", "y")]

    def write(step: int) -> None:
        recorder.record(step, dict.fromkeys(names[step % 2], float(step)))
        told.append(step)

    class Garbage:
        def __init__(self, step: int) -> None:
            self.step, self.me = step, self

        def __del__(self) -> None:
            write(self.step)

    gc.collect()
    recorder.record(0, dict.fromkeys(names[0], 0.0))
    for step in range(1, 600, 2):
        row = dict.fromkeys(names[step // 6 % 2], float(step))
        Garbage(1000 + step + step // 2 % 2)
        kept: list[list[int]] = []
        while gc.get_count()[0] < gc.get_threshold()[0]:
            kept.append([])  # the next one that is made, by whomever, sets it off
        recorder.record(step, row)
        told.append(step)
        layout, at, values, _ = recorder.last_row or (None, 0, (), 0)
        assert layout is not None
        assert tuple(values) == (float(at),) * len(layout.names)
    gc.collect()
    found = rows_of(spool)
    assert sorted(step for step, *_ in found) == sorted(told)
    assert all(values == (repr(float(step)),) * len(row) for step, _, row, values in found)
