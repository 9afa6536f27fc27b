"""Root fidelity and Bures angle from factors; the numerical heart of `qigkernels.states`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, is_numpy, to_numpy
from qigkernels._factors import Side, adjoint, put, real_diagonal, take

__all__ = ["angle_from_factors", "drift", "overlap_from_factors"]

_DRIFT_STEPS = 16

_NEAR = 0.05
"""1 − √F below which arccos √F would lose digits and the Procrustes form takes over."""


def overlap_from_factors(xp: Any, one: Side, two: Side) -> Any:
    """√F of matched flat batches: Σ√eig(A†σA) where that keeps its digits, else Σ svd(A†B)."""
    n = one.state.shape[-1]
    # The smallest eigenvalue of A†σA follows the pivots; below this the attempt mostly fails.
    tried = one.well & two.well & (one.pivot * two.pivot > 2.0 * float(n) ** -2.5)
    if not tried.any():
        return _nuclear(xp, one.root, two.root)
    if tried.all():
        overlap, lost = _by_eigenvalues(xp, one.root, two.state)
        rest = np.flatnonzero(lost)
    else:
        index = np.flatnonzero(tried)
        overlap = xp.zeros_like(_traces(xp, two.state))
        found, lost = _by_eigenvalues(xp, take(xp, one.root, index), take(xp, two.state, index))
        overlap = put(xp, overlap, index, found)
        again = ~tried
        again[index[lost]] = True
        rest = np.flatnonzero(again)
    if rest.size:
        A, B = take(xp, one.root, rest), take(xp, two.root, rest)
        overlap = put(xp, overlap, rest, _nuclear(xp, A, B))
    return overlap


def _trace(xp: Any, matrices: Any) -> Any:
    return xp.sum(real_diagonal(xp, matrices), axis=-1)


def _traces(xp: Any, matrices: Any) -> Any:
    return xp.sum(xp.abs(matrices[..., 0]), axis=-1)


def _by_eigenvalues(xp: Any, A: Any, sigma: Any) -> tuple[Any, Any]:
    """Σ√eig(A†σA), and where the roots of small eigenvalues lost too many digits."""
    product = adjoint(xp, A) @ sigma @ A
    values = xp.linalg.eigvalsh(product)
    top = values[..., -1]
    floor = epsilon(values) ** 2 * top[..., None]
    roots = xp.sqrt(xp.where(values > floor, values, floor + 0.0 * values))
    # A rounding of ε·top in every eigenvalue, as the square roots pass it on. Solvers do better
    # by about n; where even so the sum might be off by more than 1e-15, it is redone.
    error = epsilon(values) * top * xp.sqrt(xp.sum((0.5 / roots) ** 2, axis=-1))
    n = float(values.shape[-1])
    limit = 0.3 * max(n, n * n / 16.0) * epsilon(values)
    return xp.sum(roots, axis=-1), to_numpy(error > limit)


def _nuclear(xp: Any, A: Any, B: Any) -> Any:
    return xp.sum(xp.linalg.svdvals(adjoint(xp, A) @ B), axis=-1)


def angle_from_factors(xp: Any, one: Side, two: Side) -> Any:
    """Bures angle of matched flat batches: arccos √F, and near pairs without it.

    Near pairs: the Lyapunov form where it settles, else the Procrustes form.
    """
    count = len(one.well)
    angle = xp.zeros_like(_traces(xp, one.state))
    open_ = np.ones(count, dtype=bool)
    # A gap far below every eigenvalue is a small drift for certain: no overlap is needed.
    gap = to_numpy(_frobenius(xp, two.state - one.state))
    likely = np.flatnonzero(one.full & (gap < 0.05 * one.pivot / one.state.shape[-1]))
    if likely.size:
        angle, settled = _drift_angle(xp, angle, one, two, likely)
        open_[likely[settled]] = False
    rest = np.flatnonzero(open_)
    if rest.size == 0:
        return angle
    if rest.size < count:
        one, two = one.rows(xp, rest), two.rows(xp, rest)
    overlap = overlap_from_factors(xp, one, two)
    # Traces are 1 but for rounding; without it.
    overlap = overlap / xp.sqrt(_trace(xp, one.state) * _trace(xp, two.state))
    found = xp.acos(xp.clip(overlap, 0.0, 1.0))
    near = np.flatnonzero(to_numpy(overlap > 1.0 - _NEAR))
    if near.size:
        if near.size < len(one.well):
            one, two = one.rows(xp, near), two.rows(xp, near)
        found = put(xp, found, near, _near_angle(xp, one, two))
    return found if rest.size == count else put(xp, angle, rest, found)


def _drift_angle(xp: Any, angle: Any, one: Side, two: Side, index: Any) -> tuple[Any, Any]:
    """`angle` with the drifts of `index` put in, and which of them hold."""
    values, vectors = xp.linalg.eigh(take(xp, one.state, index))
    gap = take(xp, two.state, index) - take(xp, one.state, index)
    chord, small = drift(xp, values, vectors, gap)
    # The smallest eigenvalue λ is off by ε, and the chord by the share ε/λ of itself.
    exact = to_numpy(chord < 0.25 * values[..., 0]) | one.well[index]
    return put(xp, angle, index, 2.0 * xp.asin(xp.clip(0.5 * chord, 0.0, 1.0))), small & exact


def _near_angle(xp: Any, one: Side, two: Side) -> Any:
    angle = xp.zeros_like(_traces(xp, one.state))
    settled = np.zeros(len(one.well), dtype=bool)
    solid = np.flatnonzero(one.full)
    if solid.size:
        angle, settled[solid] = _drift_angle(xp, angle, one, two, solid)
    rest = np.flatnonzero(~settled)
    if rest.size:
        A = one.rows(xp, rest).polished(xp)
        B = two.rows(xp, rest).polished(xp)
        angle = put(xp, angle, rest, _procrustes(xp, A, B))
    return angle


def drift(xp: Any, values: Any, vectors: Any, gap: Any) -> tuple[Any, Any]:
    """Bures distances from ρ = VΛV† of full rank to ρ + gap, and where the form holds.

    σ = (1 + X)ρ(1 + X) by X ← L_ρ⁻¹(σ − ρ − XρX) in ρ's eigenbasis; d_B² = Tr XρX, with full
    relative accuracy.
    """
    gap = adjoint(xp, vectors) @ gap @ vectors
    sums = values[..., :, None] + values[..., None, :]
    share = xp.astype(1.0 / sums, gap.dtype)
    weight = xp.astype(values, gap.dtype)[..., None, :]
    X = gap * share
    # The iteration contracts by about 2·‖X‖ a step; where that is not small it is not begun.
    size = to_numpy(xp.sqrt(xp.sum(xp.abs(X) ** 2, axis=(-1, -2))))
    small = size < 0.5 * epsilon(values) ** (1.0 / _DRIFT_STEPS)
    if not small.all():
        keep = xp.asarray(small) if is_numpy(gap) else xp.asarray(small, device=gap.device)
        gap = gap * xp.astype(keep, gap.dtype)[..., None, None]
        X = gap * share
    largest = max(float(size[small].max(initial=0.0)), 1e-30)
    steps = min(_DRIFT_STEPS, math.ceil(math.log(epsilon(values)) / math.log(2.0 * largest)))
    for _ in range(steps):
        X = (gap - (X * weight) @ X) * share
    square = xp.sum(xp.abs(X) ** 2 * values[..., None, :], axis=(-1, -2))
    return xp.sqrt(square), small


def _procrustes(xp: Any, A: Any, B: Any) -> Any:
    """2·atan2(‖AU − B‖, ‖AU + B‖) with U the unitary that brings AU nearest to B."""
    M = adjoint(xp, A) @ B
    P, sizes, Q = xp.linalg.svd(M)
    U = P @ Q
    # The vectors of an SVD are orthogonal, and their product the polar factor, to some ten n·ε.
    # One Newton step makes U unitary, one Lyapunov step makes U†M Hermitian, each to ε.
    U = 1.5 * U - 0.5 * U @ (adjoint(xp, U) @ U)
    H = adjoint(xp, U) @ M
    sums = sizes[..., :, None] + sizes[..., None, :]
    kept = sums > epsilon(sums) * sizes[..., :1, None]
    weight = xp.astype(kept, sums.dtype) / xp.where(kept, sums, xp.ones_like(sums))
    back = adjoint(xp, Q)
    turn = back @ ((Q @ (H - adjoint(xp, H)) @ back) * weight) @ Q
    turned = A @ (U + U @ turn)
    return 2.0 * xp.atan2(_frobenius(xp, turned - B), _frobenius(xp, turned + B))


def _frobenius(xp: Any, matrices: Any) -> Any:
    return xp.sqrt(xp.sum(xp.abs(matrices) ** 2, axis=(-1, -2)))
