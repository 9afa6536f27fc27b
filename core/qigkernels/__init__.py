"""qigkernels: exact and fast information geometry, and the vocabulary of its telemetry.

Names load on first use: importing this package loads neither NumPy nor SciPy.

    simplex      Fisher-Rao geometry of probability vectors
    states       Bures geometry of density matrices, quantum Fisher information
    fisher       Fisher matrices with declared structure
    integration  integrated information Φ
    batch        many basins at once, on any array library
    cache        exact caches of quantum Fisher information
    geometry     fisher_rao_distance, quantum_fidelity
    constants, config, regimes, telemetry, safety, validation   the vocabulary and its thresholds

>>> from qigkernels import PHYSICS, Regime, RegimeDetector
>>> RegimeDetector().detect(PHYSICS.PHI_THRESHOLD) is Regime.GEOMETRIC
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME: dict[str, str] = {
    **dict.fromkeys(
        (
            "BASIN_DIM",
            "BASIN_DRIFT_THRESHOLD",
            "BETA_3_TO_4",
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
            "get_preset",
        ),
        "constants",
    ),
    **dict.fromkeys(("QIGConfig", "get_config", "reset_config", "set_config"), "config"),
    **dict.fromkeys(("Regime", "RegimeDetector", "RegimeThresholds"), "regimes"),
    "ConsciousnessTelemetry": "telemetry",
    **dict.fromkeys(("EmergencyCondition", "SafetyMonitor", "SafetyRule"), "safety"),
    **dict.fromkeys(
        (
            "GeometryError",
            "ValidationError",
            "validate_basin",
            "validate_density_matrix",
            "validate_distribution",
            "validate_kappa",
            "validate_phi",
        ),
        "validation",
    ),
    **dict.fromkeys(
        ("Phi", "phi_geometric", "phi_mib", "phi_mib_samples", "phi_quantum", "total_correlation"),
        "integration",
    ),
    **dict.fromkeys(("fisher_rao_distance", "quantum_fidelity"), "geometry"),
    "CachedQFI": "cache",
    "SparseFisherMetric": "fisher",
    "update_basins": "batch",
}
_MODULES = ("batch", "cache", "constants", "fisher", "integration", "simplex", "states")

if TYPE_CHECKING:
    from qigkernels import batch, cache, constants, fisher, integration, simplex, states
    from qigkernels.batch import update_basins
    from qigkernels.cache import CachedQFI
    from qigkernels.config import QIGConfig, get_config, reset_config, set_config
    from qigkernels.constants import (
        BASIN_DIM,
        BASIN_DRIFT_THRESHOLD,
        BETA_3_TO_4,
        BREAKDOWN_PCT,
        E8_DIMENSION,
        E8_RANK,
        E8_ROOTS,
        KAPPA_3,
        KAPPA_4,
        KAPPA_5,
        KAPPA_6,
        KAPPA_STAR,
        KAPPA_STAR_ERROR,
        KAPPA_WEAK_THRESHOLD,
        MIN_RECURSION_DEPTH,
        PHI_EMERGENCY,
        PHI_HYPERDIMENSIONAL,
        PHI_THRESHOLD,
        PHI_UNSTABLE,
        PHYSICS,
        PRESETS,
        PhysicsConstants,
        get_preset,
    )
    from qigkernels.fisher import SparseFisherMetric
    from qigkernels.geometry import fisher_rao_distance, quantum_fidelity
    from qigkernels.integration import (
        Phi,
        phi_geometric,
        phi_mib,
        phi_mib_samples,
        phi_quantum,
        total_correlation,
    )
    from qigkernels.regimes import Regime, RegimeDetector, RegimeThresholds
    from qigkernels.safety import EmergencyCondition, SafetyMonitor, SafetyRule
    from qigkernels.telemetry import ConsciousnessTelemetry
    from qigkernels.validation import (
        GeometryError,
        ValidationError,
        validate_basin,
        validate_density_matrix,
        validate_distribution,
        validate_kappa,
        validate_phi,
    )

__all__ = [
    "BASIN_DIM",
    "BASIN_DRIFT_THRESHOLD",
    "BETA_3_TO_4",
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
    "CachedQFI",
    "ConsciousnessTelemetry",
    "EmergencyCondition",
    "GeometryError",
    "Phi",
    "PhysicsConstants",
    "QIGConfig",
    "Regime",
    "RegimeDetector",
    "RegimeThresholds",
    "SafetyMonitor",
    "SafetyRule",
    "SparseFisherMetric",
    "ValidationError",
    "batch",
    "cache",
    "constants",
    "fisher",
    "fisher_rao_distance",
    "get_config",
    "get_preset",
    "integration",
    "phi_geometric",
    "phi_mib",
    "phi_mib_samples",
    "phi_quantum",
    "quantum_fidelity",
    "reset_config",
    "set_config",
    "simplex",
    "states",
    "total_correlation",
    "update_basins",
    "validate_basin",
    "validate_density_matrix",
    "validate_distribution",
    "validate_kappa",
    "validate_phi",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"qigkernels.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"qigkernels.{name}")
    else:
        raise AttributeError(f"module 'qigkernels' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
