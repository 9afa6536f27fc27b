"""Geodesics, tangent vectors and curvature on the simplex; part of `qigkernels.simplex`."""

from __future__ import annotations

import math
from typing import Any

from qigkernels._arrays import as_array, epsilon, same_namespace, tiny
from qigkernels._errors import ValidationError
from qigkernels._roots import check_broadcast, difference, last_norm, two_points
from qigkernels.validation import (
    SUM_TOLERANCE,
    check_finite,
    check_last_axes,
    validate_distribution,
)

__all__ = ["exp", "geodesic", "inner", "log", "norm", "path_curvature", "transport"]


def _tangent(xp: Any, p: Any, q: Any) -> tuple[Any, Any, Any, Any]:
    """√p, √q, the unit tangent at √p towards √q, and the angle θ between them (kept axis)."""
    u, v, delta = difference(xp, p, q)
    scale = 1.0 / last_norm(xp, v)
    u, v, delta = u * scale, v * scale, delta * scale
    half = xp.atan2(last_norm(xp, delta), last_norm(xp, u + v))
    # v − cos θ·u, with 1 − cos θ taken as 2·sin²(θ/2): no cancellation for near points.
    direction = delta + 2.0 * xp.sin(half) ** 2 * u
    return u, v, direction / (last_norm(xp, direction) + tiny(p)), 2.0 * half


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
    p, q, xp = two_points(p, q, check)
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
    if isinstance(t, (int, float)):
        return first if t <= 0.5 else second
    return xp.where(xp.broadcast_to(t <= 0.5, first.shape), first, second)


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
    p, q, xp = two_points(p, q, check)
    u, _, direction, angle = _tangent(xp, p, q)
    return 2.0 * angle * u * direction


def _vector(xp: Any, p: Any, v: Any, name: str) -> Any:
    """A tangent vector checked and taken to root coordinates: vᵢ/(2√pᵢ), 0 on the boundary."""
    if not bool(xp.all(xp.isfinite(v))):
        check_finite(name, v)
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
    angle = last_norm(xp, w)
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
    check_broadcast(p, v, name)
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
    p, q, xp = two_points(p, q, check)
    v = as_array("v", v)
    same_namespace(p=p, v=v)
    check_last_axes("v", v, 1)
    check_broadcast(p, v, "v")
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
    check_last_axes("w", w, 1)
    check_broadcast(p, w, "w")
    return 4.0 * xp.sum(_vector(xp, p, v, "v") * _vector(xp, p, w, "w"), axis=-1)


def norm(p: Any, v: Any, *, check: bool = True) -> Any:
    """Length of the tangent vector v at p: √g_p(v, v), `(..., n)` → `(...)`.

    >>> float(norm(np.array([0.5, 0.5]), np.array([0.1, -0.1])))
    0.2
    """
    p, v, xp = _point_and_vector(p, v, check)
    return 2.0 * last_norm(xp, _vector(xp, p, v, "v"))[..., 0]


def path_curvature(path: Any, *, check: bool = True) -> Any:
    """Curvature of a polygonal path at its inner points: turning angle / mean step length.

    The turning angle at x_k lies between −log(x_k → x_{k−1}) and log(x_k → x_{k+1}); a geodesic
    gives 0, and a point repeated gives 0 (no direction, no turn).

    Args:
        path: `(..., T, n)`, T ≥ 3.

    Returns:
        `(..., T − 2)`, 1/radian.

    Raises:
        ValidationError: not distributions, or fewer than three points.
    """
    path = as_array("path", path)
    xp = same_namespace(path=path)
    check_last_axes("path", path, 2, square=False)
    if path.shape[-2] < 3:
        raise ValidationError(
            f"path has shape {tuple(path.shape)}; a curvature needs at least three points",
            argument="path",
            shape=tuple(path.shape),
        )
    if check:
        validate_distribution(path, "path")
    middle = path[..., 1:-1, :]
    _, _, back, before = _tangent(xp, middle, path[..., :-2, :])
    _, _, forth, after = _tangent(xp, middle, path[..., 2:, :])
    # Both directions are unit vectors, or 0 where a point repeats.
    turn = 2.0 * xp.atan2(last_norm(xp, forth + back), last_norm(xp, forth - back))
    moves = (before > 0.0) & (after > 0.0)
    length = before + after
    # Distances are twice the angles of the roots: the mean step length is before + after.
    return xp.where(moves, turn / (length + tiny(path)), xp.zeros_like(turn))[..., 0]
