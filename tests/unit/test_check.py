"""The compiled check of a row says what the one in Python says."""

from __future__ import annotations

import gc
import math
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from qigstore.safety.check import Check, PurePythonCheck

KINDS: list[type[Any]] = [Check, PurePythonCheck]


class Judge:
    """Writes down what it is asked; raises an alarm about every value above a limit."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.busy: set[object] = set()

    def observer(self, limit: float) -> Any:
        def observe(step: int, value: float) -> str | None:
            self.asked.append((limit, step, value))
            return f"{value} > {limit}" if value > limit else None

        return observe

    def slow(self, step: int, values: Sequence[float]) -> Sequence[str]:
        self.asked.append(("slow", step, *map(repr, values)))
        return ("slow",)

    def bounded(self, alarms: list[str]) -> Sequence[str]:
        return tuple(alarms[:2])

    def check(self, kind: type[Any], places: Sequence[int], limits: Sequence[float]) -> Any:
        observers = tuple((i, self.observer(x)) for i, x in zip(places, limits, strict=True))
        return kind(observers, self.busy, self.slow, self.bounded)


def any_value(rng: random.Random) -> float:
    if rng.random() < 0.03:
        return rng.choice([math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, -0.0])
    return rng.choice([rng.gauss(0, 1), rng.randrange(-3, 4), True])


def test_both_ask_the_same_and_answer_the_same(rng: random.Random) -> None:
    for _ in range(200):
        width = rng.randrange(1, 25)
        places = [rng.randrange(width) for _ in range(rng.randrange(4))]
        limits = [rng.gauss(1, 1) for _ in places]
        judges = [Judge(), Judge()]
        checks = [j.check(kind, places, limits) for j, kind in zip(judges, KINDS, strict=True)]
        for step in range(30):
            values = [any_value(rng) for _ in range(width)]
            given = values if rng.random() < 0.5 else tuple(values)
            busy = rng.random() < 0.1
            for judge in judges:
                judge.busy.clear()
                judge.busy.update([1] if busy else [])
            first, second = (check(step, given) for check in checks)
            assert first == second
        assert judges[0].asked == judges[1].asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_quiet_row_gives_an_empty_tuple(kind: type[Any]) -> None:
    judge = Judge()
    assert judge.check(kind, [0], [5.0])(3, (1.0, 2.0)) == ()
    assert judge.check(kind, [], [])(3, ()) == ()
    assert judge.asked == [(5.0, 3, 1.0)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [(math.nan,), (1.0, math.inf), (1.7e308, 1.7e308), (-math.inf,)])
def test_what_may_not_be_finite_goes_the_slow_way(kind: type[Any], values: Any) -> None:
    judge = Judge()
    assert judge.check(kind, [0], [5.0])(3, values) == ("slow",)
    assert judge.asked == [("slow", 3, *map(repr, values))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["observe", "slow", "bounded"])
def test_an_error_comes_through(kind: type[Any], where: str) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError(where)

    judge = Judge()
    observe = fails if where == "observe" else judge.observer(0.0)
    slow = fails if where == "slow" else judge.slow
    check = kind(((0, observe),), judge.busy, slow, fails)
    with pytest.raises(RuntimeError, match=where):
        check(1, (math.nan,) if where == "slow" else (1.0,))


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_values_than_names_are_an_error(kind: type[Any]) -> None:
    with pytest.raises(IndexError):
        Judge().check(kind, [2], [1.0])(1, (1.0, 2.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [(), (1,), (1, (1.0,), None), (1, 3), (1, None)], ids=repr)
def test_misuse_is_an_error_and_no_crash(kind: type[Any], given: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Judge().check(kind, [0], [1.0])(*given)


@pytest.mark.skipif(Check is PurePythonCheck, reason="Python has no such checks")
@pytest.mark.parametrize(
    "observers", [[], ((1,),), ((-1, print),), ((1.5, print),), (3,)], ids=repr
)
def test_it_is_made_of_what_it_can_use(observers: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Check(observers, set(), print, print)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_keeps_nothing_alive(kind: type[Any]) -> None:
    judge, values = Judge(), (0.5, 2.5)
    check = judge.check(kind, [0, 1], [1.0, 2.0])
    before = [sys.getrefcount(thing) for thing in (values, values[0], check, judge)]
    for step in range(100):
        assert check(step, values) == ("2.5 > 2.0",)
    judge.asked.clear()
    assert [sys.getrefcount(thing) for thing in (values, values[0], check, judge)] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_in_a_ring_of_references_is_collected(kind: type[Any]) -> None:
    gone: list[bool] = []

    class Ring:
        def __init__(self) -> None:
            self.check = kind(((0, self.observe),), set(), self.observe, self.observe)

        def observe(self, *_: Any) -> Any:
            return None

        def __del__(self) -> None:
            gone.append(True)

    Ring()
    gc.collect()
    assert gone == [True]
