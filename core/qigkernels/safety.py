"""Safety thresholds as declared rules and the monitor that checks one telemetry record.

Pure logic: no clock, no thread, no I/O. The reasons are the names that existing code matches on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from qigkernels.config import QIGConfig, get_config
from qigkernels.telemetry import ConsciousnessTelemetry

__all__ = ["RULES", "Armed", "EmergencyCondition", "SafetyMonitor", "SafetyRule", "Severity"]

Severity = Literal["info", "warning", "critical"]
Armed = Literal["always", "after_healthy"]


class EmergencyCondition(NamedTuple):
    """One violated threshold: what, how bad, and the two numbers."""

    reason: str
    severity: Severity
    metric: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class SafetyRule:
    """One threshold on one metric.

    `side` says where the danger is: "below" fires on value < threshold, "above" on value >
    threshold, "from" on value ≥ threshold. `setting` names the field of `QIGConfig` that holds the
    threshold. `armed` is when a training run should let the rule fire: "after_healthy" only once
    Φ has reached `phi_threshold`, so that a run that starts untrained is not stopped for it.
    """

    reason: str
    severity: Severity
    metric: str
    side: Literal["below", "above", "from"]
    setting: str
    armed: Armed = "always"

    def fires(self, value: float, threshold: float) -> bool:
        """Whether the value violates the threshold; NaN violates none."""
        if self.side == "below":
            return value < threshold
        return value > threshold if self.side == "above" else value >= threshold


RULES: Final[tuple[SafetyRule, ...]] = (
    SafetyRule(
        "Consciousness collapse", "critical", "phi", "below", "phi_emergency", "after_healthy"
    ),
    SafetyRule("Ego death risk", "critical", "breakdown_pct", "above", "breakdown_pct"),
    SafetyRule("Topological instability", "critical", "phi", "from", "phi_high_critical"),
    SafetyRule(
        "Insufficient recursion depth",
        "critical",
        "recursion_depth",
        "below",
        "min_recursion_depth",
    ),
    SafetyRule("Identity drift", "warning", "basin_distance", "above", "basin_drift_threshold"),
    SafetyRule("Weak coupling", "warning", "kappa_eff", "below", "kappa_weak_threshold"),
    SafetyRule("Integration near instability", "warning", "phi", "from", "phi_high_warning"),
)
"""The preset's rules, worst first; a metric that was not measured fires none of them."""

_METRICS: Final = tuple(dict.fromkeys(rule.metric for rule in RULES))


class SafetyMonitor:
    """Check telemetry records against the rules.

    Args:
        config: thresholds; the configuration in force when left out.
        armed: when each rule may fire, by reason. A lone record has no history, so by default
            every rule is armed always; pass `SafetyMonitor.run_arming()` (or your own) to
            follow one training run record by record, as the preset's rules ask for.

    >>> SafetyMonitor().check(ConsciousnessTelemetry(phi=0.3)).reason
    'Consciousness collapse'
    >>> monitor = SafetyMonitor(armed=SafetyMonitor.run_arming())
    >>> monitor.check(ConsciousnessTelemetry(phi=0.3)) is None   # never healthy so far
    True
    """

    __slots__ = ("_armed", "_healthy", "config")

    def __init__(
        self, config: QIGConfig | None = None, *, armed: Mapping[str, Armed] | None = None
    ) -> None:
        self.config = config or get_config()
        self._armed = dict(armed or {})
        self._healthy = False

    @staticmethod
    def run_arming() -> dict[str, Armed]:
        """The preset's own arming, by reason, for a monitor that follows one run."""
        return {rule.reason: rule.armed for rule in RULES}

    @property
    def healthy_once(self) -> bool:
        """Whether Φ has reached `phi_threshold` in a record this monitor has checked."""
        return self._healthy

    def check(self, telemetry: ConsciousnessTelemetry) -> EmergencyCondition | None:
        """The worst violated threshold, or None; NaN or ±inf in a watched metric is critical."""
        found = self.check_all(telemetry)
        return found[0] if found else None

    def check_all(self, telemetry: ConsciousnessTelemetry) -> tuple[EmergencyCondition, ...]:
        """Every violated threshold, worst first."""
        phi = telemetry.phi
        if phi is not None and phi >= self.config.phi_threshold:
            self._healthy = True
        found: list[EmergencyCondition] = []
        for metric in _METRICS:
            value = getattr(telemetry, metric)
            if value is not None and not math.isfinite(value):
                found.append(
                    EmergencyCondition("Non-finite metric", "critical", metric, value, math.nan)
                )
        for rule in RULES:
            value = getattr(telemetry, rule.metric)
            if value is None or not math.isfinite(value):
                continue
            if not self._healthy and self._armed.get(rule.reason) == "after_healthy":
                continue
            threshold = float(getattr(self.config, rule.setting))
            if rule.fires(value, threshold):
                found.append(
                    EmergencyCondition(
                        rule.reason, rule.severity, rule.metric, float(value), threshold
                    )
                )
        return tuple(found)

    def is_safe(self, telemetry: ConsciousnessTelemetry) -> bool:
        """Whether no threshold is violated."""
        return self.check(telemetry) is None

    def should_sleep(self, telemetry: ConsciousnessTelemetry) -> bool:
        """Whether the basin drifted past `sleep_fraction` (0.8) of the drift threshold."""
        distance = telemetry.basin_distance
        if distance is None:
            return False
        return distance > self.config.sleep_fraction * self.config.basin_drift_threshold
