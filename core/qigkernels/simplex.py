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

from qigkernels._arrays import FLOAT64, as_array, epsilon, same_namespace, tiny
from qigkernels._errors import ValidationError
from qigkernels.validation import (
    SUM_TOLERANCE,
    check_last_axes,
    explain_distribution,
    validate_distribution,
)

__all__ = [
    "distance",
    "distance_from_roots",
    "exp",
    "geodesic",
    "inner",
    "log",
    "norm",
    "pairwise",
    "roots",
    "to_simplex",
    "transport",
]

_TINY = tiny(np.empty(0))
_ONES: dict[int, Any] = {}


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
    p, q, xp = _two(p, q, check)
    return _distance(xp, p, q)


def _pair(p: Any, q: Any, check: bool) -> float:
    # The lean path of one NumPy pair: BLAS dots instead of ufunc reductions, no temporaries kept.
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
    delta = p - q
    shift = delta.dot(ones)
    u = np.sqrt(p)
    if abs(shift) > 1e-15:
        u *= math.sqrt(sum_q / sum_p)
    u += np.sqrt(q)
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


def _two(p: Any, q: Any, check: bool) -> tuple[Any, Any, Any]:
    """Both arguments as arrays of one library, of one n, checked; and the namespace."""
    p, q = as_array("p", p), as_array("q", q)
    xp = same_namespace(p=p, q=q)
    check_last_axes("p", p, 1)
    check_last_axes("q", q, 1)
    _broadcast(p, q)
    if check:
        validate_distribution(p, "p")
        validate_distribution(q, "q")
    return p, q, xp


def _broadcast(p: Any, q: Any, name: str = "q") -> None:
    if p.shape[-1] == q.shape[-1]:
        try:
            np.broadcast_shapes(tuple(p.shape), tuple(q.shape))
        except ValueError:
            pass
        else:
            return
    raise ValidationError(
        f"{name} of shape {tuple(q.shape)} does not go with p of shape {tuple(p.shape)}: "
        "the last axes must be equal and the batch axes broadcast",
        argument=name,
        shape=tuple(q.shape),
    )


def _difference(xp: Any, p: Any, q: Any) -> tuple[Any, Any, Any]:
    """√p and √q brought to the norm of √q, and √q − √p without cancellation."""
    sum_p = xp.sum(p, axis=-1, keepdims=True)
    gap = p - q
    shift = xp.sum(gap, axis=-1, keepdims=True) / sum_p
    u = xp.sqrt(p) * xp.sqrt(1.0 - shift)
    v = xp.sqrt(q)
    return u, v, (p * shift - gap) / (u + v + tiny(p))


def _norm(xp: Any, x: Any) -> Any:
    """Euclidean norm over the last axis, kept as an axis; no underflow."""
    unit = xp.max(xp.abs(x), axis=-1, keepdims=True) + tiny(x)
    scaled = x / unit
    return unit * xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))


def _distance(xp: Any, p: Any, q: Any) -> Any:
    u, v, delta = _difference(xp, p, q)
    return 4.0 * xp.atan2(_norm(xp, delta), _norm(xp, u + v))[..., 0]


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
    check_last_axes("u", u, 1)
    _broadcast(u, v, "v")
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
    U = xp.sqrt(P)
    V = U if Q is P else xp.sqrt(Q)
    B = U @ xp.matrix_transpose(V)
    near = xp.nonzero(B > 1.0 - 1e-4)
    if xp is np:
        np.minimum(B, 1.0, out=B)
        D = np.arccos(B, out=B)
        D *= 2.0
        if near[0].size:
            D[near] = _distance(xp, P[near[0]], Q[near[1]])
        return D
    D = 2.0 * xp.acos(xp.clip(B, 0.0, 1.0))
    if near[0].shape[0] == 0:
        return D
    redone = _distance(xp, P[near[0]], Q[near[1]])
    if hasattr(D, "at"):
        return D.at[near].set(redone)
    D[near] = redone
    return D


def _tangent(xp: Any, p: Any, q: Any) -> tuple[Any, Any, Any, Any]:
    """√p, √q, the unit tangent at √p towards √q, and the angle θ between them (kept axis)."""
    u, v, delta = _difference(xp, p, q)
    scale = 1.0 / _norm(xp, v)
    u, v, delta = u * scale, v * scale, delta * scale
    half = xp.atan2(_norm(xp, delta), _norm(xp, u + v))
    # v − cos θ·u, with 1 − cos θ taken as 2·sin²(θ/2): no cancellation for near points.
    direction = delta + 2.0 * xp.sin(half) ** 2 * u
    return u, v, direction / (_norm(xp, direction) + tiny(p)), 2.0 * half


def geodesic(p: Any, q: Any, t: Any, *, check: bool = True) -> Any:
    """The point at share t of the shortest path from p to q: a great circle of √p.

    √x(t) = cos(tθ)·√p + sin(tθ)·e with e the unit tangent; the nearer end is the base, so both
    ends are met exactly and the speed is constant also for points 1e-9 apart.

    Args:
        p, q: `(..., n)`. t: a number or `(...)`, broadcast against the batch axes; in [0, 1].

    Returns:
        `(..., n)`, a distribution.

    Raises:
        ValidationError: t outside [0, 1], where the path may leave the simplex.

    >>> geodesic(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5).round(12).tolist()
    [0.5, 0.5]
    """
    p, q, xp = _two(p, q, check)
    if isinstance(t, (int, float)):
        low = high = float(t)
    else:
        t = as_array("t", t)
        low, high = float(xp.min(t)), float(xp.max(t))
        t = t[..., None]
    if not (low >= 0.0 and high <= 1.0):
        raise ValidationError(
            f"t must be in [0, 1], got {low if not low >= 0.0 else high!r}", argument="t", value=t
        )
    u, v, forth, angle = _tangent(xp, p, q)
    _, _, back, _ = _tangent(xp, q, p)
    first = _along(xp, p, u, forth, t * angle)
    second = _along(xp, q, v, back, (1.0 - t) * angle)
    near_p = xp.broadcast_to(xp.asarray(t <= 0.5), first.shape)
    return xp.where(near_p, first, second)


def _along(xp: Any, p: Any, u: Any, direction: Any, angle: Any) -> Any:
    """(cos(angle)·u + sin(angle)·direction)², written as an increment of p."""
    step = xp.sin(angle) * direction - 2.0 * xp.sin(0.5 * angle) ** 2 * u
    # An increment that would leave p below 0 is the rounding of an entry that vanishes.
    return xp.where(step < -0.5 * u, (u + step) ** 2, p + step * (2.0 * u + step))


def log(p: Any, q: Any, *, check: bool = True) -> Any:
    """The tangent vector at p that reaches q in unit time, in p-coordinates (Σv = 0).

    v = 2√p ⊙ (θ/ sin θ)(√q − cos θ √p), θ = d(p, q)/2; its length `norm(p, v)` is d(p, q).
    Where pᵢ = 0 the coordinate cannot show a direction and vᵢ = 0.

    Args:
        p, q: `(..., n)`.

    Returns:
        `(..., n)`.

    >>> log(np.array([0.5, 0.5]), np.array([0.5, 0.5])).tolist()
    [0.0, 0.0]
    """
    p, q, xp = _two(p, q, check)
    u, _, direction, angle = _tangent(xp, p, q)
    return 2.0 * angle * u * direction


def _vector(xp: Any, p: Any, v: Any, name: str) -> Any:
    """A tangent vector checked and taken to root coordinates: vᵢ/(2√pᵢ), 0 on the boundary."""
    total = xp.sum(v, axis=-1)
    bound = 64.0 * SUM_TOLERANCE * (1.0 + xp.max(xp.abs(v), axis=-1))
    stray = xp.any(xp.abs(xp.where(p == 0.0, v, xp.zeros_like(v))) > 0.0, axis=-1)
    if bool(xp.any(stray)) or not bool(xp.all(xp.abs(total) <= bound)):
        worst = float(xp.max(xp.abs(total)))
        raise ValidationError(
            f"{name} of shape {tuple(v.shape)} is no tangent vector at p: it must sum to 0 "
            f"(|Σ| up to {worst!r}) and be 0 where p is 0",
            argument=name,
            shape=tuple(v.shape),
            value=worst,
        )
    return v / (2.0 * xp.sqrt(p) + tiny(p))


def exp(p: Any, v: Any, *, check: bool = True) -> Any:
    """The point reached from p with velocity v (p-coordinates) in unit time; inverse of `log`.

    √x = cos θ √p + (sin θ/θ)·v/(2√p), θ = ½·norm(p, v).

    Args:
        p, v: `(..., n)`; Σv = 0 and vᵢ = 0 where pᵢ = 0.

    Returns:
        `(..., n)`, a distribution.

    Raises:
        ValidationError: v is no tangent vector, or the path leaves the simplex on its way.

    >>> p = np.array([0.3, 0.7])
    >>> exp(p, np.zeros(2)).tolist()
    [0.3, 0.7]
    """
    p, v, xp = _point_and_vector(p, v, check)
    w = _vector(xp, p, v, "v")
    angle = _norm(xp, w)
    u = xp.sqrt(p)
    direction = w / (angle + tiny(p))
    reached = xp.cos(angle) * u + xp.sin(angle) * direction
    if bool(xp.any(reached < -64.0 * epsilon(p))) or bool(xp.any(angle > math.pi)):
        lowest = float(xp.min(reached))
        raise ValidationError(
            f"v of shape {tuple(v.shape)} leads out of the simplex (a root reaches {lowest!r}); "
            "take a shorter step",
            argument="v",
            shape=tuple(v.shape),
            value=lowest,
        )
    return _along(xp, p, u, direction, angle)


def _point_and_vector(p: Any, v: Any, check: bool, name: str = "v") -> tuple[Any, Any, Any]:
    p, v = as_array("p", p), as_array(name, v)
    xp = same_namespace(p=p, v=v)
    check_last_axes("p", p, 1)
    check_last_axes(name, v, 1)
    _broadcast(p, v, name)
    if check:
        validate_distribution(p, "p")
    return p, v, xp


def transport(p: Any, q: Any, v: Any, *, check: bool = True) -> Any:
    """Parallel transport of the tangent vector v from p to q along the shortest path.

    In roots: w ↦ w + ⟨e, w⟩((cos θ − 1)e − sin θ √p); lengths and angles are kept.

    Args:
        p, q, v: `(..., n)`; v tangent at p, in p-coordinates.

    Returns:
        `(..., n)`, tangent at q, in q-coordinates.

    >>> p = np.array([0.3, 0.7])
    >>> transport(p, p, np.array([0.1, -0.1])).round(12).tolist()
    [0.1, -0.1]
    """
    p, q, xp = _two(p, q, check)
    v = as_array("v", v)
    same_namespace(p=p, v=v)
    _broadcast(p, v, "v")
    w = _vector(xp, p, v, "v")
    u, root_q, e, angle = _tangent(xp, p, q)
    along = xp.sum(e * w, axis=-1, keepdims=True)
    moved = w - along * (2.0 * xp.sin(0.5 * angle) ** 2 * e + xp.sin(angle) * u)
    return 2.0 * root_q * moved


def inner(p: Any, v: Any, w: Any, *, check: bool = True) -> Any:
    """Fisher inner product g_p(v, w) = Σ vᵢwᵢ/pᵢ of tangent vectors at p: `(..., n)` → `(...)`.

    >>> float(inner(np.array([0.5, 0.5]), np.array([0.1, -0.1]), np.array([0.1, -0.1])))
    0.04
    """
    p, v, xp = _point_and_vector(p, v, check)
    w = as_array("w", w)
    same_namespace(p=p, w=w)
    _broadcast(p, w, "w")
    return 4.0 * xp.sum(_vector(xp, p, v, "v") * _vector(xp, p, w, "w"), axis=-1)


def norm(p: Any, v: Any, *, check: bool = True) -> Any:
    """Length of the tangent vector v at p: √g_p(v, v), `(..., n)` → `(...)`.

    >>> float(norm(np.array([0.5, 0.5]), np.array([0.1, -0.1])))
    0.2
    """
    p, v, xp = _point_and_vector(p, v, check)
    return 2.0 * _norm(xp, _vector(xp, p, v, "v"))[..., 0]


def to_simplex(x: Any, how: str) -> Any:
    """Make a distribution of x, explicitly: `(..., n)` → `(..., n)`.

    how="softmax": eˣ/Σeˣ; how="counts": x/Σx of non-negative x with a positive sum;
    how="amplitudes": x²/Σx² of real amplitudes.

    Raises:
        ValidationError: NaN or inf, negative or all-zero counts, or an unknown `how`.

    >>> to_simplex(np.array([1.0, 3.0]), how="counts").tolist()
    [0.25, 0.75]
    """
    from qigkernels.validation import check_finite

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
