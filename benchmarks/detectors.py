"""`python -m benchmarks.detectors`: the default rules of a loss beside rules that others publish.

False alarms on healthy losses, faults found and after how many steps, and what a value costs; each
rule sees the same values in the same process. The curves of real trainings in
`detectors_curves.csv` are made by the demo's network on the demo's digits (`--make` makes them
again). Times are given as multiples of the cheapest rule, measured in turns.

The peers, as their source has them: Lightning's `SpikeDetection` (a loss of 3 times the mean of
the last 10), Megatron's `is_unexpectedly_large` (10 times the greatest of the first 100), OLMo's
`SkipStepOptimizer` (6 deviations above the mean of the last 128). All three refuse NaN.
"""

from __future__ import annotations

import argparse
import math
import statistics
import timeit
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.signal import lfilter

from qigstore.safety.rules import RuleSet

__all__ = ["CURVES", "FAULT_AT", "RULES", "episodes", "main", "read_curves"]

STEPS = 120_000
CURVES = Path(__file__).with_name("detectors_curves.csv")
FAULT_AT = 1200
"""Step at which the fault of each stored curve begins."""
_CALM_STEPS = 50
"""Alarms that come within so many steps of each other are one episode."""

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Rule: TypeAlias = Callable[[Sequence[float]], list[int]]


def ours(values: Sequence[float]) -> list[int]:
    """`RuleSet.of(None)`: finite, EWMA z, Page-Hinkley."""
    check = RuleSet.of(None).bind(("loss",))
    return [step for step, value in enumerate(values) if check(step, (value,))]


def lightning(values: Sequence[float]) -> list[int]:
    """|x − mean of the last 10| ≥ 2·mean, upwards; what alarms does not enter the mean."""
    recent: deque[float] = deque(maxlen=10)
    alarms = []
    for step, value in enumerate(values):
        mean = sum(recent) / len(recent) if recent else value
        if not math.isfinite(value) or (step and value - mean >= 2.0 * abs(mean)):
            alarms.append(step)
        else:
            recent.append(value)
    return alarms


def megatron(values: Sequence[float]) -> list[int]:
    """x ≥ 10·(the greatest of the first 100)."""
    greatest, alarms = 0.0, []
    for step, value in enumerate(values):
        if not math.isfinite(value):
            alarms.append(step)
        elif step < 100:
            greatest = max(greatest, value)
        elif value >= 10.0 * greatest:
            alarms.append(step)
    return alarms


def olmo(values: Sequence[float]) -> list[int]:
    """x − mean > 6·deviation of the last 128; every finite value enters both."""
    recent: deque[float] = deque(maxlen=128)
    total = squares = 0.0
    alarms = []
    for step, value in enumerate(values):
        if not math.isfinite(value):
            alarms.append(step)
            continue
        n = len(recent)
        if n >= 64:
            mean = total / n
            if value - mean > 6.0 * math.sqrt(max(squares / n - mean * mean, 0.0)):
                alarms.append(step)
        if n == 128:
            oldest = recent[0]
            total, squares = total - oldest, squares - oldest * oldest
        recent.append(value)
        total, squares = total + value, squares + value * value
    return alarms


RULES: dict[str, Rule] = {
    "qigstore": ours, "Lightning": lightning, "Megatron": megatron, "OLMo": olmo
}  # fmt: skip


def episodes(alarms: Sequence[int]) -> list[int]:
    """First steps of runs of alarms."""
    firsts, before = [], -_CALM_STEPS - 1
    for step in alarms:
        if step - before > _CALM_STEPS:
            firsts.append(step)
        before = step
    return firsts


def noise(rng: np.random.Generator, count: int, memory: float) -> Array:
    """Normal noise of deviation 1 with a lag-one correlation."""
    white = rng.standard_normal(count + 1000)
    wander: Array = lfilter([1.0], [1.0, -memory], white) * math.sqrt(1.0 - memory * memory)
    return wander[1000:]


def quiet(seed: int) -> Iterator[tuple[str, Array]]:
    """Healthy losses, each of `STEPS` values; the decays in six trainings of their own."""
    rng = np.random.default_rng(seed)
    yield "plateau, white noise", 2.0 + 0.1 * rng.standard_normal(STEPS)
    for memory in (0.5, 0.7, 0.9, 0.95):
        yield f"plateau, lag-one {memory:g}", 2.0 + 0.1 * noise(rng, STEPS, memory)
    time = np.arange(STEPS)
    yield "power law", 5.0 * (time + 1.0) ** -0.2 * (1.0 + 0.02 * rng.standard_normal(STEPS))
    yield "decay", (0.5 + 4 * np.exp(-time / 1500)) * (1 + 0.05 * rng.standard_normal(STEPS))
    yield "log-normal", np.exp(0.15 * rng.standard_normal(STEPS))
    yield "Student t, 5 degrees", 5.0 + 0.1 * rng.standard_t(5, STEPS)


def faults(seed: int, count: int = 40) -> Iterator[tuple[str, list[Array]]]:
    """Losses that go wrong at step 1000, at four levels of noise."""
    shapes: dict[str, Callable[[Array], Array]] = {
        "spike of 2×": lambda t: np.where(t == 1000, 2.0, 1.0),
        "spike of 5×": lambda t: np.where(t == 1000, 5.0, 1.0),
        "step of 1.5×": lambda t: np.where(t >= 1000, 1.5, 1.0),
        "doubles over 100 steps": lambda t: 1.0 + np.clip((t - 1000) / 100, 0.0, 1.0),
        "doubles over 500 steps": lambda t: 1.0 + np.clip((t - 1000) / 500, 0.0, 1.0),
        "NaN": lambda t: np.where(t == 1000, np.nan, 1.0),
    }
    time = np.arange(1600, dtype=float)
    for name, shape in shapes.items():
        rng = np.random.default_rng(seed)
        level = shape(time)
        yield (
            name,
            [
                level * (1.0 + (0.01, 0.03, 0.05, 0.1)[i % 4] * rng.standard_normal(time.size))
                for i in range(count)
            ],
        )


def found(rule: Rule, series: Sequence[Array], at: int) -> tuple[int, str]:
    """How many of the faults were noticed before anything else was, and the median delay."""
    delays = []
    for values in series:
        first = next(iter(rule(values.tolist())), None)
        if first is not None and first >= at:
            delays.append(first - at)
    return len(delays), f"{statistics.median(delays):.0f}" if delays else "-"


def make_curves(seed: int = 3, steps: int = 2000) -> dict[str, Array]:
    """Losses of the demo's network: as it is, and with each of three faults."""
    from qigstore.demo.data import load_digits
    from qigstore.demo.model import Network
    from qigstore.demo.train import learning_rate

    digits = load_digits(seed)
    made = {}
    for kind in ("healthy", "spike", "slow divergence", "nan"):
        network, losses = Network(seed), []
        for step in range(steps):
            rate = learning_rate(step, steps, FAULT_AT if kind == "spike" else None)
            images, labels = digits.batch(step)
            if kind == "slow divergence" and step >= FAULT_AT:
                # The rate creeps up by half a per cent a step, as a wrong schedule does.
                rate = learning_rate(FAULT_AT, steps, None) * 1.01 ** (step - FAULT_AT)
            if kind == "nan" and step == FAULT_AT:
                images = images.copy()
                images[0, 0] = np.nan  # one broken image
            with np.errstate(all="ignore"):
                losses.append(network.train(images, labels, rate)[0])
        made[kind] = np.array(losses)
    return made


def write_curves(made: dict[str, Array]) -> None:
    """Store the curves, a column each."""
    rows = [",".join(made)]
    rows += [",".join(f"{value:.6g}" for value in row) for row in zip(*made.values(), strict=True)]
    CURVES.write_text("\n".join(rows) + "\n")


def read_curves() -> dict[str, Array]:
    """The stored curves by name."""
    names = CURVES.read_text().splitlines()[0].split(",")
    table = np.loadtxt(CURVES, delimiter=",", skiprows=1)
    return dict(zip(names, table.T, strict=True))


def print_row(label: str, cells: Sequence[object]) -> None:
    """One line of a table."""
    print(f"{label:<28}" + "".join(f"{cell!s:>16}" for cell in cells))


def cost(values: list[float], rounds: int = 5) -> dict[str, float]:
    """Best seconds of each rule over the same values, taken in turns."""
    best = dict.fromkeys(RULES, math.inf)
    for _ in range(rounds):
        for name, rule in RULES.items():
            best[name] = min(best[name], timeit.timeit(partial(rule, values), number=1))
    return best


def main() -> None:
    """Print the three tables and the cost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--make", action="store_true", help="train the stored curves again")
    options = parser.parse_args()
    if options.make:
        write_curves(make_curves())
    print_row(f"seed {options.seed}", [*RULES])
    print(f"\nfalse alarms in {STEPS:,} healthy steps")
    for name, values in quiet(options.seed):
        print_row(name, [len(episodes(rule(values.tolist()))) for rule in RULES.values()])
    print("\nfaults found of 40, and the median delay in steps")
    for name, series in faults(options.seed):
        cells = [found(rule, series, 1000) for rule in RULES.values()]
        print_row(name, [f"{hits} ({delay})" for hits, delay in cells])
    print(f"\nreal trainings, 2,000 steps, fault at step {FAULT_AT}: steps of the first alarms")
    for name, values in read_curves().items():
        print_row(name, [episodes(rule(values.tolist()))[:2] for rule in RULES.values()])
    best = cost(next(quiet(options.seed))[1].tolist())
    least = min(best.values())
    print()
    print_row(
        "cost a value, of the least", [f"{seconds / least:.1f}x" for seconds in best.values()]
    )


if __name__ == "__main__":
    main()
