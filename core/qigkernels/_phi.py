"""The result of every Φ; part of `qigkernels.integration`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Phi", "ordered"]


@dataclass(frozen=True, slots=True)
class Phi:
    """Φ with the cut it was found at.

    Attributes:
        value: Φ in nats, ≥ 0; from samples with the bias taken off.
        phi: normalised to [0, 1]: 1 − exp(−2Φ/d), d the smaller dimension of the cut (Gaussian);
            Φ/(2 ln d) (quantum).
        cut: the subsystems on either side, as sorted indices.
        plugin: the estimate before the bias was taken off and before it was held at 0 (samples);
            equal to `value` for an exact covariance or state.
        bias: expected excess of the plug-in estimate, nats; None where nothing was estimated.
        sd: standard deviation of the estimate, nats; None where nothing was estimated.
        samples: number of samples; None where nothing was estimated.
    """

    value: float
    phi: float
    cut: tuple[tuple[int, ...], tuple[int, ...]]
    plugin: float
    bias: float | None = None
    sd: float | None = None
    samples: int | None = None


def ordered(a: Sequence[int], b: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two sides sorted, the one with subsystem 0 first."""
    first, second = tuple(sorted(a)), tuple(sorted(b))
    return (first, second) if first[0] < second[0] else (second, first)
