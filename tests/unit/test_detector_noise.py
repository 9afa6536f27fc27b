"""The default rules on healthy noise of every kind: no false alarm; faults in it are found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detectors import RULES, faults, found, noise, quiet

ours = RULES["qigstore"]
KINDS = [name for name, _ in quiet(0)]


@pytest.mark.parametrize("kind", KINDS)
def test_120_000_healthy_steps_raise_no_alarm(kind: str) -> None:
    assert ours(dict(quiet(1))[kind].tolist()) == []


@pytest.mark.parametrize("memory", [0.9, 0.95])
def test_the_start_of_wandering_noise_is_no_drift(memory: float) -> None:
    """Until the long-run variance is known, a rule would take every excursion for a rise."""
    raised = 0
    for seed in range(60):
        wander = noise(np.random.default_rng(seed), 800, memory)
        raised += bool(ours((2.0 + 0.1 * wander).tolist()))
    assert raised <= 1


def test_every_kind_of_fault_is_found_in_noise() -> None:
    hits = {name: found(ours, series[:12], 1000)[0] for name, series in faults(1, 12)}
    # A spike of ten deviations, as one of 2× in a noise of 10 %, is a matter of luck.
    assert hits.pop("spike of 2×") >= 9
    assert set(hits.values()) == {12}


def test_a_spike_in_noise_with_a_memory_or_heavy_tails_is_found() -> None:
    rng = np.random.default_rng(3)
    for healthy in (noise(rng, 4000, 0.9), rng.standard_t(5, 4000)):
        values = 5.0 + 0.1 * healthy
        values[3000] = 15.0
        assert 3000 in ours(values.tolist())


def test_a_step_in_noise_with_a_memory_is_found() -> None:
    values = 2.0 + 0.05 * noise(np.random.default_rng(4), 4000, 0.9)
    values[3000:] += 1.0
    alarms = ours(values.tolist())
    assert alarms
    assert 3000 <= alarms[0] < 3100
