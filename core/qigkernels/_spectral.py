"""√F of a batch of full-rank pairs by one Cholesky and one `eigvalsh`; part of `states`.

√F = Σ √eig(L†σL) with ρ = LL†. An eigenvalue λ carries a rounding of ε·λ_max, its root one of
ε·λ_max/(2√λ): too much for the last digits where λ is small. The smallest is then taken from
det ρ·det σ = Πλ instead, and a pair in which the others are too small as well is left to the
singular values of the factors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, to_numpy
from qigkernels._factors import (
    adjoint,
    cholesky,
    frobenius,
    pivot_floor,
    put,
    real_diagonal,
    smallest_pivots,
    take,
    traces,
)

__all__ = ["spectral_overlap"]

_DRIFT = 0.05
"""Share of the smallest pivot below which a gap is a small drift for certain."""


def spectral_overlap(xp: Any, rho: Any, sigma: Any) -> tuple[Any, Any] | None:
    """√F of matched states, and whether it is exact to the last digits.

    Args:
        rho, sigma: `(b, n, n)`, Hermitian, of trace 1 but for rounding; one of the two may be
            `(1, n, n)`.

    Returns:
        `(b,)`, and a NumPy array `(b,)` of booleans: false where it is not to be used, as for any
        pair with a state that is not positive definite, and for pairs so near that an arccos of it
        would be worthless. None where the library refuses the batch for one singular ρ.
    """
    root = cholesky(xp, rho)
    if root is None:
        return None
    n = rho.shape[-1]
    pivot = smallest_pivots(xp, root)
    gap = to_numpy(frobenius(xp, sigma - rho))
    open_ = (pivot > pivot_floor(n)) & ~(gap < _DRIFT * pivot)
    index = np.flatnonzero(open_)
    overlap = xp.zeros_like(real_diagonal(xp, sigma - rho)[..., 0])
    if not index.size:
        return overlap, open_
    part = _taken(xp, root, index, len(open_)), _taken(xp, sigma, index, len(open_))
    values = xp.linalg.eigvalsh(adjoint(xp, part[0]) @ part[1] @ part[0])
    found, sure = _summed(xp, part, values)
    found = found / xp.sqrt(traces(xp, _taken(xp, rho, index, len(open_))) * traces(xp, part[1]))
    if index.size == len(open_):
        return found, sure
    open_[index] = sure
    return put(xp, overlap, index, found), open_


def _taken(xp: Any, matrices: Any, index: Any, count: int) -> Any:
    if index.size == count or matrices.shape[0] == 1:
        return matrices
    return take(xp, matrices, index)


def _summed(xp: Any, part: tuple[Any, Any], values: Any) -> tuple[Any, Any]:
    """Σ√λ, the smallest λ by the determinant where that is needed; and whether it is exact."""
    n, eps = values.shape[-1], epsilon(values)
    # Eigenvalues at or below rounding level are not used; whoever has them is not sure.
    floor = eps * eps * values[..., -1:]
    roots = xp.sqrt(xp.where(values > floor, values, floor + 0.0 * values))
    overlap = xp.sum(roots, axis=-1)
    inverse = values[..., -1] / (4.0 * roots**2).T
    worth = to_numpy(xp.sqrt(xp.sum(inverse, axis=0) * values[..., -1]))
    sure = worth <= 0.25 * n
    rest = np.flatnonzero(~sure)
    if rest.size:
        worth = to_numpy(xp.sqrt(xp.sum(inverse[1:], axis=0) * values[..., -1]))
        hopeful = rest[worth[rest] <= 0.5 * n]
        overlap, sure[hopeful] = _by_determinant(xp, part, roots, overlap, hopeful)
    return overlap, sure


def _by_determinant(
    xp: Any, part: tuple[Any, Any], roots: Any, overlap: Any, index: Any
) -> tuple[Any, Any]:
    """`overlap` with the smallest root of those of `index` from det ρ·det σ."""
    n = roots.shape[-1]
    count = len(overlap)
    other = cholesky(xp, _taken(xp, part[1], index, count))
    if other is None:
        return overlap, np.zeros(index.size, dtype=bool)
    pivots = real_diagonal(xp, _taken(xp, part[0], index, count)) * real_diagonal(xp, other)
    chosen = _taken(xp, roots, index, count)[..., 1:]
    # √det over the product of the other roots, one factor at a time: nothing underflows.
    least = pivots[..., 0] * xp.prod(pivots[..., 1:] / chosen, axis=-1)
    found = xp.sum(chosen, axis=-1) + least
    return put(xp, overlap, index, found), smallest_pivots(xp, other) > pivot_floor(n)
