"""Regimes of a training run by Φ, κ and basin distance."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qigkernels.constants import PHYSICS

__all__ = ["NO_REGIME", "Regime", "RegimeDetector", "RegimeThresholds"]

NO_REGIME = -1
"""Code of "no regime": Φ was not measured, or is NaN."""


class Regime(StrEnum):
    """The four regimes; the order of the members is the order of their stored codes 0..3.

    >>> Regime("geometric").code, Regime.from_code(3).value
    (1, 'topological_instability')
    """

    LINEAR = "linear"
    GEOMETRIC = "geometric"
    HYPERDIMENSIONAL = "hyperdimensional"
    TOPOLOGICAL_INSTABILITY = "topological_instability"

    @property
    def code(self) -> int:
        """Position of the member, 0..3: what the database stores."""
        return _CODES[self]

    @classmethod
    def from_code(cls, code: int) -> Regime:
        """The member at that position.

        Raises:
            ValueError: no member has that code.
        """
        if not 0 <= code < len(_MEMBERS):
            raise ValueError(f"no regime has the code {code}; codes are 0..{len(_MEMBERS) - 1}")
        return _MEMBERS[code]


_MEMBERS = tuple(Regime)
_CODES = {member: position for position, member in enumerate(_MEMBERS)}


@dataclass(frozen=True, slots=True)
class RegimeThresholds:
    """Boundaries between the regimes: Φ (dimensionless), κ, basin distance (radians)."""

    geometric: float = PHYSICS.PHI_GEOMETRIC
    hyperdimensional: float = PHYSICS.PHI_HYPERDIMENSIONAL
    instability: float = PHYSICS.PHI_INSTABILITY
    kappa_star: float = PHYSICS.KAPPA_STAR
    kappa_window: float = PHYSICS.KAPPA_WINDOW
    basin_stable: float = PHYSICS.BASIN_STABLE

    def __post_init__(self) -> None:
        if not self.geometric < self.hyperdimensional < self.instability:
            raise ValueError(
                f"regime boundaries must rise: geometric {self.geometric}, hyperdimensional "
                f"{self.hyperdimensional}, instability {self.instability}"
            )


class RegimeDetector:
    """Classify a step: linear < 0.45 ≤ geometric < 0.75 ≤ hyperdimensional < 0.90 ≤ unstable.

    Within [0.75, 0.90) a step is also unstable where |κ − κ*| > 10 or the basin distance > 0.15.
    What was not measured (None, NaN) decides nothing; without Φ there is no regime.

    >>> RegimeDetector().detect(0.80, kappa=30.0)
    <Regime.TOPOLOGICAL_INSTABILITY: 'topological_instability'>
    """

    __slots__ = ("thresholds",)

    def __init__(self, thresholds: RegimeThresholds | None = None) -> None:
        self.thresholds = thresholds or RegimeThresholds()

    def detect(
        self,
        phi: float | None,
        kappa: float | None = None,
        basin_distance: float | None = None,
    ) -> Regime | None:
        """The regime of one step, or None where Φ is None or NaN."""
        code = self.code(phi, kappa, basin_distance)
        return None if code == NO_REGIME else _MEMBERS[code]

    def code(
        self,
        phi: float | None,
        kappa: float | None = None,
        basin_distance: float | None = None,
    ) -> int:
        """`detect` as the stored code 0..3, or `NO_REGIME` (−1); meant for the hot path."""
        bounds = self.thresholds
        # Only NaN differs from itself.
        if phi is None or phi != phi:  # noqa: PLR0124
            return NO_REGIME
        if phi < bounds.geometric:
            return 0
        if phi < bounds.hyperdimensional:
            return 1
        if phi >= bounds.instability:
            return 3
        if kappa is not None and abs(kappa - bounds.kappa_star) > bounds.kappa_window:
            return 3
        if basin_distance is not None and basin_distance > bounds.basin_stable:
            return 3
        return 2
