"""The order of checkpoints: finite Φ descending, then step descending, then id.

NaN, ±inf and missing Φ never rank. The order is total, so every choice is the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from qigstore.records import Candidate, Checkpoint

__all__ = ["best_first", "finite", "judge", "newest_first"]


def finite(value: float | None) -> float | None:
    """The value if it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def best_first(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those with a finite Φ, the highest first; ties go to the later step, then to the lower id."""
    ranked = [(item, finite(item.phi)) for item in checkpoints]
    return [
        item
        for item, _ in sorted(
            ((item, phi) for item, phi in ranked if phi is not None),
            key=lambda pair: (-pair[1], -pair[0].step, pair[0].id),
        )
    ]


def newest_first(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The latest attempt's latest step first; clocks have no part in it."""
    return sorted(checkpoints, key=lambda item: (-item.attempt, -item.step, item.id))


def judge(
    checkpoint: Checkpoint, *, phi_floor: float | None = None, measured: bool = True
) -> Candidate:
    """Whether a checkpoint is fit to recover from, as far as its own manifest tells.

    What happened after it (critical events) only the database knows; this is the judgement
    without one. `measured`: whether any checkpoint of its session has a finite Φ; where none has,
    the rest decides.
    """
    phi = finite(checkpoint.phi)
    if not checkpoint.weights_finite:
        return Candidate(checkpoint, healthy=False, reason="NaN or ±inf among its arrays")
    if checkpoint.kind == "emergency":
        return Candidate(checkpoint, healthy=False, reason="an emergency checkpoint")
    if phi is None and not measured and phi_floor is None:
        reason = "finite weights; Φ is not measured in this session"
        return Candidate(checkpoint, healthy=True, reason=reason)
    if phi is None:
        return Candidate(checkpoint, healthy=False, reason="Φ was not measured")
    if phi_floor is not None and phi < phi_floor:
        return Candidate(checkpoint, healthy=False, reason=f"Φ {phi:g} is below {phi_floor:g}")
    return Candidate(checkpoint, healthy=True, reason=f"finite weights, Φ {phi:g}")
