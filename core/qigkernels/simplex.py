"""Fisher-Rao geometry of the probability simplex, batched, without any ε.

The map p ↦ √p takes the simplex with the Fisher metric to the positive orthant of a sphere of
radius 2, so distances are angles and geodesics great circles; every angle here comes from `atan2`
of two norms (Kahan), never from an arccos near 1.

Batches lead: `p, q : (..., n)`, float32 or float64, of NumPy, torch, JAX or CuPy; the result keeps
the dtype and the device. Inputs must be probability vectors (see `validate_distribution`); pass
`check=False` where they are known to be, or inside `jax.jit`.

Sources: C. R. Rao, Bull. Calcutta Math. Soc. 37 (1945) 81; S. Amari, H. Nagaoka, Methods of
Information Geometry (2000), doi:10.1090/mmono/191; W. Kahan, How futile are mindless assessments
of roundoff (2006), section 13.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qigkernels._arrays import FLOAT64, as_array, is_numpy, product, same_namespace, tiny
from qigkernels._errors import ValidationError
from qigkernels._extended import overlap
from qigkernels._fields import frechet_mean, metric, metric_inverse, natural_gradient
from qigkernels._geodesics import exp, geodesic, inner, log, norm, path_curvature, transport
from qigkernels._roots import check_broadcast, difference, last_norm, two_points
from qigkernels.validation import (
    SUM_TOLERANCE,
    check_finite,
    check_last_axes,
    explain_distribution,
    validate_distribution,
)

__all__ = [
    "distance",
    "distance_from_roots",
    "exp",
    "frechet_mean",
    "geodesic",
    "inner",
    "log",
    "metric",
    "metric_inverse",
    "natural_gradient",
    "norm",
    "pairwise",
    "path_curvature",
    "roots",
    "to_simplex",
    "transport",
]

_TINY = tiny(np.empty(0))
_ONES: dict[int, Any] = {}
_PI_REST = 1.2246467991473532e-16
"""π without its first 53 bits."""
_FAR = math.cos(0.25)
"""Overlap of two points a distance of ½ apart."""
_NEAR_TABLE = 2.0 * math.acos(1.0 - 1e-4)
"""Distance below which the arccos of an overlap has lost too many digits."""
_TABLE_ENTRIES = 2**15
_LONG = np.finfo(np.longdouble).nmant == 63
"""Whether `longdouble` is the 80-bit format of x86 (elsewhere it is slow, or float64 again)."""


def distance(p: Any, q: Any, *, check: bool = True) -> Any:
    """Fisher-Rao distance d(p, q) = 2·arccos Σ√(pᵢqᵢ) = 4·atan2(‖√p − √q‖, ‖√p + √q‖).

    √pᵢ − √qᵢ is taken as (pᵢ − qᵢ)/(√pᵢ + √qᵢ) after both were brought to the same sum, so that
    equal points give exactly 0 and near ones full relative accuracy.

    Args:
        p, q: `(..., n)`, batch axes broadcast.
        check: refuse what is no probability vector.

    Returns:
        `(...)`, radians in [0, π].

    Raises:
        ValidationError: not distributions, or shapes that do not go together.

    Source: Rao 1945; Kahan 2006.

    >>> float(distance(np.array([1.0, 0.0]), np.array([0.0, 1.0]))) == math.pi
    True
    """
    if (
        type(p) is np.ndarray
        and type(q) is np.ndarray
        and p.ndim == 1
        and p.shape == q.shape
        and p.dtype == FLOAT64
        and q.dtype == FLOAT64
        and p.shape[0]
    ):
        return _pair(p, q, check)
    p, q, xp = two_points(p, q, check)
    return _distance(xp, p, q)


def _pair(p: Any, q: Any, check: bool) -> float:
    # The lean path of one NumPy pair: BLAS dots instead of ufunc reductions, few temporaries.
    n = p.shape[0]
    ones = _ONES.get(n)
    if ones is None:
        if len(_ONES) >= 64:
            _ONES.clear()
        ones = _ONES[n] = np.ones(n)
    sum_p, sum_q = p.dot(ones), q.dot(ones)
    if check and not (
        np.minimum.reduce(np.minimum(p, q)) >= 0.0
        and abs(sum_p - 1.0) <= SUM_TOLERANCE
        and abs(sum_q - 1.0) <= SUM_TOLERANCE
    ):
        explain_distribution("p", p)
        explain_distribution("q", q)
    u, v = np.sqrt(p), np.sqrt(q)
    if u.dot(v) < _FAR:
        return _pair_far(p, q)
    delta = p - q
    shift = delta.dot(ones)
    if abs(shift) > 1e-15:
        u *= math.sqrt(sum_q / sum_p)
    u += v
    delta -= p * (shift / sum_p)
    delta /= u + _TINY
    square = delta.dot(delta)
    if square < 1e-280:
        # Below this the squares lose bits: measure in units of the largest entry.
        unit = np.abs(delta).max()
        if unit == 0.0:
            return 0.0
        delta /= unit
        return 4.0 * math.atan2(math.sqrt(delta.dot(delta)) * unit, math.sqrt(u.dot(u)))
    return 4.0 * math.atan2(math.sqrt(square), math.sqrt(u.dot(u)))


def _pair_far(p: Any, q: Any) -> float:
    """2·arccos of the overlap of a pair more than ½ apart, the overlap in extended precision."""
    if _LONG:
        # 64-bit significands of the processor: the same result as `overlap`, in fewer steps.
        pair = np.empty((2, p.shape[0]), np.longdouble)
        pair[0], pair[1] = p, q
        sums = np.add.reduce(pair, 1)
        np.sqrt(pair, pair)
        exact = pair[0].dot(pair[1]) / np.sqrt(sums[0] * sums[1])
        head = float(exact)
        tail = float(exact - head)
    else:
        head, tail = map(float, overlap(same_namespace(p=p), p, q))
    return 2.0 * (math.acos(head) - tail / math.sqrt((1.0 - head) * (1.0 + head)))


def _distance(xp: Any, p: Any, q: Any) -> Any:
    u, v, delta = difference(xp, p, q)
    near = 4.0 * xp.atan2(last_norm(xp, delta), last_norm(xp, u + v))[..., 0]
    if near.dtype != xp.float64:
        return near
    # The norms of u − v and u + v carry roundings that matter only where the distance is large;
    # there the arccos of an extended overlap is exact to the last digit.
    far = near > 0.5
    if not is_numpy(near):
        return xp.where(far, _far(xp, p, q), near)
    if far.any():
        p, q = np.broadcast_arrays(p, q)
        near = np.asarray(near)
        near[far] = _far(xp, p[far], q[far])
    return near


def _far(xp: Any, p: Any, q: Any) -> Any:
    head, tail = overlap(xp, p, q)
    # Only rows that are near, and are not taken from here, can have an overlap of 1.
    slope = xp.sqrt(xp.clip((1.0 - head) * (1.0 + head), 1e-3, 1.0))
    head, tail = xp.clip(head, 0.0, 1.0), tail / slope
    # The smaller of two angles has the smaller rounding; a Newton step takes off asin's own.
    rest = xp.asin(head)
    more = tail + (head - xp.sin(rest)) / xp.cos(xp.clip(rest, 0.0, 1.0))
    beyond = math.pi - 2.0 * rest
    beyond = beyond + ((math.pi - beyond) - 2.0 * rest + (_PI_REST - 2.0 * more))
    return xp.where(head < 0.55, beyond, 2.0 * (xp.acos(head) - tail))


def roots(p: Any, *, check: bool = True) -> Any:
    """√p, the stored form: `(..., n)` → `(..., n)`.

    >>> roots(np.array([0.25, 0.75]))[0]
    np.float64(0.5)
    """
    p = as_array("p", p)
    check_last_axes("p", p, 1)
    if check:
        validate_distribution(p, "p")
    return same_namespace(p=p).sqrt(p)


def distance_from_roots(u: Any, v: Any) -> Any:
    """Fisher-Rao distance from stored roots u = √p, v = √q: 4·atan2(‖u − v‖, ‖u + v‖).

    A third of the cost of `distance`. Rounding of the stored roots limits it to 2e-16 absolute;
    `distance` keeps the relative accuracy of pairs that are nearer than that.

    Args:
        u, v: `(..., n)`, batch axes broadcast.

    Returns:
        `(...)`, radians in [0, π].

    >>> float(distance_from_roots(np.array([1.0, 0.0]), np.array([1.0, 0.0])))
    0.0
    """
    u, v = as_array("u", u), as_array("v", v)
    xp = same_namespace(u=u, v=v)
    for name, root in (("u", u), ("v", v)):
        check_last_axes(name, root, 1)
        check_finite(name, root)
    check_broadcast(u, v, "v")
    gap, total = u - v, u + v
    return 4.0 * xp.atan2(
        xp.sqrt(xp.sum(gap * gap, axis=-1)), xp.sqrt(xp.sum(total * total, axis=-1))
    )


def pairwise(P: Any, Q: Any = None, *, check: bool = True) -> Any:
    """All Fisher-Rao distances between the rows of P and of Q (P itself when left out).

    One matrix product of the roots, B = √P·√Qᵀ, then 2·arccos B; entries with B > 1 − 1e-4, where
    arccos loses digits, are redone by `distance`. Error ≤ 5e-14 absolute elsewhere.

    Args:
        P: `(k, n)`. Q: `(m, n)`.

    Returns:
        `(k, m)`, radians in [0, π].

    >>> pairwise(np.eye(2)).tolist() == [[0.0, math.pi], [math.pi, 0.0]]
    True
    """
    Q = P if Q is None else Q
    P, Q = as_array("P", P), as_array("Q", Q)
    xp = same_namespace(P=P, Q=Q)
    for name, rows in (("P", P), ("Q", Q)):
        check_last_axes(name, rows, 1)
        if rows.ndim != 2 or rows.shape[-1] != P.shape[-1]:
            raise ValidationError(
                f"{name} has shape {tuple(rows.shape)}; expected rows of one length "
                f"(k, {P.shape[-1]})",
                argument=name,
                shape=tuple(rows.shape),
            )
        if check:
            validate_distribution(rows, name)
    if xp is np:
        return _table(P, Q)
    D = 2.0 * xp.acos(xp.clip(product(xp.sqrt(P), xp.matrix_transpose(xp.sqrt(Q))), 0.0, 1.0))
    if Q is P:
        D = 0.5 * (D + xp.matrix_transpose(D))
    near = xp.nonzero(D < _NEAR_TABLE)
    if near[0].shape[0] == 0:
        return D
    redone = _distance(xp, P[near[0]], Q[near[1]])
    if hasattr(D, "at"):
        return D.at[near].set(redone)
    D[near] = redone
    return D


def _table(P: Any, Q: Any) -> Any:
    """`pairwise` for NumPy: by blocks of rows that stay in the cache; half of them where Q is P."""
    same = Q is P
    U = np.sqrt(P)
    V = U if same else np.sqrt(Q)
    D = np.empty((len(P), len(Q)), dtype=np.result_type(P, Q))
    rows = max(1, _TABLE_ENTRIES // len(Q))
    for start in range(0, len(P), rows):
        stop = min(len(P), start + rows)
        first = start if same else 0
        # In place where a block is a run of whole rows of the table.
        B = np.matmul(U[start:stop], V[first:].T, out=None if same else D[start:stop])
        np.minimum(B, 1.0, out=B)
        np.arccos(B, out=B)
        B *= 2.0
        if same:
            # Equal points are at 0 exactly, and are not among those to redo.
            B[np.arange(stop - start), np.arange(stop - start)] = 0.0
        near = np.flatnonzero(B < _NEAR_TABLE)
        if near.size:
            i, j = np.divmod(near, B.shape[1])
            other = i != j if same else slice(None)
            i, j, near = i[other], j[other], near[other]
            if near.size:
                B.ravel()[near] = _distance(np, P[start + i], Q[first + j])
        if same:
            D[start:stop, first:] = B
            D[stop:, start:stop] = B[:, stop - start :].T
            block = D[start:stop, start:stop]
            np.copyto(block, np.triu(block) + np.triu(block, 1).T)
    return D


def to_simplex(x: Any, how: str) -> Any:
    """Make a distribution of x, explicitly: `(..., n)` → `(..., n)`.

    how="softmax": eˣ/Σeˣ; how="counts": x/Σx of non-negative x with a positive sum;
    how="amplitudes": x²/Σx² of real amplitudes.

    Raises:
        ValidationError: NaN or inf, negative or all-zero counts, or an unknown `how`.

    >>> to_simplex(np.array([1.0, 3.0]), how="counts").tolist()
    [0.25, 0.75]
    """
    x = as_array("x", x)
    xp = same_namespace(x=x)
    check_last_axes("x", x, 1)
    check_finite("x", x)
    if how == "softmax":
        weight = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    elif how == "counts":
        weight = x / (xp.max(xp.abs(x), axis=-1, keepdims=True) + tiny(x))
    elif how == "amplitudes":
        weight = (x / (xp.max(xp.abs(x), axis=-1, keepdims=True) + tiny(x))) ** 2
    else:
        raise ValidationError(
            f"how must be 'softmax', 'counts' or 'amplitudes', got {how!r}",
            argument="how",
            value=how,
        )
    if bool(xp.any(weight < 0.0)):
        raise ValidationError(
            f"x of shape {tuple(x.shape)} has a negative count: {float(xp.min(x))!r}",
            argument="x",
            shape=tuple(x.shape),
            value=float(xp.min(x)),
        )
    total = xp.sum(weight, axis=-1, keepdims=True)
    if bool(xp.any(total == 0.0)):
        raise ValidationError(
            f"x of shape {tuple(x.shape)} has a row of zeros; it has no direction",
            argument="x",
            shape=tuple(x.shape),
            value=0.0,
        )
    return weight / total
