"""Soft reset: drift in Fisher-Rao distance, cooldown, a bound, and a checkpoint that is healthy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qigkernels import ValidationError
from qigstore.errors import ConfigurationError, NoHealthyCheckpoint
from qigstore.safety import SoftReset

UNIFORM = np.full(64, 1 / 64)


class Manager:
    def __init__(self, state: Any = None) -> None:
        self.state, self.loaded = state, 0

    def load_best_checkpoint(self) -> tuple[Any, dict[str, Any]]:
        if self.state is None:
            raise NoHealthyCheckpoint("s", [])
        self.loaded += 1
        return self.state, {"checkpoint_id": "c", "step": 7}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def towards(corner: int, share: float) -> np.ndarray:
    point = UNIFORM * (1 - share)
    point[corner] += share
    return point


def test_drift_is_the_fisher_rao_distance_and_its_limit_decides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(64), 2)
        distance = 2 * math.acos(min(1.0, float(np.sqrt(p * q).sum())))
        for limit in (0.99 * distance, 1.01 * distance):
            reset = SoftReset(Manager(), drift_threshold=limit)
            reset.set_reference_basin(p)
            assert reset.drift(q) == pytest.approx(distance, rel=1e-9)
            drifted, reason = reset.check_drift(q)
            assert drifted == (limit < distance)
            assert f"{distance:.4g}" in reason


def test_the_first_basin_is_the_reference_where_none_was_set() -> None:
    reset = SoftReset(Manager(), drift_threshold=0.2)
    assert reset.check_drift(UNIFORM) == (False, "basin drift 0 is within 0.2")
    assert reset.check_drift(towards(3, 0.5))[0]


def test_phi_below_its_floor_is_a_drift_and_nan_is_below() -> None:
    reset = SoftReset(Manager(), phi_threshold=0.6)
    assert not reset.check_drift(UNIFORM, 0.6)[0]
    assert reset.check_drift(UNIFORM, 0.59) == (True, "Φ = 0.59 is below 0.6")
    assert reset.check_drift(UNIFORM, math.nan)[0]


def test_a_reset_hands_the_healthy_state_to_the_callback_and_keeps_account() -> None:
    taken: list[Any] = []
    reset = SoftReset(Manager({"w": 1}), reset_callback=taken.append, cooldown_seconds=0)
    done = reset.perform_reset("drifted", step=40)
    assert done.done
    assert taken == [{"w": 1}]
    assert (done.step, done.checkpoint["step"], done.reason) == (40, 7, "drifted")
    assert list(reset.history) == [done]


def test_within_the_cooldown_it_is_refused_and_the_time_is_told() -> None:
    manager, clock = Manager(1), Clock()
    reset = SoftReset(manager, cooldown_seconds=60, clock=clock)
    assert reset.perform_reset().done
    clock.now += 59
    refused = reset.perform_reset("again")
    assert (refused.status, manager.loaded) == ("refused", 1)
    assert "again: the last one is too recent, 1 s" in refused.reason
    clock.now += 1.1
    assert reset.perform_reset().done


def test_resets_that_bring_no_progress_are_bounded_and_progress_begins_anew() -> None:
    manager = Manager(1)
    reset = SoftReset(manager, cooldown_seconds=0, resets_max=3, progress_steps=50)
    assert [reset.perform_reset(step=100 + n).done for n in range(5)] == [True] * 3 + [False] * 2
    assert "3 resets in a row" in reset.history[-1].reason
    assert reset.perform_reset(step=200).done
    assert reset.in_a_row == 1


def test_without_a_healthy_checkpoint_it_fails_and_says_so() -> None:
    failed = SoftReset(Manager()).perform_reset("x")
    assert failed.status == "failed"
    assert "no healthy checkpoint" in failed.reason


def test_a_callback_that_raises_is_told_and_goes_on_to_the_caller() -> None:
    def broken(state: Any) -> None:
        raise RuntimeError("half loaded")

    reset = SoftReset(Manager(1), reset_callback=broken)
    with pytest.raises(RuntimeError, match="half loaded"):
        reset.perform_reset()
    assert reset.history[-1].status == "failed"


@pytest.mark.parametrize(
    "options",
    [
        {"drift_threshold": 0.0},
        {"drift_threshold": 4.0},
        {"drift_threshold": math.nan},
        {"phi_threshold": 1.5},
        {"cooldown_seconds": -1},
        {"resets_max": 0},
        {"drift_threshold": "0.3"},
    ],
)
def test_a_number_out_of_its_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SoftReset(Manager(), **options)


def test_what_is_no_basin_is_refused() -> None:
    reset = SoftReset(Manager())
    with pytest.raises(ConfigurationError, match="set_reference_basin"):
        reset.drift(UNIFORM)
    for bad in (UNIFORM * 2, np.full(64, math.nan), -UNIFORM):
        with pytest.raises(ValidationError):
            reset.set_reference_basin(bad)
    reset.set_reference_basin(UNIFORM)
    with pytest.raises(ValidationError):
        reset.check_drift(np.full(8, 1 / 8))
