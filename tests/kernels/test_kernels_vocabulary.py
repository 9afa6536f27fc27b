"""Constants, configuration, regimes, telemetry, safety and the names that existing code imports."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import qigkernels
from qigkernels import (
    KAPPA_STAR,
    PHI_THRESHOLD,
    PHYSICS,
    ConsciousnessTelemetry,
    EmergencyCondition,
    QIGConfig,
    Regime,
    RegimeDetector,
    SafetyMonitor,
    ValidationError,
    fisher_rao_distance,
    get_config,
    get_preset,
    quantum_fidelity,
    reset_config,
    set_config,
    validate_basin,
    validate_density_matrix,
)
from qigkernels.constants import PRESETS, beta, weighted_mean
from qigkernels.safety import RULES
from qigkernels.validation import validate_kappa, validate_phi

HEALTHY = {
    "phi": 0.72,
    "kappa_eff": 64.2,
    "regime": "geometric",
    "basin_distance": 0.05,
    "recursion_depth": 5,
}


def telemetry(**changes):
    return ConsciousnessTelemetry(**{**HEALTHY, **changes})


def test_the_presets_are_as_published_and_agree_with_themselves():
    assert (KAPPA_STAR, PHI_THRESHOLD, PHYSICS.BASIN_DIM) == (64.21, 0.70, 64)
    for preset in PRESETS.values():
        found = preset.validate_alignment()
        assert found["all_valid"], found
        assert all(found["checks"].values())
    broken = dataclasses.replace(PHYSICS, PHI_EMERGENCY=0.9)
    assert not broken.validate_alignment()["all_valid"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PHYSICS.KAPPA_STAR = 1.0


def test_kappa_at_a_scale_nobody_measured_is_the_fixed_point():
    assert [PHYSICS.get_kappa_at_scale(L) for L in (3, 4, 5, 6)] == [41.09, 64.47, 63.62, 64.45]
    assert PHYSICS.get_kappa_at_scale(7) == PHYSICS.get_kappa_at_scale(99) == KAPPA_STAR
    assert get_preset("qig-2026-01-10").get_kappa_at_scale(7) == 61.16
    with pytest.raises(LookupError, match="qig-2025-12-17"):
        get_preset("qig-1999")


def test_every_constant_has_provenance_and_the_contradiction_is_noted():
    table = PHYSICS.provenance
    assert table["KAPPA_4"].uncertainty == 1.89
    assert all(entry.source for entry in table.values())
    mean, error = weighted_mean(PHYSICS)
    assert (round(mean, 4), round(error, 4)) == (64.2078, 0.9162)
    assert PHYSICS.BETA_5_TO_6 == -0.003
    assert beta(63.62, 64.45) == pytest.approx(0.013, abs=5e-4)
    assert "contradicts" in table["BETA_5_TO_6"].source
    assert "contradicts" not in table["BETA_3_TO_4"].source


def test_regimes_are_stored_by_their_position():
    assert [regime.code for regime in Regime] == [0, 1, 2, 3]
    assert [Regime.from_code(code) for code in range(4)] == list(Regime)
    assert [str(regime) for regime in Regime] == [
        "linear",
        "geometric",
        "hyperdimensional",
        "topological_instability",
    ]
    with pytest.raises(ValueError, match="no regime"):
        Regime.from_code(4)


@pytest.mark.parametrize(
    ("phi", "kappa", "distance", "regime"),
    [
        (0.0, None, None, "linear"),
        (0.449, 64.0, 0.0, "linear"),
        (0.45, None, None, "geometric"),
        (0.749, 0.0, 1.0, "geometric"),
        (0.75, None, None, "hyperdimensional"),
        (0.80, 64.0, 0.05, "hyperdimensional"),
        (0.80, 74.21, 0.15, "hyperdimensional"),
        (0.80, 30.0, None, "topological_instability"),
        (0.80, 64.0, 0.16, "topological_instability"),
        (0.90, 64.21, 0.0, "topological_instability"),
        (0.80, math.nan, math.nan, "hyperdimensional"),
    ],
)
def test_regimes_follow_their_boundaries(phi, kappa, distance, regime):
    detector = RegimeDetector()
    assert detector.detect(phi, kappa, distance) is Regime(regime)
    assert detector.code(phi, kappa, distance) == Regime(regime).code


@pytest.mark.parametrize("phi", [None, math.nan])
def test_without_phi_there_is_no_regime(phi):
    assert RegimeDetector().detect(phi, 64.0, 0.1) is None
    assert RegimeDetector().code(phi, 64.0, 0.1) == -1


def test_telemetry_survives_json_and_missing_stays_missing():
    sent = telemetry(regime=Regime.GEOMETRIC)
    data = json.loads(json.dumps(sent.to_dict()))
    assert ConsciousnessTelemetry.from_dict(data) == sent
    assert type(sent.regime) is str
    assert sent.get_regime_enum() is Regime.GEOMETRIC
    empty = ConsciousnessTelemetry()
    assert set(empty.to_dict().values()) == {None, False}
    assert empty.is_safe()
    assert empty.get_regime_enum() is None
    with pytest.raises(ValidationError, match="no field 'phy'"):
        ConsciousnessTelemetry.from_dict({"phy": 1.0})
    with pytest.raises(ValidationError, match="regime 'cubic'"):
        ConsciousnessTelemetry(regime="cubic")


@pytest.mark.parametrize(
    ("change", "reason", "severity", "threshold"),
    [
        ({"phi": 0.30}, "Consciousness collapse", "critical", 0.50),
        ({"breakdown_pct": 61.0}, "Ego death risk", "critical", 60.0),
        ({"basin_distance": 0.35}, "Identity drift", "warning", 0.30),
        ({"kappa_eff": 19.0}, "Weak coupling", "warning", 20.0),
        ({"recursion_depth": 2}, "Insufficient recursion depth", "critical", 3.0),
        ({"phi": 0.86}, "Integration near instability", "warning", 0.85),
        ({"phi": 0.90}, "Topological instability", "critical", 0.90),
    ],
)
def test_each_threshold_has_its_reason(change, reason, severity, threshold):
    record = telemetry(**change)
    metric, value = next(iter(change.items()))
    wanted = EmergencyCondition(reason, severity, metric, float(value), threshold)
    assert SafetyMonitor().check(record) == wanted
    assert not SafetyMonitor().is_safe(record)
    assert not record.is_safe()


def test_at_the_threshold_itself_nothing_fires():
    for change in (
        {"phi": 0.50},
        {"breakdown_pct": 60.0},
        {"basin_distance": 0.30},
        {"kappa_eff": 20.0},
        {"recursion_depth": 3},
    ):
        assert SafetyMonitor().check(telemetry(**change)) is None
    assert telemetry().is_safe()


def test_the_worst_violation_comes_first_and_all_are_told():
    found = SafetyMonitor().check_all(telemetry(phi=0.1, kappa_eff=1.0, basin_distance=1.0))
    assert [condition.reason for condition in found] == [
        "Consciousness collapse",
        "Identity drift",
        "Weak coupling",
    ]
    order = ["critical", "warning", "info"]
    assert [rule.severity for rule in RULES] == sorted(
        (rule.severity for rule in RULES), key=order.index
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_critical(value):
    for metric in ("phi", "kappa_eff", "basin_distance", "breakdown_pct"):
        found = SafetyMonitor().check(telemetry(**{metric: value}))
        assert (found.reason, found.severity, found.metric) == (
            "Non-finite metric",
            "critical",
            metric,
        )


def test_a_run_that_was_never_healthy_does_not_collapse():
    monitor = SafetyMonitor(armed=SafetyMonitor.run_arming())
    assert monitor.check(telemetry(phi=0.1)) is None
    assert not monitor.healthy_once
    assert monitor.check(telemetry(phi=0.70)) is None
    assert monitor.healthy_once
    assert monitor.check(telemetry(phi=0.1)).reason == "Consciousness collapse"


def test_a_flagged_emergency_is_not_safe_and_sleep_comes_before_drift():
    assert not telemetry(emergency=True).is_safe()
    monitor = SafetyMonitor()
    assert not monitor.should_sleep(telemetry(basin_distance=0.24))
    assert monitor.should_sleep(telemetry(basin_distance=0.25))
    assert not monitor.should_sleep(ConsciousnessTelemetry())


def test_configuration_is_immutable_checked_and_process_wide():
    config = QIGConfig()
    assert (config.kappa_star, config.phi_threshold, config.basin_dim) == (64.21, 0.70, 64)
    with pytest.raises((AttributeError, TypeError)):
        config.phi_threshold = 0.80
    with pytest.raises(ValueError, match="phi_emergency"):
        QIGConfig(phi_emergency=0.75, phi_threshold=0.70)
    with pytest.raises(ValueError, match="basin_drift_threshold"):
        QIGConfig(basin_drift_threshold=4.0)
    with pytest.raises(ValueError, match="kappa_weak_threshold"):
        QIGConfig(kappa_weak_threshold=math.nan)
    with pytest.raises(ValueError, match="phi_high_warning"):
        QIGConfig(phi_high_warning=0.95)
    assert QIGConfig.from_preset(PHYSICS) == config == get_config()
    with pytest.raises(TypeError):
        set_config({"phi_threshold": 0.8})
    set_config(QIGConfig(basin_drift_threshold=1.0))
    try:
        assert SafetyMonitor().is_safe(telemetry(basin_distance=0.9))
    finally:
        reset_config()
    assert not SafetyMonitor().is_safe(telemetry(basin_distance=0.9))


def test_validators_ask_for_what_they_say_and_no_more(rng):
    validate_basin(rng.standard_normal(64), expected_dim=64)
    validate_basin(rng.standard_normal((3, 64)))
    validate_basin(rng.standard_normal(8), expected_dim=8)
    validate_phi(0.0)
    validate_phi(1.0)
    validate_kappa(-3.0)
    psi = rng.standard_normal(4) + 1j * rng.standard_normal(4)
    psi /= np.linalg.norm(psi)
    validate_density_matrix(np.outer(psi, psi.conj()))


def test_fisher_rao_distance_has_four_methods(rng, random_state):
    zero, one = np.diag([1.0, 0.0]).astype(complex), np.diag([0.0, 1.0]).astype(complex)
    assert fisher_rao_distance(zero, one, method="bures") == pytest.approx(np.sqrt(2.0), abs=1e-15)
    assert fisher_rao_distance(zero, one) == fisher_rao_distance(zero, one, method="bures")
    p, q = rng.dirichlet(np.ones(64), 2)
    assert fisher_rao_distance(p, q, method="simplex") == qigkernels.simplex.distance(p, q)
    a, b = rng.standard_normal((2, 64))
    g = rng.uniform(0.5, 2.0, 64)
    local = fisher_rao_distance(a, b, metric=g, method="diagonal")
    assert local == pytest.approx(np.sqrt(((a - b) ** 2 * g).sum()), rel=1e-14)
    full = fisher_rao_distance(a, b, metric=np.diag(g), method="full")
    assert full == pytest.approx(local, rel=1e-14)
    rho, sigma = random_state(4), random_state(4)
    assert quantum_fidelity(rho, rho) == pytest.approx(1.0, abs=1e-14)
    assert quantum_fidelity(rho, sigma) == qigkernels.states.fidelity(rho, sigma)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "euclid"},
        {"method": "diagonal"},
        {"method": "simplex", "metric": np.ones(2)},
        {"method": "diagonal", "metric": np.array([1.0, -1.0])},
        {"method": "diagonal", "metric": np.ones(3)},
        {"method": "full", "metric": np.array([[1.0, 2.0], [2.0, 1.0]])},
        {"method": "full", "metric": np.array([[1.0, 0.5], [0.0, 1.0]])},
        {"method": "full", "metric": np.full((2, 2), np.nan)},
    ],
)
def test_fisher_rao_distance_refuses_a_metric_that_is_none(options):
    with pytest.raises(ValidationError):
        fisher_rao_distance(np.array([0.5, 0.5]), np.array([0.25, 0.75]), **options)


def test_the_public_surface_is_whole_sorted_and_lazy():
    assert all(getattr(qigkernels, name) is not None for name in qigkernels.__all__)
    assert dir(qigkernels) == sorted(qigkernels.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qigkernels.nothing
    code = (
        "import sys, qigkernels\n"
        "assert 'numpy' not in sys.modules, 'numpy'\n"
        "for name in qigkernels.__all__: getattr(qigkernels, name)\n"
        "loaded = [m for m in ('scipy', 'torch', 'jax', 'qigstore') if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
