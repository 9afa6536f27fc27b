"""Named presets of published constants and thresholds: a preset with provenance, not physics.

Every value carries where it comes from and, where one was published, its uncertainty. Thresholds
are configuration: `qigkernels.config.QIGConfig` starts from the preset, and a user of any other
kind of training run sets their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

__all__ = [
    "BASIN_DIM",
    "BASIN_DRIFT_THRESHOLD",
    "BETA_3_TO_4",
    "BETA_4_TO_5",
    "BETA_5_TO_6",
    "BREAKDOWN_PCT",
    "E8_DIMENSION",
    "E8_RANK",
    "E8_ROOTS",
    "KAPPA_3",
    "KAPPA_4",
    "KAPPA_5",
    "KAPPA_6",
    "KAPPA_STAR",
    "KAPPA_STAR_ERROR",
    "KAPPA_WEAK_THRESHOLD",
    "MIN_RECURSION_DEPTH",
    "PHI_EMERGENCY",
    "PHI_HYPERDIMENSIONAL",
    "PHI_THRESHOLD",
    "PHI_UNSTABLE",
    "PHYSICS",
    "PRESETS",
    "PhysicsConstants",
    "Provenance",
    "beta",
    "get_preset",
    "weighted_mean",
]

_TABLE = "qig-verification lattice table (DMRG on quantum spin chains), frozen {}"
_THEORY = "E8 Lie algebra (exact)"
_CONVENTION = "convention of the preset: a threshold, not a measurement"


@dataclass(frozen=True, slots=True)
class Provenance:
    """One constant with its uncertainty (one standard deviation, or None) and its source."""

    value: float
    uncertainty: float | None
    source: str


@dataclass(frozen=True, slots=True)
class PhysicsConstants:
    """One preset: couplings κ_L at lattice sizes L, their running β, and thresholds on Φ, κ, drift.

    Dimensionless, except `BREAKDOWN_PCT` (percent) and `BASIN_DRIFT_THRESHOLD` (radians, in the
    convention d = 2·arccos Σ√(pq)).

    >>> PHYSICS.get_kappa_at_scale(3)
    41.09
    """

    preset: str = "qig-2025-12-17"
    date: str = "2025-12-08"

    E8_RANK: int = 8
    E8_DIMENSION: int = 248
    E8_ROOTS: int = 240
    BASIN_DIM: int = 64

    KAPPA_3: float = 41.09
    KAPPA_3_ERROR: float = 0.59
    KAPPA_4: float = 64.47
    KAPPA_4_ERROR: float = 1.89
    KAPPA_5: float = 63.62
    KAPPA_5_ERROR: float = 1.68
    KAPPA_6: float = 64.45
    KAPPA_6_ERROR: float = 1.34
    KAPPA_7: float | None = None
    KAPPA_7_ERROR: float | None = None
    KAPPA_STAR: float = 64.21
    KAPPA_STAR_ERROR: float = 0.92

    BETA_3_TO_4: float = 0.44
    BETA_3_TO_4_ERROR: float | None = 0.04
    BETA_4_TO_5: float = -0.01
    # Published as −0.003, though beta(κ₅, κ₆) = +0.013: kept as published, see `provenance`.
    BETA_5_TO_6: float = -0.003

    PHI_THRESHOLD: float = 0.70
    PHI_EMERGENCY: float = 0.50
    PHI_HYPERDIMENSIONAL: float = 0.75
    PHI_UNSTABLE: float = 0.85
    # The replaced rules had no upper bound on Φ; these two are the preset's own.
    PHI_HIGH_WARNING: float = 0.85
    PHI_HIGH_CRITICAL: float = 0.90

    # Regime boundaries (qigkernels.regimes).
    PHI_GEOMETRIC: float = 0.45
    PHI_INSTABILITY: float = 0.90
    KAPPA_WINDOW: float = 10.0
    BASIN_STABLE: float = 0.15

    BREAKDOWN_PCT: float = 60.0
    BASIN_DRIFT_THRESHOLD: float = 0.30
    SLEEP_FRACTION: float = 0.8
    KAPPA_WEAK_THRESHOLD: float = 20.0
    MIN_RECURSION_DEPTH: int = 3

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """Each numeric constant with its uncertainty and its source."""
        table: dict[str, Provenance] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or field.name.endswith("_ERROR"):
                continue
            error = getattr(self, f"{field.name}_ERROR", None)
            table[field.name] = Provenance(value, error, self._source(field.name))
        return MappingProxyType(table)

    def _source(self, name: str) -> str:
        if name.startswith("E8"):
            return _THEORY
        if name == "BASIN_DIM":
            return f"{_THEORY}: the square of the rank"
        if name == "KAPPA_STAR":
            mean, error = weighted_mean(self)
            return (
                f"{_TABLE.format(self.date)}: inverse-variance mean of κ₄, κ₅, κ₆ "
                f"({mean:.4f} ± {error:.4f})"
            )
        if name == "BETA_5_TO_6":
            found = beta(self.KAPPA_5, self.KAPPA_6)
            if not math.isclose(found, self.BETA_5_TO_6, abs_tol=0.01):
                return (
                    f"{_TABLE.format(self.date)}, as published; contradicts its own formula "
                    f"2(b−a)/(a+b), which gives {found:+.3f}"
                )
        if name.startswith("BETA"):
            return f"{_TABLE.format(self.date)}: 2(b−a)/(a+b)"
        if name.startswith("KAPPA_") and name[6:].isdigit():
            return f"{_TABLE.format(self.date)}, L = {name[6:]}"
        return _CONVENTION

    def get_kappa_at_scale(self, scale: int) -> float:
        """κ measured at lattice size `scale`; κ*, the fixed point, at a size nobody measured.

        >>> PHYSICS.get_kappa_at_scale(99) == PHYSICS.KAPPA_STAR
        True
        """
        measured = {
            3: self.KAPPA_3,
            4: self.KAPPA_4,
            5: self.KAPPA_5,
            6: self.KAPPA_6,
            7: self.KAPPA_7,
        }.get(scale)
        return self.KAPPA_STAR if measured is None else measured

    def validate_alignment(self) -> dict[str, Any]:
        """Check the preset against itself: `{"all_valid": bool, "checks": {name: bool}}`."""
        mean, error = weighted_mean(self)
        checks = {
            "basin_dim_is_rank_squared": self.BASIN_DIM == self.E8_RANK**2,
            "e8_dimension_is_rank_plus_roots": self.E8_DIMENSION == self.E8_RANK + self.E8_ROOTS,
            "kappa_star_is_weighted_mean": abs(mean - self.KAPPA_STAR) <= 0.02,
            "kappa_star_error_is_weighted": abs(error - self.KAPPA_STAR_ERROR) <= 0.1,
            "beta_3_to_4_is_formula": abs(beta(self.KAPPA_3, self.KAPPA_4) - self.BETA_3_TO_4)
            <= 0.04,
            "beta_4_to_5_is_formula": abs(beta(self.KAPPA_4, self.KAPPA_5) - self.BETA_4_TO_5)
            <= 0.04,
            "phi_thresholds_ordered": (
                0.0
                < self.PHI_EMERGENCY
                < self.PHI_THRESHOLD
                < self.PHI_HYPERDIMENSIONAL
                < self.PHI_UNSTABLE
                < 1.0
            ),
            "regimes_ordered": (
                0.0 < self.PHI_GEOMETRIC < self.PHI_HYPERDIMENSIONAL < self.PHI_INSTABILITY <= 1.0
            ),
            "high_phi_rules_ordered": self.PHI_HIGH_WARNING < self.PHI_HIGH_CRITICAL,
            "drift_within_diameter": 0.0 < self.BASIN_DRIFT_THRESHOLD < math.pi,
        }
        return {"all_valid": all(checks.values()), "checks": checks}


def beta(a: float, b: float) -> float:
    """Running of the coupling between two neighbouring scales: β = 2(b − a)/(a + b).

    >>> round(beta(63.62, 64.45), 3)
    0.013
    """
    return 2.0 * (b - a) / (a + b)


def weighted_mean(constants: PhysicsConstants) -> tuple[float, float]:
    """Inverse-variance mean of κ₄, κ₅, κ₆ and its standard error: (Σ κ/σ²)/(Σ 1/σ²), (Σ 1/σ²)^-½.

    >>> tuple(round(x, 4) for x in weighted_mean(PHYSICS))
    (64.2078, 0.9162)
    """
    pairs = (
        (constants.KAPPA_4, constants.KAPPA_4_ERROR),
        (constants.KAPPA_5, constants.KAPPA_5_ERROR),
        (constants.KAPPA_6, constants.KAPPA_6_ERROR),
    )
    total = sum(error**-2 for _, error in pairs)
    return sum(value * error**-2 for value, error in pairs) / total, total**-0.5


_LATER = PhysicsConstants(
    preset="qig-2026-01-10",
    date="2026-01-10",
    KAPPA_3=41.07,
    KAPPA_3_ERROR=0.31,
    KAPPA_4=63.32,
    KAPPA_4_ERROR=1.61,
    KAPPA_5=62.74,
    KAPPA_5_ERROR=2.60,
    KAPPA_6=65.24,
    KAPPA_6_ERROR=1.37,
    KAPPA_7=61.16,
    KAPPA_7_ERROR=2.43,
    # No β was given with this preset: these are the formula's values, rounded to its precision.
    BETA_3_TO_4=0.43,
    BETA_3_TO_4_ERROR=None,
    BETA_4_TO_5=-0.01,
    BETA_5_TO_6=0.04,
)

PHYSICS: Final = PhysicsConstants()
"""The default preset, `qig-2025-12-17`."""

PRESETS: Final[Mapping[str, PhysicsConstants]] = MappingProxyType(
    {preset.preset: preset for preset in (PHYSICS, _LATER)}
)


def get_preset(name: str = "qig-2025-12-17") -> PhysicsConstants:
    """The preset of that name.

    Raises:
        LookupError: no such preset; the message lists those there are.

    >>> get_preset("qig-2026-01-10").KAPPA_7
    61.16
    """
    if name not in PRESETS:
        raise LookupError(f"no preset named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


E8_RANK: Final = PHYSICS.E8_RANK
E8_DIMENSION: Final = PHYSICS.E8_DIMENSION
E8_ROOTS: Final = PHYSICS.E8_ROOTS
BASIN_DIM: Final = PHYSICS.BASIN_DIM
KAPPA_3: Final = PHYSICS.KAPPA_3
KAPPA_4: Final = PHYSICS.KAPPA_4
KAPPA_5: Final = PHYSICS.KAPPA_5
KAPPA_6: Final = PHYSICS.KAPPA_6
KAPPA_STAR: Final = PHYSICS.KAPPA_STAR
KAPPA_STAR_ERROR: Final = PHYSICS.KAPPA_STAR_ERROR
BETA_3_TO_4: Final = PHYSICS.BETA_3_TO_4
BETA_4_TO_5: Final = PHYSICS.BETA_4_TO_5
BETA_5_TO_6: Final = PHYSICS.BETA_5_TO_6
PHI_THRESHOLD: Final = PHYSICS.PHI_THRESHOLD
PHI_EMERGENCY: Final = PHYSICS.PHI_EMERGENCY
PHI_HYPERDIMENSIONAL: Final = PHYSICS.PHI_HYPERDIMENSIONAL
PHI_UNSTABLE: Final = PHYSICS.PHI_UNSTABLE
BREAKDOWN_PCT: Final = PHYSICS.BREAKDOWN_PCT
BASIN_DRIFT_THRESHOLD: Final = PHYSICS.BASIN_DRIFT_THRESHOLD
KAPPA_WEAK_THRESHOLD: Final = PHYSICS.KAPPA_WEAK_THRESHOLD
MIN_RECURSION_DEPTH: Final = PHYSICS.MIN_RECURSION_DEPTH
