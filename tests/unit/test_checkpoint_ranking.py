"""Which checkpoint is best, and which may go: the same every time, and never the last good one."""

from __future__ import annotations

import itertools
import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.checkpoints import Retention, best_first, newest_first
from qigstore.checkpoints.ranking import judge
from qigstore.checkpoints.retention import roles
from qigstore.errors import ConfigurationError
from qigstore.records import Checkpoint

PHIS = (0.9, 0.5, 0.7, 0.3, math.nan)
ORDERS = list(itertools.permutations(range(5)))


def checkpoint(number: int, phi: float | None, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": UUID(int=number),
        "session_id": 1,
        "attempt": 1,
        "step": number,
        "kind": "regular",
        "status": "committed",
        "path": Path("/nowhere") / str(number),
        "bytes": 1,
        "digest": "",
        "weights_finite": True,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "phi": phi,
    }
    return Checkpoint(**values | changes)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_saving_keeps_the_same_two_best(order: tuple[int, ...]) -> None:
    items = [checkpoint(place, PHIS[which]) for place, which in enumerate(order)]
    assert [item.phi for item in best_first(items)] == [0.9, 0.7, 0.5, 0.3]
    healthy = {item.id for item in items if judge(item).healthy}
    kept = roles(items, Retention(keep_newest=1, keep_best=2, settle_steps=0), healthy=healthy)
    best = {UUID(int=order.index(0)), UUID(int=order.index(2))}
    assert {key for key, names in kept.items() if "best" in names} == best
    assert kept[UUID(int=4)]  # the newest stays, whatever its Φ


@pytest.mark.parametrize("order", ORDERS)
def test_newest_and_best_both_survive_one_plus_one(order: tuple[int, ...]) -> None:
    items = [checkpoint(place, PHIS[which]) for place, which in enumerate(order)]
    healthy = {item.id for item in items if judge(item).healthy}
    kept = roles(items, Retention(keep_newest=1, keep_best=1), healthy=healthy)
    assert kept[UUID(int=4)]
    assert kept[UUID(int=order.index(0))]


def test_ties_go_to_the_later_step_then_to_the_lower_id(rng: random.Random) -> None:
    items = [
        checkpoint(3, 0.5, step=10),
        checkpoint(1, 0.5, step=20),
        checkpoint(2, 0.5, step=20),
        checkpoint(4, math.inf),
        checkpoint(5, -math.inf),
        checkpoint(6, None),
    ]
    rng.shuffle(items)
    assert [item.id.int for item in best_first(items)] == [1, 2, 3]


def test_newest_is_the_latest_attempt_not_the_highest_step() -> None:
    abandoned, resumed = checkpoint(1, 0.5, step=1000), checkpoint(2, 0.5, attempt=2, step=600)
    assert newest_first([abandoned, resumed]) == [resumed, abandoned]


def test_what_events_may_still_condemn_does_not_push_out_the_settled_one() -> None:
    items = [checkpoint(step, 0.5 + step / 1000, step=step) for step in range(0, 101, 10)]
    rule = Retention(keep_newest=1, keep_best=1, settle_steps=50)
    kept = roles(items, rule, healthy={item.id for item in items})
    assert {item.step for item in items if kept[item.id]} == {50, 60, 100}
    assert kept[items[5].id] == ("settled",)
    assert kept[items[6].id] == ("settling",)


@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    settle=st.integers(0, 60),
    drop=st.integers(0, 60),
)
def test_pruning_after_every_save_always_leaves_one_that_no_episode_condemns(
    gaps: list[int], settle: int, drop: int
) -> None:
    """Whenever an event comes, at most `drop` ≤ `settle` steps after the newest save."""
    rule = Retention(keep_newest=1, keep_best=1, settle_steps=settle)
    kept: list[Checkpoint] = []
    for step in itertools.accumulate(gaps, initial=0):
        kept.append(checkpoint(step, 0.5 + step / 10_000))
        found = roles(kept, rule, healthy={item.id for item in kept})
        kept = [item for item in kept if found[item.id]]
        assert len(kept) <= 4
        event = step + 1 + min(drop, settle)
        survivors = [item for item in kept if item.step + settle < event]
        assert survivors or step < settle


@given(
    phis=st.lists(st.none() | st.floats(), min_size=1, max_size=30),
    newest=st.integers(1, 4),
    best=st.integers(1, 4),
    emergency=st.integers(1, 3),
    data=st.data(),
)
def test_no_choice_removes_newest_best_healthy_newest_emergency_or_held(
    phis: list[float | None], newest: int, best: int, emergency: int, data: st.DataObject
) -> None:
    items = [
        checkpoint(i, phi, kind=data.draw(st.sampled_from(["regular"] * 4 + ["emergency"])))
        for i, phi in enumerate(phis)
    ]
    healthy = {item.id for item in items if data.draw(st.booleans())}
    protected = {item.id for item in items if data.draw(st.integers(0, 9)) == 0}
    rule = Retention(keep_newest=newest, keep_best=best, keep_emergency=emergency)
    held = {"pinned": protected}
    kept = {k for k, v in roles(items, rule, healthy=healthy, held=held).items() if v}
    fit = [item for item in items if item.id in healthy]
    assert {item.id for item in newest_first(items)[:newest]} <= kept
    assert {item.id for item in best_first(fit)[:best]} <= kept
    assert {item.id for item in newest_first(fit)[:1]} <= kept
    assert protected <= kept
    stops = [item for item in newest_first(items) if item.kind == "emergency"]
    assert {item.id for item in stops[:emergency]} <= kept


def test_emergency_checkpoints_are_bounded() -> None:
    items = [checkpoint(step, None, kind="emergency") for step in range(50)]
    kept = roles(items, Retention(keep_newest=1, keep_emergency=4), healthy=())
    assert [key.int for key, names in kept.items() if names] == [49, 48, 47, 46]


@given(steps=st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True))
def test_one_of_every_n_steps_stays_and_a_later_save_never_changes_which(steps: list[int]) -> None:
    rule = Retention(keep_newest=1, keep_best=1, keep_every=100, settle_steps=0)
    kept: list[Checkpoint] = []
    for step in sorted(steps):
        kept.append(checkpoint(step, 0.5))
        found = roles(kept, rule, healthy={item.id for item in kept})
        kept = [item for item in kept if found[item.id]]
    firsts = {min(s for s in steps if s // 100 == place) for place in {s // 100 for s in steps}}
    every = roles(kept, rule, healthy=())
    assert {item.step for item in kept if "every" in every[item.id]} == firsts


def test_neither_an_emergency_nor_nan_weights_stand_for_every_n_steps() -> None:
    items = [
        checkpoint(100, None, kind="emergency"),
        checkpoint(110, None, weights_finite=False),
        checkpoint(120, None),
        checkpoint(130, None, attempt=2),
        checkpoint(240, None, attempt=2),
    ]
    found = roles(items, Retention(keep_every=100), healthy=())
    assert {key.int for key, names in found.items() if "every" in names} == {120, 240}


@pytest.mark.parametrize("name", ["keep_newest", "keep_best", "keep_emergency", "keep_every"])
def test_keeping_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Retention(**{name: 0})
