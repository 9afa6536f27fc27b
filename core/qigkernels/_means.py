"""The Bures mean of states.

Source: P. C. Álvarez-Esteban, E. del Barrio, J. A. Cuesta-Albertos, C. Matrán, J. Math. Anal.
Appl. 441 (2016) 744, doi:10.1016/j.jmaa.2016.04.045.
"""

from __future__ import annotations

from typing import Any

from qigkernels._arrays import as_array, epsilon, product, same_namespace
from qigkernels._density import check_density, check_spectrum
from qigkernels._errors import ValidationError
from qigkernels._factors import adjoint, real_diagonal
from qigkernels._fields import mean_weights
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = ["bures_mean"]


def bures_mean(rho: Any, weights: Any = None, *, check: bool = True, steps_max: int = 200) -> Any:
    """The state that minimises Σ wᵢ d_B(ρᵢ, ·)², d_B = √(2 − 2√F) the Bures distance.

    S ← S^-½ (Σ wᵢ (S^½ ρᵢ S^½)^½)² S^-½ until the step is at rounding level, then scaled to trace
    1. (The iteration minimises over all positive matrices; √F being homogeneous, the direction of
    that minimiser maximises Σ wᵢ √F(ρᵢ, ·) over states, which is the same as the mean asked for.)

    Args:
        rho: `(..., k, n, n)`, at least one of each set of full rank. weights: `(k,)` or
            `(..., k)`, non-negative, summing to 1; equal when left out.

    Returns:
        `(..., n, n)`, a state.

    Raises:
        ValidationError: not states, bad weights, or a set whose mean has no full rank.

    Source: Álvarez-Esteban et al. 2016.
    """
    rho = as_array("rho", rho, complex_too=True)
    xp = same_namespace(rho=rho)
    check_last_axes("rho", rho, 3, square=True)
    if check:
        check_density("rho", rho, sum_tolerance(rho), spectrum=True)
    weight = mean_weights(xp, weights, rho, tuple(rho.shape[:-2]))
    weight = xp.astype(weight, rho.dtype)[..., None, None]
    mean = xp.sum(weight * rho, axis=-3)
    values = xp.linalg.eigvalsh(mean)
    check_spectrum("rho", mean, values)
    lowest = float(xp.min(values[..., 0] / values[..., -1]))
    if lowest <= rho.shape[-1] * epsilon(values):
        raise ValidationError(
            f"rho of shape {tuple(rho.shape)} has sets without common full rank (smallest "
            f"eigenvalue of their average {lowest!r} of the largest); the mean is not unique",
            argument="rho",
            shape=tuple(rho.shape),
            value=lowest,
        )
    for _ in range(steps_max):
        moved = _step(xp, mean, rho, weight)
        gap = float(xp.max(xp.abs(moved - mean)))
        mean = moved
        if gap <= 4.0 * epsilon(values):
            break
    trace = xp.sum(real_diagonal(xp, mean), axis=-1)
    return mean / xp.astype(trace, mean.dtype)[..., None, None]


def _power(xp: Any, matrices: Any, *, inverse: bool = False) -> Any:
    values, vectors = xp.linalg.eigh(matrices)
    values = xp.sqrt(xp.where(values > 0.0, values, xp.zeros_like(values)))
    values = xp.astype(1.0 / values if inverse else values, vectors.dtype)
    return product(vectors * values[..., None, :], adjoint(xp, vectors))


def _step(xp: Any, mean: Any, rho: Any, weight: Any) -> Any:
    root, back = _power(xp, mean), _power(xp, mean, inverse=True)
    each = product(root[..., None, :, :], rho, root[..., None, :, :])
    average = xp.sum(weight * _power(xp, 0.5 * (each + adjoint(xp, each))), axis=-3)
    moved = product(back, average)
    moved = product(moved, adjoint(xp, moved))
    return 0.5 * (moved + adjoint(xp, moved))
