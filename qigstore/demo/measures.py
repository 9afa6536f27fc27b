"""What the demo measures of its network besides the loss: integration and the basin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qigkernels.integration import phi_mib_samples
from qigkernels.simplex import to_simplex
from qigkernels.validation import ValidationError
from qigstore.demo.model import HIDDEN

__all__ = ["GROUPS", "basin_of", "phi_of"]

Array = NDArray[Any]

GROUPS = (4, 2)
"""How many groups of units the hidden layers are cut into: 4 of 10 and 2 of 12."""


def basin_of(hidden: Array) -> Array | None:
    """Each hidden unit's share of the activity: `(N, 64)` ≥ 0 → `(64,)`, summing to 1.

    None where the network has diverged, or is silent.
    """
    activity = hidden.mean(axis=0)
    total = activity.sum()
    if not np.isfinite(total) or total <= 0.0:
        return None
    shares: Array = to_simplex(activity, how="counts")
    return shares


def phi_of(hidden: Array) -> tuple[float | None, float | None]:
    """Φ across the minimum bipartition of six groups of hidden units: `(N, 64)` → `(φ, nats)`.

    A group's signal is the root mean square of its activations, one sample an image. `(None,
    None)` where the network has diverged or two groups always agree: Φ is then not defined.
    """
    signals, first = [], 0
    for units, groups in zip(HIDDEN, GROUPS, strict=True):
        part = hidden[:, first : first + units].reshape(len(hidden), groups, -1)
        signals.append(np.sqrt((part * part).mean(axis=2)))
        first += units
    samples = np.concatenate(signals, axis=1)
    try:
        found = phi_mib_samples(samples)
    except ValidationError:
        return None, None
    return (None, None) if found is None else (found.phi, found.value)
