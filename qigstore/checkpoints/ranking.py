"""The order of checkpoints: finite Φ descending, then step descending, then id.

NaN, ±inf and missing Φ never rank. The order is total, so every choice is the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from qigstore.records import Checkpoint

__all__ = ["best_first", "finite", "newest_first"]


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
