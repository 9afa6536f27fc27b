"""The thresholds in force, immutable and checked; they start from the preset's values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qigkernels.constants import PHYSICS, PhysicsConstants

__all__ = ["QIGConfig", "get_config", "reset_config", "set_config"]


@dataclass(frozen=True, slots=True)
class QIGConfig:
    """Thresholds and intervals of one kind of training run.

    Φ thresholds in [0, 1]; `breakdown_pct` in percent; `basin_drift_threshold` in radians
    (0..π); intervals in steps.

    Raises:
        ValueError: a field is out of range or two contradict each other; the message names them.

    >>> QIGConfig(phi_threshold=0.75).phi_emergency
    0.5
    """

    kappa_star: float = PHYSICS.KAPPA_STAR
    beta_3_to_4: float = PHYSICS.BETA_3_TO_4
    basin_dim: int = PHYSICS.BASIN_DIM
    phi_threshold: float = PHYSICS.PHI_THRESHOLD
    phi_emergency: float = PHYSICS.PHI_EMERGENCY
    phi_high_warning: float = PHYSICS.PHI_HIGH_WARNING
    phi_high_critical: float = PHYSICS.PHI_HIGH_CRITICAL
    breakdown_pct: float = PHYSICS.BREAKDOWN_PCT
    min_recursion_depth: int = PHYSICS.MIN_RECURSION_DEPTH
    telemetry_interval: int = 100
    checkpoint_interval: int = 1000
    basin_drift_threshold: float = PHYSICS.BASIN_DRIFT_THRESHOLD
    sleep_fraction: float = PHYSICS.SLEEP_FRACTION
    kappa_weak_threshold: float = PHYSICS.KAPPA_WEAK_THRESHOLD

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            # Written so that NaN fails too.
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
        if self.phi_emergency >= self.phi_threshold:
            raise ValueError(
                f"phi_emergency ({self.phi_emergency}) must be below "
                f"phi_threshold ({self.phi_threshold})"
            )
        if self.phi_high_warning > self.phi_high_critical:
            raise ValueError(
                f"phi_high_warning ({self.phi_high_warning}) must not be above "
                f"phi_high_critical ({self.phi_high_critical})"
            )

    @classmethod
    def from_preset(cls, preset: PhysicsConstants) -> QIGConfig:
        """The thresholds of that preset.

        >>> from qigkernels.constants import get_preset
        >>> QIGConfig.from_preset(get_preset("qig-2026-01-10")).beta_3_to_4
        0.43
        """
        return cls(
            kappa_star=preset.KAPPA_STAR,
            beta_3_to_4=preset.BETA_3_TO_4,
            basin_dim=preset.BASIN_DIM,
            phi_threshold=preset.PHI_THRESHOLD,
            phi_emergency=preset.PHI_EMERGENCY,
            phi_high_warning=preset.PHI_HIGH_WARNING,
            phi_high_critical=preset.PHI_HIGH_CRITICAL,
            breakdown_pct=preset.BREAKDOWN_PCT,
            min_recursion_depth=preset.MIN_RECURSION_DEPTH,
            basin_drift_threshold=preset.BASIN_DRIFT_THRESHOLD,
            sleep_fraction=preset.SLEEP_FRACTION,
            kappa_weak_threshold=preset.KAPPA_WEAK_THRESHOLD,
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("kappa_star", 0.0, math.inf),
    ("basin_dim", 2, math.inf),
    ("phi_threshold", 0.0, 1.0),
    ("phi_emergency", 0.0, 1.0),
    ("phi_high_warning", 0.0, 1.0),
    ("phi_high_critical", 0.0, 1.0),
    ("breakdown_pct", 0.0, 100.0),
    ("min_recursion_depth", 1, math.inf),
    ("telemetry_interval", 1, math.inf),
    ("checkpoint_interval", 1, math.inf),
    ("basin_drift_threshold", 0.0, math.pi),
    ("sleep_fraction", 0.0, 1.0),
    ("kappa_weak_threshold", 0.0, math.inf),
)

_DEFAULT = QIGConfig()
_in_force: list[QIGConfig] = [_DEFAULT]


def get_config() -> QIGConfig:
    """The configuration in force in this process.

    >>> get_config().basin_dim
    64
    """
    return _in_force[0]


def set_config(config: QIGConfig) -> None:
    """Put another configuration in force for this process; monitors made before keep theirs."""
    if not isinstance(config, QIGConfig):
        raise TypeError(f"set_config takes a QIGConfig, got {type(config).__name__}")
    _in_force[0] = config


def reset_config() -> None:
    """Put the default preset's configuration back in force."""
    _in_force[0] = _DEFAULT
