"""The standard telemetry record: one step's geometry metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qigkernels.regimes import Regime
from qigkernels.validation import ValidationError

__all__ = ["ConsciousnessTelemetry"]


@dataclass(slots=True)
class ConsciousnessTelemetry:
    """One step's metrics; what nobody measured is None, never 0, and no rule fires on it.

    Distances are Fisher-Rao in radians (d = 2·arccos Σ√(pq)), Φ is normalised to [0, 1],
    `breakdown_pct` is in percent.

    Raises:
        ValidationError: `regime` is not the name of a regime.

    >>> ConsciousnessTelemetry(phi=0.72, kappa_eff=64.2, regime="geometric").is_safe()
    True
    """

    phi: float | None = None
    kappa_eff: float | None = None
    regime: str | None = None
    basin_distance: float | None = None
    recursion_depth: int | None = None

    geodesic_distance: float | None = None
    curvature: float | None = None
    fisher_metric_trace: float | None = None

    breakdown_pct: float | None = None
    coherence_drift: float | None = None
    emergency: bool = False

    meta_awareness: float | None = None
    generativity: float | None = None
    grounding: float | None = None
    temporal_coherence: float | None = None
    external_coupling: float | None = None

    def __post_init__(self) -> None:
        if self.regime is not None:
            # Also turns a `Regime` into its plain name, so that what is stored is a `str`.
            self.regime = _regime(self.regime).value

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, the unmeasured ones as None; plain types, ready for JSON."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConsciousnessTelemetry:
        """The record that `to_dict` wrote; a field left out is None.

        Raises:
            ValidationError: a key is no field of the record.
        """
        unknown = sorted(str(key) for key in data if key not in _FIELDS)
        if unknown:
            raise ValidationError(
                f"telemetry has no field {', '.join(map(repr, unknown))}; "
                f"its fields are {', '.join(_FIELDS)}",
                argument="data",
                value=unknown,
            )
        return cls(**data)

    def get_regime_enum(self) -> Regime | None:
        """The regime as a `Regime`, or None where the step has none."""
        return None if self.regime is None else Regime(self.regime)

    def is_safe(self) -> bool:
        """No threshold of the configuration in force is violated and no emergency is flagged."""
        from qigkernels.safety import SafetyMonitor

        return not self.emergency and SafetyMonitor().is_safe(self)


_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(ConsciousnessTelemetry))


def _regime(name: str) -> Regime:
    try:
        return Regime(name.lower())
    except (ValueError, AttributeError):
        raise ValidationError(
            f"regime {name!r} is unknown; regimes are {', '.join(Regime)}",
            argument="regime",
            value=name,
        ) from None
