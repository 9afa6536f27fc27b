"""The compiled way of a quiet value leaves a detector as the way in Python does, to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from qigstore.compiled import all_compiled
from qigstore.safety.declared import Ewma, PageHinkley
from qigstore.safety.detectors import Observer

RULES = [
    Ewma("loss"),
    Ewma("loss", warm_up=2, a=0.3, warn=1.5, fire=2.5, direction="both", clear_steps=3),
    Ewma("loss", direction="down", floor=0.5, floor_relative=0.5),
    PageHinkley("loss"),
    PageHinkley("loss", direction="down", warm_up=9, window=20, delta=0.1, limit=3.0),
    PageHinkley("loss", floor=2.0, floor_relative=3.0, delta=0.01, limit=1.0),
]


def series(rng: random.Random) -> Iterator[float]:
    """Finite values of every kind, one stretch after the other."""
    level, noise = 2.0, 0.1
    while True:
        kind = rng.randrange(7)
        for k in range(rng.randrange(1, 300)):
            if kind == 0:
                yield level
            elif kind == 1:
                yield level + 0.01 * k * noise
            elif kind == 2 and rng.random() < 0.05:
                yield rng.choice([0.0, -0.0, 1e300, -1.7e308, 5e-324, 1e-300])
            elif kind == 3:
                yield float(rng.choice([3, -7, 10**6]))
            else:
                yield level + noise * rng.gauss(0, 1)
        if kind == 4:
            level, noise = rng.uniform(-5, 5), 10 ** rng.uniform(-6, 2)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name} {RULES.index(rule)}")
@pytest.mark.parametrize("take", range(3))
def test_both_ways_remember_the_same(rule: Any, take: int, rng: random.Random) -> None:
    short, long = rule.detector("loss"), rule.detector("loss")
    alarms = 0
    for step, value in enumerate(islice(series(rng), 4_000)):
        told = short.observe(step, value)
        assert told == long.judge(step, value)
        alarms += told is not None
        if step % 50 == 0 or step < 100:
            assert repr(short.state()) == repr(long.state())
            if isinstance(rule, PageHinkley):
                assert repr(short.lagged) == repr(long.lagged)
        if step == 2_000:  # as a recovery does
            resumed = rule.detector("loss")
            resumed.restore(short.state())
            short = resumed
    assert repr(short.state()) == repr(long.state())
    print(f"{rule.name}: {alarms} alarms")


def test_whole_numbers_are_taken_as_they_are(rng: random.Random) -> None:
    for rule in (RULES[0], RULES[3]):
        whole, real = rule.detector("loss"), rule.detector("loss")
        for step in range(2_000):
            value = rng.randrange(-3, 3)
            assert (whole.observe(step, value) is None) == (real.observe(step, value + 0.0) is None)
        assert whole.state() == real.state()


@pytest.mark.skipif(not all_compiled(), reason="the one in Python leaves it to Python")
@pytest.mark.parametrize("rule", [RULES[0], RULES[3]], ids=["ewma", "drift"])
def test_misuse_is_an_error_and_changes_nothing(rule: Any) -> None:
    detector: Observer = rule.detector("loss")
    before = repr(detector.state())
    with pytest.raises(TypeError):
        detector.observe(1)  # type: ignore[call-arg]
    for wrong in ("1", None, [1.0]):
        with pytest.raises(TypeError):
            detector.observe(1, wrong)  # type: ignore[arg-type]
    assert repr(detector.state()) == before


def test_an_error_of_the_long_way_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Ewma("loss").detector("loss")

    def fails(_detector: Any, step: int, value: float, /) -> None:
        raise RuntimeError(f"{step}: {value}")

    monkeypatch.setattr(type(detector), "judge", fails)
    with pytest.raises(RuntimeError, match=r"7: 1\.5"):
        detector.observe(7, 1.5)
