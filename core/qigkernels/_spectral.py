"""√F of a batch of full-rank pairs by one Cholesky and one `eigvalsh`; part of `states`.

√F = Σ √eig(L†σL) with ρ = LL†. An eigenvalue λ carries a rounding of ε·λ_max, its root one of
ε·λ_max/(2√λ): too much for the last digits where λ is small. The smallest is then taken from
det ρ·det σ = Πλ instead, and a pair in which the others are too small as well is left to the
singular values of the factors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, product, take_rows, to_numpy
from qigkernels._factors import (
    adjoint,
    cholesky,
    frobenius,
    pivot_floor,
    put,
    real_diagonal,
    singular_values,
    smallest_pivots,
    traces,
)

__all__ = ["spectral_overlap"]

_DRIFT = 0.05
"""Share of the smallest pivot below which a gap is a small drift for certain."""


def spectral_overlap(xp: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """√F of matched states, and whether it is exact to the last digits.

    Args:
        rho, sigma: `(b, n, n)`, Hermitian, of trace 1 but for rounding; one of the two may be
            `(1, n, n)`.

    Returns:
        `(b,)`, and a NumPy array `(b,)` of booleans: false where it is not to be used, as for any
        pair with a state that is not positive definite, and for pairs so near that an arccos of it
        would be worthless. One singular ρ takes the batch with it, where the library refuses it.
    """
    count = max(rho.shape[0], sigma.shape[0])
    root = cholesky(xp, rho)
    if root is None:
        return _nothing(xp, rho, count), np.zeros(count, dtype=bool)
    pivot = smallest_pivots(xp, root)
    # A gap far below every eigenvalue is a small drift for certain.
    open_ = (pivot > pivot_floor(rho.shape[-1])) & ~_drifts(xp, rho, sigma, _DRIFT * pivot)
    index = _worth(open_)
    part = _taken(xp, root, index), _taken(xp, sigma, index)
    values = xp.linalg.eigvalsh(product(adjoint(xp, part[0]), part[1], part[0]))
    found, sure = _summed(xp, part, values)
    found = found / xp.sqrt(traces(xp, _taken(xp, rho, index)) * traces(xp, part[1]))
    if index is None:
        return found, sure & open_
    open_[index] = sure
    return put(xp, _nothing(xp, rho, count), index, found), open_


def _nothing(xp: Any, rho: Any, count: int) -> Any:
    from array_api_compat import device

    return xp.zeros(count, dtype=real_diagonal(xp, rho).dtype, device=device(rho))


def _drifts(xp: Any, rho: Any, sigma: Any, bound: Any) -> Any:
    """Where ‖σ − ρ‖ is below the bound, a NumPy array."""
    # One row tells most pairs that are further apart.
    small = to_numpy(frobenius(xp, sigma[..., :1, :] - rho[..., :1, :])) < bound
    if small.any():
        small &= to_numpy(frobenius(xp, sigma - rho)) < bound
    return small


def _worth(wanted: Any) -> Any:
    """The indices of those wanted; None where all are worth doing, most of them being wanted."""
    index = np.flatnonzero(wanted)
    return None if 2 * index.size > len(wanted) else index


def _taken(xp: Any, matrices: Any, index: Any) -> Any:
    if index is None or matrices.shape[0] == 1:
        return matrices
    return take_rows(xp, matrices, index)


def _summed(xp: Any, part: tuple[Any, Any], values: Any) -> tuple[Any, Any]:
    """Σ√λ, and where it is exact; small λ by the determinant or by singular values."""
    n, eps = values.shape[-1], epsilon(values)
    # Eigenvalues at or below rounding level are not used; whoever has them is not sure.
    floor = eps * eps * values[..., -1:]
    roots = xp.sqrt(xp.where(values > floor, values, floor + 0.0 * values))
    overlap = xp.sum(roots, axis=-1)
    # Estimated error in units of ε; eigensolvers do better by about n.
    shares = values[..., -1:] / (2.0 * roots)
    sure = to_numpy(_length(xp, shares)) <= 0.25 * n
    index = _worth(~sure)
    other = None if sure.all() else cholesky(xp, _taken(xp, part[1], index))
    if other is None:
        return overlap, sure
    root, chosen = _taken(xp, part[0], index), _taken(xp, roots, index)[..., 1:]
    # √det over the product of the other roots, one factor at a time: nothing underflows.
    pivots = real_diagonal(xp, root) * real_diagonal(xp, other)
    least = pivots[..., 0] * xp.prod(pivots[..., 1:] / chosen, axis=-1)
    found = xp.sum(chosen, axis=-1) + least
    exact = smallest_pivots(xp, other) > pivot_floor(n)
    rough = to_numpy(_length(xp, _taken(xp, shares, index)[..., 1:])) > 0.5 * n
    rest = np.flatnonzero(exact & rough)
    if rest.size:
        A, B = _taken(xp, root, rest), _taken(xp, other, rest)
        found = put(
            xp, found, rest, xp.sum(singular_values(xp, product(adjoint(xp, A), B)), axis=-1)
        )
    if index is None:
        # Both ways are exact where the first is.
        return found, exact | sure
    sure[index] = exact
    return put(xp, overlap, index, found), sure


def _length(xp: Any, x: Any) -> Any:
    return xp.sqrt(xp.sum(x * x, axis=-1))
