"""Rules: silent while all is well, at once when it is not, once an episode, and they remember."""

from __future__ import annotations

import json
import math
import random
import tomllib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from qigstore.errors import ConfigurationError, InvalidInput
from qigstore.safety.rules import (
    ALARMS_PER_STEP_MAX,
    Alarm,
    Ewma,
    Finite,
    PageHinkley,
    RuleSet,
    Threshold,
)

STEPS = 20_000
GEOMETRY = "qig-2025-12-17"

Series = Callable[[np.random.Generator], np.ndarray]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """One of each test's own, the same in every run.

    An alarm in some hundreds of healthy series of 20,000 steps is what a detector costs.
    """
    return zlib.crc32(request.node.nodeid.encode())


def feed(rules: RuleSet, name: str, values: Sequence[float], *, start: int = 0) -> list[Alarm]:
    check = rules.bind((name,))
    return [
        alarm for step, value in enumerate(values, start) for alarm in check(step, [float(value)])
    ]


def correlated(rng: np.random.Generator, memory: float) -> np.ndarray:
    noise, out = rng.standard_normal(STEPS), np.zeros(STEPS)
    for i in range(1, STEPS):
        out[i] = memory * out[i - 1] + noise[i]
    return 5 + 0.1 * out


TIME = np.arange(STEPS)
DECAY = 0.5 + 4 * np.exp(-TIME / 1500)
QUIET: dict[str, Series] = {
    "plateau with noise": lambda rng: 2 + 0.1 * rng.standard_normal(STEPS),
    "decay, constant noise": lambda rng: DECAY + 0.05 * rng.standard_normal(STEPS),
    "decay, noise in proportion": lambda rng: DECAY * (1 + 0.05 * rng.standard_normal(STEPS)),
    "power law": lambda rng: 5 * (TIME + 1.0) ** -0.2 * (1 + 0.02 * rng.standard_normal(STEPS)),
    "without noise": lambda rng: DECAY,
    "constant": lambda rng: np.full(STEPS, 0.7),
    "all zero": lambda rng: np.zeros(STEPS),
    "log-normal": lambda rng: np.exp(0.15 * rng.standard_normal(STEPS)),
    "gamma": lambda rng: rng.gamma(30.0, 1.0, STEPS),
    "uniform": lambda rng: rng.random(STEPS),
    "memory 0.3": lambda rng: correlated(rng, 0.3),
    "noise that comes and goes": lambda rng: (
        2 + 0.05 * (1.2 + np.sin(TIME / 500)) * rng.standard_normal(STEPS)
    ),
    "drops at learning-rate steps": lambda rng: (
        3 - 0.25 * (TIME // 2000) + 0.05 * rng.standard_normal(STEPS)
    ),
}


@pytest.mark.parametrize("family", QUIET)
def test_the_default_rules_are_silent_on_a_healthy_loss(family: str, seed: int) -> None:
    loss = QUIET[family](np.random.default_rng(seed))
    assert feed(RuleSet.of(None), "loss", loss.tolist()) == []


@pytest.mark.long
@pytest.mark.parametrize("family", QUIET)
def test_the_default_rules_are_silent_for_120_000_steps(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    alarms = [a for _ in range(6) for a in feed(RuleSet.of(None), "loss", QUIET[family](rng))]
    assert alarms == []


def test_noise_with_a_long_memory_is_no_drift(seed: int) -> None:
    """Its sums wander: judged by the variance of single values it alarms a dozen times here."""
    loss = correlated(np.random.default_rng(seed), 0.9)
    assert len(feed(RuleSet([PageHinkley("loss")]), "loss", loss.tolist())) <= 3


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.03, 0.1, 0.2])
def test_a_loss_that_doubles_over_100_steps_is_warned_of(noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = np.concatenate([np.ones(500), np.linspace(1.0, 2.0, 100)])
    alarms = feed(RuleSet.of(None), "loss", level * (1 + noise * rng.standard_normal(600)))
    assert alarms
    assert alarms[0].step >= 500
    assert {alarm.metric for alarm in alarms} == {"loss"}


def test_a_slow_rise_is_one_episode_and_the_next_rise_another() -> None:
    rng = np.random.default_rng(21)
    level = np.concatenate([np.ones(500), np.linspace(1, 2, 100), np.full(4000, 2.0),
                            np.linspace(2, 4, 100), np.full(400, 4.0)])  # fmt: skip
    noise = 1 + 0.03 * rng.standard_normal(level.size)
    steps = [a.step for a in feed(RuleSet([PageHinkley("loss")]), "loss", level * noise)]
    assert len(steps) == 2
    assert 500 <= steps[0] < 600
    assert 4600 <= steps[1] < 4700


def test_a_spike_is_critical_at_its_own_step(seed: int) -> None:
    loss = 2 + 0.1 * np.random.default_rng(seed).standard_normal(1000)
    loss[700] = 5.0
    alarms = feed(RuleSet([Ewma("loss")]), "loss", loss)
    assert [(a.step, a.severity, a.value) for a in alarms] == [(700, "critical", 5.0)]
    assert alarms[0].threshold is not None
    assert alarms[0].threshold < 5.0


def test_a_spike_does_not_hide_a_second_one() -> None:
    rng = np.random.default_rng(11)
    loss = 2 + 0.1 * rng.standard_normal(1000)
    loss[600], loss[650] = 1e4, 6.0
    assert [a.step for a in feed(RuleSet([Ewma("loss", clear_steps=20)]), "loss", loss)] == [
        600,
        650,
    ]


def test_a_lasting_shift_is_one_episode_and_is_taken_in() -> None:
    rng = np.random.default_rng(12)
    rules = RuleSet([Ewma("loss")])
    loss = np.concatenate([np.full(500, 2.0), np.full(2000, 4.0)]) + 0.05 * rng.standard_normal(
        2500
    )
    assert [a.step for a in feed(rules, "loss", loss)] == [500]
    assert feed(rules, "loss", [9.0], start=2500)[0].severity == "critical"


def test_a_warning_grows_into_a_critical_alarm_within_one_episode() -> None:
    rng = np.random.default_rng(13)
    loss = 2 + 0.1 * rng.standard_normal(540)
    loss[500:505] = 2.7
    loss[505:] = 8.0
    found = [(a.step, a.severity) for a in feed(RuleSet([Ewma("loss")]), "loss", loss)]
    assert found == [(502, "warning"), (505, "critical")]


@pytest.mark.parametrize(
    ("direction", "jump", "fires"),
    [("up", 3.0, True), ("up", -3.0, False), ("down", -3.0, True), ("down", 3.0, False),
     ("both", 3.0, True), ("both", -3.0, True)],
)  # fmt: skip
def test_a_jump_fires_in_the_declared_direction_only(
    direction: str, jump: float, fires: bool
) -> None:
    rules = RuleSet.from_mapping(
        {"rules": [{"kind": "ewma", "metric": "m", "direction": direction}]}
    )
    values = (5 + 0.05 * np.random.default_rng(3).standard_normal(300)).tolist()
    assert bool(feed(rules, "m", [*values, 5 + jump])) is fires


def test_nothing_is_judged_before_there_are_enough_values() -> None:
    rng = random.Random(4)
    wild = [rng.choice([1.0, 100.0, 1e6]) for _ in range(50)]
    assert feed(RuleSet([Ewma("loss"), PageHinkley("loss")]), "loss", wild) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_critical_at_once(bad: float) -> None:
    alarms = feed(RuleSet.of(None), "anything", [bad])
    assert [(a.step, a.severity, a.metric) for a in alarms] == [(0, "critical", "anything")]
    assert str(bad) in alarms[0].message


def test_what_is_not_finite_never_enters_a_statistic() -> None:
    rng = random.Random(5)
    clean = [2 + 0.1 * rng.gauss(0, 1) for _ in range(400)]
    pure, dirty = RuleSet.of(None), RuleSet.of(None)
    feed(pure, "loss", clean)
    holes = [x for value in clean for x in (value, math.nan, math.inf, -math.inf)]
    feed(dirty, "loss", holes)
    for name in ("loss ewma", "loss drift"):
        learnt, expected = (rules.state()["rules"][name]["loss"] for rules in (dirty, pure))
        for numbers in (learnt, expected):
            numbers.pop("far_step", None)  # which step it was is the caller's affair
        assert learnt == expected


def test_an_infinite_pair_that_cancels_is_still_found() -> None:
    check = RuleSet([Finite()]).bind(("a", "b"))
    assert check(0, [math.inf, -math.inf])[0].metric == "a"


def test_finite_values_whose_sum_overflows_raise_nothing() -> None:
    check = RuleSet([Finite(), Threshold("a", above=1.7e308)]).bind(("a", "b"))
    assert check(0, [1.6e308, 1.6e308]) == ()


def test_huge_finite_values_leave_the_statistics_finite() -> None:
    rules = RuleSet([Ewma("loss", direction="both"), PageHinkley("loss")])
    rng = random.Random(6)
    feed(rules, "loss", [rng.choice([-1, 1]) * 10 ** rng.uniform(-300, 308) for _ in range(3000)])
    text = json.dumps(rules.state(), allow_nan=False)
    RuleSet(rules.rules).restore(json.loads(text))


def test_not_finite_is_one_alarm_an_episode_and_again_after_it() -> None:
    rules = RuleSet([Finite(clear_steps=3)])
    nan = math.nan
    values = [nan, nan, 1.0, nan, 1.0, 1.0, 1.0, nan]
    assert [a.step for a in feed(rules, "grad_norm", values)] == [0, 7]


def test_many_metrics_that_turn_at_once_are_one_alarm() -> None:
    names = tuple(f"m{i}" for i in range(200))
    alarms = RuleSet([Finite()]).bind(names)(3, [math.nan] * 200)
    assert len(alarms) == 1
    assert "and 195 more" in alarms[0].message


def test_a_loss_that_stays_nan_stops_the_run_and_one_bad_batch_does_not() -> None:
    once = feed(RuleSet.of(None), "loss", [2.0] * 20 + [math.nan] + [2.0] * 20)
    assert [a.action for a in once] == ["record"]
    stays = feed(RuleSet.of(None), "loss", [2.0] * 20 + [math.nan] * 30)
    assert [(a.step, a.action) for a in stays] == [(20, "record"), (29, "abort")]


@pytest.mark.parametrize(
    ("rule", "values", "steps"),
    [
        (Threshold("m", above=10.0), [10, 10.5, 11, 10, 11], [1, 4]),
        (Threshold("m", at_least=10.0), [9.99, 10.0, 9.99], [1]),
        (Threshold("m", below=0.5), [0.5, 0.49, 0.4, 0.6, 0.4], [1, 4]),
        (Threshold("m", above=10.0, off=8.0), [11, 9, 11, 8, 11], [0, 4]),
        (Threshold("m", above=10.0, for_steps=3), [11, 11, 9, 11, 11, 11, 11], [5]),
        (Threshold("m", below=0.5, armed="after_healthy", healthy_when=0.7),
         [0.3, 0.6, 0.4, 0.7, 0.49], [4]),
        (Threshold("m", above=5.0, armed="after_healthy", healthy_when=1.0),
         [9, 9, 1.5, 9, 1.0, 9], [5]),
    ],
)  # fmt: skip
def test_a_threshold_fires_where_it_says(
    rule: Threshold, values: list[float], steps: list[int]
) -> None:
    assert [a.step for a in feed(RuleSet([rule]), "m", values)] == steps


def test_a_collapse_of_phi_aborts_only_a_run_that_was_healthy() -> None:
    assert feed(RuleSet.preset(GEOMETRY), "phi", [0.3, 0.2, 0.6, 0.3]) == []
    alarms = feed(RuleSet.preset(GEOMETRY), "phi", [0.3, 0.71, 0.55, 0.49, 0.3])
    assert [(a.step, a.severity, a.action) for a in alarms] == [(3, "critical", "abort")]


@pytest.mark.parametrize(
    ("metric", "value", "severity"),
    [("phi", 0.85, "warning"), ("phi", 0.90, "critical"), ("breakdown_pct", 60.1, "critical"),
     ("basin_distance", 0.31, "warning"), ("kappa_eff", 19.9, "warning"),
     ("recursion_depth", 2.0, "critical")],
)  # fmt: skip
def test_the_geometry_preset_knows_its_limits(metric: str, value: float, severity: str) -> None:
    alarms = feed(RuleSet.preset(GEOMETRY), metric, [value])
    assert alarms
    assert alarms[0].severity == severity
    assert alarms[0].metric == metric


@pytest.mark.parametrize(
    ("metric", "value"),
    [("phi", 0.849), ("breakdown_pct", 60.0), ("basin_distance", 0.30), ("kappa_eff", 20.0),
     ("recursion_depth", 3.0)],
)  # fmt: skip
def test_the_geometry_preset_is_silent_at_the_safe_side_of_a_limit(
    metric: str, value: float
) -> None:
    assert feed(RuleSet.preset(GEOMETRY), metric, [value] * 5) == []


def test_no_geometry_rule_fires_on_what_nobody_measures() -> None:
    rules = RuleSet.preset("default", GEOMETRY)
    assert feed(rules, "loss", [2.0] * 100) == []
    assert "Insufficient recursion depth" in rules.unmatched()


def test_a_session_without_a_preset_has_no_geometry_rule() -> None:
    metrics = {rule.metric for rule in RuleSet.of(None).rules}
    assert metrics == {"*", "loss"}


def test_the_quiet_path_returns_one_shared_empty_tuple() -> None:
    check = RuleSet.of(None).bind(("loss", "phi"))
    results = {id(check(step, [2.0, 0.7])) for step in range(100)}
    assert results == {id(())}


def test_a_pattern_watches_each_metric_by_itself() -> None:
    rules = RuleSet([Threshold("loss/*", above=5.0)])
    check = rules.bind(("loss/a", "loss/b", "accuracy"))
    assert [a.metric for a in check(0, [6.0, 1.0, 9.0])] == ["loss/a"]
    assert [a.metric for a in check(1, [6.0, 7.0, 9.0])] == ["loss/b"]


def test_one_step_raises_a_bounded_number_of_alarms_worst_first() -> None:
    names = tuple(f"m{i}" for i in range(30))
    mild = Threshold("*", above=1.0, severity="warning")
    stop = Threshold("m29", above=1.0, action="abort", name="stop")
    rules = RuleSet([mild, stop])
    alarms = rules.bind(names)(0, [2.0] * 30)
    assert len(alarms) == ALARMS_PER_STEP_MAX
    assert alarms[0].action == "abort"
    assert rules.suppressed == 31 - ALARMS_PER_STEP_MAX


def test_what_was_learnt_survives_a_change_of_layout() -> None:
    rules = RuleSet([Threshold("phi", below=0.5, armed="after_healthy", healthy_when=0.7)])
    rules.bind(("phi",))(0, [0.8])
    rules.bind(("loss",))(1, [0.1])
    assert len(rules.bind(("loss", "phi"))(2, [0.1, 0.4])) == 1
    assert rules.bind(("phi", "loss"))(3, [0.4, 0.1]) == ()


@pytest.mark.parametrize("cut", [1, 3, 49, 51, 250, 501, 530])
def test_state_that_went_through_json_continues_exactly(cut: int) -> None:
    rng = random.Random(9)
    values = [2 + 0.1 * rng.gauss(0, 1) for _ in range(600)]
    values[500:540] = [math.nan if i % 3 else 9.0 for i in range(40)]
    whole = RuleSet.of(None)
    straight = feed(whole, "loss", values)
    first, second = RuleSet.of(None), RuleSet.of(None)
    before = feed(first, "loss", values[:cut])
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    after = feed(second, "loss", values[cut:], start=cut)
    assert [(a.step, a.rule, a.message) for a in before + after] == [
        (a.step, a.rule, a.message) for a in straight
    ]
    assert second.state() == whole.state()


def test_a_bound_check_goes_on_with_the_restored_state() -> None:
    healthy = RuleSet.preset(GEOMETRY)
    feed(healthy, "phi", [0.8])
    rules = RuleSet.preset(GEOMETRY)
    check = rules.bind(("phi",))
    rules.restore(healthy.state())
    assert check(0, [0.3])[0].action == "abort"


def test_a_rule_no_longer_declared_is_left_out_of_the_state() -> None:
    old = RuleSet([Threshold("a", above=1.0), Ewma("b")])
    feed(old, "a", [2.0])
    new = RuleSet([Threshold("a", above=1.0)])
    new.restore(old.state())
    assert feed(new, "a", [2.0]) == []


@pytest.mark.parametrize(
    "damaged",
    [
        None, {}, {"version": 3}, {"version": 2, "rules": {}}, {"version": 3, "rules": []},
        {"version": 3, "rules": {"loss ewma": 3}},
        {"version": 3, "rules": {"loss ewma": {"loss": {"count": 3}}}},
        {"version": 3, "rules": {"loss ewma": {"loss": {
            "count": 3, "covariance": 0.0, "far": 0.0, "far_step": 1, "good": 0, "last": 0.0,
            "level": 0, "mean": math.nan, "run": 0, "variance": 1.0}}}},
    ],
)  # fmt: skip
def test_damaged_state_is_refused_and_changes_nothing(damaged: object) -> None:
    rules = RuleSet.of(None)
    feed(rules, "loss", [1.0, 2.0])
    before = rules.state()
    with pytest.raises(InvalidInput):
        rules.restore(damaged)  # type: ignore[arg-type]
    assert rules.state() == before


TOML = """
preset = "loss"

[[rules]]
kind = "threshold"
metric = "accuracy"
below = 0.2
off = 0.25
armed = "after_healthy"
healthy_when = 0.5
action = "checkpoint"

[[rules]]
kind = "ewma"
metric = "grad_norm"
fire = 20.0
"""


def test_rules_are_read_from_toml() -> None:
    rules = RuleSet.from_mapping(tomllib.loads(TOML))
    assert rules.rules[-2] == Threshold(
        "accuracy", below=0.2, off=0.25, armed="after_healthy", healthy_when=0.5,
        action="checkpoint",
    )  # fmt: skip
    assert rules.rules[-1] == Ewma("grad_norm", fire=20.0)
    assert rules.rules[:-2] == RuleSet.preset("loss").rules


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"presets": "loss"}, "did you mean 'preset'"),
        ({"preset": "los"}, "did you mean 'loss'"),
        ({"preset": 3}, "list of names"),
        ({"rules": "finite"}, "list of tables"),
        ({"rules": [{"kind": "treshold", "metric": "m"}]}, "did you mean 'threshold'"),
        ({"rules": [{"metric": "m"}]}, "kind is one of"),
        ({"rules": [{"kind": "threshold", "above": 1}]}, "metric is missing"),
        ({"rules": [{"kind": "threshold", "metric": "m", "abov": 1}]}, "did you mean 'above'"),
        ({"rules": [{"kind": "threshold", "metric": "m"}]}, "exactly one of"),
        ({"rules": [{"kind": "threshold", "metric": "m", "above": 1, "below": 0}]}, "exactly one"),
        ({"rules": [{"kind": "threshold", "metric": "m", "above": 1, "off": 2}]}, "at or below"),
        ({"rules": [{"kind": "threshold", "metric": "m", "below": 1, "off": 0}]}, "at or above"),
        ({"rules": [{"kind": "threshold", "metric": "m", "below": 0.5, "armed": "after_healthy",
                     "healthy_when": 0.4}]}, "healthy_when"),
        ({"rules": [{"kind": "threshold", "metric": "m", "below": 1, "armed": "after_healthy"}]},
         "go together"),
        ({"rules": [{"kind": "threshold", "metric": "m", "above": math.nan}]}, "finite number"),
        ({"rules": [{"kind": "threshold", "metric": "m", "above": "1"}]}, "finite number"),
        ({"rules": [{"kind": "threshold", "metric": "m", "above": 1, "for_steps": 0}]}, "≥ 1"),
        ({"rules": [{"kind": "threshold", "metric": "", "above": 1}]}, "metric"),
        ({"rules": [{"kind": "ewma", "metric": "m", "warn": 12.0}]}, "below fire"),
        ({"rules": [{"kind": "ewma", "metric": "m", "a": 1.5}]}, "below 1"),
        ({"rules": [{"kind": "ewma", "metric": "m", "direction": "upp"}]}, "did you mean 'up'"),
        ({"rules": [{"kind": "finite", "action": "roll back"}]}, "checkpoint, soft_reset, abort"),
        ({"rules": [{"kind": "page_hinkley", "metric": "m", "action": "soft_reset"}]}, "critical"),
        ({"rules": [{"kind": "rate", "metric": "m", "limit": 0}]}, "above 0"),
        ({"rules": [{"kind": "rate", "metric": "m", "limit": 1, "over": 10**6}]}, "at most"),
        ({"rules": [{"kind": "escalation", "alarms": 0}]}, "≥ 1"),
        ({"rules": [{"kind": "escalation", "of": ""}]}, "of is a rule"),
        ({"rules": [{"kind": "heartbeat", "action": "checkpoint"}]}, "record, abort"),
        ({"rules": [{"kind": "heartbeat", "metric": "m"}]}, "no field 'metric'"),
        ({"rules": [{"kind": "finite", "severity": "fatal"}]}, "severity is one of"),
        ({"rules": [{"kind": "finite"}, {"kind": "finite", "for_steps": 2}]}, "two rules"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_declaration_is_named(mapping: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RuleSet.from_mapping(mapping)


def test_whatever_a_user_passes_as_rules_becomes_a_rule_set() -> None:
    ready = RuleSet([Ewma("loss")])
    assert RuleSet.of(ready) is ready
    assert RuleSet.of("loss").rules == RuleSet.of(None).rules
    assert RuleSet.of({"preset": ["loss"]}).rules == RuleSet.of(None).rules
    assert RuleSet.of([Ewma("loss")]).rules == ready.rules
    assert RuleSet.of([]).bind(("loss",))(0, [math.nan]) == ()


def test_a_rule_file_is_read_and_a_bad_one_is_named(tmp_path: Path) -> None:
    good, bad, broken = (tmp_path / name for name in ("good.toml", "bad.toml", "broken.toml"))
    good.write_text(TOML)
    bad.write_text("presets = 'loss'")
    broken.write_text("preset = ")
    assert RuleSet.of(good).rules == RuleSet.from_mapping(tomllib.loads(TOML)).rules
    for path in (bad, broken, tmp_path / "none.toml"):
        with pytest.raises(ConfigurationError, match=path.name):
            RuleSet.of(path)
