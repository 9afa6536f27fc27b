"""The default rules on losses of real trainings: quiet on the healthy one, all faults found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detectors import CURVES, FAULT_AT, RULES, episodes, make_curves, read_curves

curves = read_curves()


def test_a_healthy_training_raises_nothing() -> None:
    assert RULES["qigstore"](curves["healthy"].tolist()) == []


@pytest.mark.parametrize("fault", ["spike", "slow divergence", "nan"])
def test_each_fault_of_a_real_training_is_found_after_it_began(fault: str) -> None:
    values = curves[fault]
    assert np.array_equal(values[:FAULT_AT], curves["healthy"][:FAULT_AT])
    first = RULES["qigstore"](values.tolist())[0]
    assert first >= FAULT_AT
    if fault == "nan":
        assert first == FAULT_AT
    # A divergence is noticed while the loss is still finite, and before it is thrice what it was.
    level = values[FAULT_AT - 50 : FAULT_AT].mean()
    assert fault == "nan" or values[first - 1] < 3 * level


def test_the_stored_curves_are_those_that_the_demo_trains() -> None:
    """A hundred steps of each: floating point differs from machine to machine later on."""
    for name, values in make_curves(steps=100).items():
        assert np.allclose(values[:3], curves[name][:3], rtol=1e-3), CURVES
        assert len(values) == 100


def test_alarms_close_to_each_other_are_one_episode() -> None:
    assert episodes([]) == []
    assert episodes([3, 4, 50, 101, 151, 153]) == [3, 101]
