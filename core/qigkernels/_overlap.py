"""Root fidelity and Bures angle from factors; the numerical heart of `qigkernels.states`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, to_numpy
from qigkernels._factors import adjoint, put, take

__all__ = ["angle_from_factors", "overlap_from_factors"]

_NEAR = 0.1
"""1 − √F below which arccos √F would lose digits and the Procrustes form takes over."""


def overlap_from_factors(xp: Any, A: Any, B: Any, sigma: Any, well: Any) -> Any:
    """√F of flat batches of factors: Σ√eig(A†σA) where that keeps its digits, else Σ svd(A†B).

    Args:
        A, B: factors `(b, n, n)` of rho and sigma. sigma: `(b, n, n)`. well: NumPy booleans, where
            both states are well-conditioned.
    """
    if not well.any():
        return _nuclear(xp, A, B)
    if well.all():
        overlap, lost = _by_eigenvalues(xp, A, sigma)
        rest = np.flatnonzero(lost)
    else:
        index = np.flatnonzero(well)
        overlap = xp.zeros_like(_traces(xp, sigma))
        found, lost = _by_eigenvalues(xp, take(xp, A, index), take(xp, sigma, index))
        overlap = put(xp, overlap, index, found)
        again = ~well
        again[index[lost]] = True
        rest = np.flatnonzero(again)
    if rest.size:
        overlap = put(xp, overlap, rest, _nuclear(xp, take(xp, A, rest), take(xp, B, rest)))
    return overlap


def _traces(xp: Any, matrices: Any) -> Any:
    return xp.sum(xp.abs(matrices[..., 0]), axis=-1)


def _by_eigenvalues(xp: Any, A: Any, sigma: Any) -> tuple[Any, Any]:
    """Σ√eig(A†σA), and where the roots of small eigenvalues lost too many digits."""
    product = adjoint(xp, A) @ sigma @ A
    values = xp.linalg.eigvalsh(product)
    top = values[..., -1]
    floor = epsilon(values) ** 2 * top[..., None]
    roots = xp.sqrt(xp.where(values > floor, values, floor + 0.0 * values))
    # Rounding of ε·top in every eigenvalue, seen through the square root.
    error = epsilon(values) * top * xp.sum(0.5 / roots, axis=-1)
    return xp.sum(roots, axis=-1), to_numpy(error > 2.0 * epsilon(values))


def _nuclear(xp: Any, A: Any, B: Any) -> Any:
    return xp.sum(xp.linalg.svdvals(adjoint(xp, A) @ B), axis=-1)


def angle_from_factors(xp: Any, A: Any, B: Any, sigma: Any, well: Any) -> Any:
    """Bures angle of flat batches: arccos √F, near pairs by the Procrustes form."""
    overlap = overlap_from_factors(xp, A, B, sigma, well)
    angle = xp.acos(xp.clip(overlap, 0.0, 1.0))
    near = np.flatnonzero(to_numpy(overlap > 1.0 - _NEAR))
    if near.size == 0:
        return angle
    return put(xp, angle, near, _procrustes(xp, take(xp, A, near), take(xp, B, near)))


def _procrustes(xp: Any, A: Any, B: Any) -> Any:
    """2·atan2(‖AU − B‖, ‖AU + B‖) with U the unitary that brings AU nearest to B."""
    P, _, Q = xp.linalg.svd(adjoint(xp, A) @ B)
    turned = A @ (P @ Q)
    return 2.0 * xp.atan2(_frobenius(xp, turned - B), _frobenius(xp, turned + B))


def _frobenius(xp: Any, matrices: Any) -> Any:
    return xp.sqrt(xp.sum(xp.abs(matrices) ** 2, axis=(-1, -2)))
