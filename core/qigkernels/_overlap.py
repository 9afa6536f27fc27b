"""Bures angle from factors, for whatever pair; part of `qigkernels.states`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, is_numpy, product, take_rows, to_numpy
from qigkernels._factors import (
    Side,
    adjoint,
    frobenius,
    put,
    singular_values,
    singular_vectors,
    traces,
)

__all__ = ["NEAR", "angle_from_factors", "drift"]

_DRIFT_STEPS = 16

NEAR = 0.05
"""1 − √F below which arccos √F would lose digits and the Procrustes form takes over."""


def angle_from_factors(xp: Any, one: Side, two: Side) -> Any:
    """Bures angle of matched flat batches: arccos √F, and near pairs without it.

    Near pairs: the Lyapunov form where it settles, else the Procrustes form.
    """
    count = len(one.well)
    angle = xp.zeros_like(traces(xp, one.state))
    open_ = np.ones(count, dtype=bool)
    # A gap far below every eigenvalue is a small drift for certain: no overlap is needed.
    gap = to_numpy(frobenius(xp, two.state - one.state))
    likely = np.flatnonzero(one.full & (gap < 0.05 * one.pivot))
    if likely.size:
        angle, settled = _drift_angle(xp, angle, one, two, likely)
        open_[likely[settled]] = False
    rest = np.flatnonzero(open_)
    if rest.size == 0:
        return angle
    if rest.size < count:
        one, two = one.rows(xp, rest), two.rows(xp, rest)
    A, B = _narrowed(one.root, two.root, int(one.rank.max()), int(two.rank.max()))
    overlap = xp.sum(singular_values(xp, product(adjoint(xp, A), B)), axis=-1)
    # Traces are 1 but for rounding; without it.
    overlap = overlap / xp.sqrt(traces(xp, one.state) * traces(xp, two.state))
    found = xp.acos(xp.clip(overlap, 0.0, 1.0))
    near = np.flatnonzero(to_numpy(overlap > 1.0 - NEAR))
    if near.size:
        if near.size < len(one.well):
            one, two = one.rows(xp, near), two.rows(xp, near)
        found = put(xp, found, near, _near_angle(xp, one, two))
    return found if rest.size == count else put(xp, angle, rest, found)


def _narrowed(A: Any, B: Any, rank_one: int, rank_two: int) -> tuple[Any, Any]:
    """The factors without the leading columns that are zero in all of them."""
    n = A.shape[-1]
    return A[..., n - rank_one :], B[..., n - rank_two :]


def _drift_angle(xp: Any, angle: Any, one: Side, two: Side, index: Any) -> tuple[Any, Any]:
    """`angle` with the drifts of `index` put in, and which of them hold."""
    values, vectors = xp.linalg.eigh(take_rows(xp, one.state, index))
    gap = take_rows(xp, two.state, index) - take_rows(xp, one.state, index)
    chord, small = drift(xp, values, vectors, gap)
    # The smallest eigenvalue λ is off by ε, and the chord by the share ε/λ of itself.
    exact = to_numpy(chord < 0.25 * values[..., 0]) | one.well[index]
    return put(xp, angle, index, 2.0 * xp.asin(xp.clip(0.5 * chord, 0.0, 1.0))), small & exact


def _near_angle(xp: Any, one: Side, two: Side) -> Any:
    angle = xp.zeros_like(traces(xp, one.state))
    settled = np.zeros(len(one.well), dtype=bool)
    solid = np.flatnonzero(one.full)
    if solid.size:
        angle, settled[solid] = _drift_angle(xp, angle, one, two, solid)
    rest = np.flatnonzero(~settled)
    if rest.size:
        one, two = one.rows(xp, rest), two.rows(xp, rest)
        rank = max(int(one.rank.max()), int(two.rank.max()))
        A, B = _narrowed(one.polished(xp), two.polished(xp), rank, rank)
        angle = put(xp, angle, rest, _procrustes(xp, A, B))
    return angle


def drift(xp: Any, values: Any, vectors: Any, gap: Any) -> tuple[Any, Any]:
    """Bures distances from ρ = VΛV† of full rank to ρ + gap, and where the form holds.

    σ = (1 + X)ρ(1 + X) by X ← L_ρ⁻¹(σ − ρ − XρX) in ρ's eigenbasis; d_B² = Tr XρX, with full
    relative accuracy.
    """
    gap = product(adjoint(xp, vectors), gap, vectors)
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
        X = (gap - product(X * weight, X)) * share
    square = xp.sum(xp.abs(X) ** 2 * values[..., None, :], axis=(-1, -2))
    return xp.sqrt(square), small


def _procrustes(xp: Any, A: Any, B: Any) -> Any:
    """2·atan2(‖AU − B‖, ‖AU + B‖) with U the unitary that brings AU nearest to B."""
    M = product(adjoint(xp, A), B)
    P, sizes, Q = singular_vectors(xp, M)
    U = product(P, Q)
    # The vectors of an SVD are orthogonal, and their product the polar factor, to some ten n·ε.
    # One Newton step makes U unitary, one Lyapunov step makes U†M Hermitian, each to ε.
    U = 1.5 * U - product(0.5 * U, product(adjoint(xp, U), U))
    H = product(adjoint(xp, U), M)
    sums = sizes[..., :, None] + sizes[..., None, :]
    kept = sums > epsilon(sums) * sizes[..., :1, None]
    weight = xp.astype(kept, sums.dtype) / xp.where(kept, sums, xp.ones_like(sums))
    back = adjoint(xp, Q)
    turn = product(back, product(Q, H - adjoint(xp, H), back) * weight, Q)
    turned = product(A, U + product(U, turn))
    return 2.0 * xp.atan2(frobenius(xp, turned - B), frobenius(xp, turned + B))
