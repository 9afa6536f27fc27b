"""Means, gradients, metric and curvature on the simplex; part of `qigkernels.simplex`."""

from __future__ import annotations

from typing import Any

from qigkernels._arrays import as_array, epsilon, same_namespace
from qigkernels._errors import ValidationError
from qigkernels.validation import check_last_axes, validate_distribution

__all__ = [
    "frechet_mean",
    "mean_weights",
    "metric",
    "metric_inverse",
    "natural_gradient",
]


def mean_weights(xp: Any, weights: Any, points: Any, shape: tuple[int, ...]) -> Any:
    """Weights of `shape` `(..., k)`, checked: non-negative, summing to 1; equal when None.

    Raises:
        ValidationError: negative, not summing to 1, or of another length.
    """
    k = shape[-1]
    real = points.dtype
    if xp.isdtype(real, "complex floating"):
        real = xp.real(points).dtype
    if weights is None:
        from array_api_compat import device

        return xp.full((k,), 1.0 / k, dtype=real, device=device(points))
    weights = as_array("weights", weights)
    same_namespace(points=points, weights=weights)
    check_last_axes("weights", weights, 1)
    if not bool(xp.all(xp.isfinite(weights))):
        from qigkernels.validation import check_finite

        check_finite("weights", weights)
    off = float(xp.max(xp.abs(xp.sum(weights, axis=-1) - 1.0)))
    lowest = float(xp.min(weights))
    if weights.shape[-1] != k or not off <= 1e-6 or not lowest >= 0.0:
        raise ValidationError(
            f"weights of shape {tuple(weights.shape)} must be {k} non-negative numbers that sum "
            f"to 1 (smallest {lowest!r}, sum off by {off!r})",
            argument="weights",
            shape=tuple(weights.shape),
            value=lowest,
        )
    return xp.astype(weights, real)


def frechet_mean(P: Any, weights: Any = None, *, check: bool = True, steps_max: int = 100) -> Any:
    """The distribution that minimises Σ wᵢ d(Pᵢ, ·)²: unique, the orthant being convex.

    Karcher flow on the roots, u ← exp_u(Σ wᵢ fᵢ (vᵢ − cᵢu)), c = Vu, f = θ/sin θ, until the step
    is at rounding level; about 10 steps.

    Args:
        P: `(..., k, n)`. weights: `(k,)` or `(..., k)`, non-negative, summing to 1; equal when
            left out.

    Returns:
        `(..., n)`.

    Raises:
        ValidationError: not distributions, or bad weights.

    Source: B. Afsari, Proc. AMS 139 (2011) 655, doi:10.1090/S0002-9939-2010-10541-5.
    """
    P = as_array("P", P)
    xp = same_namespace(P=P)
    check_last_axes("P", P, 2, square=False)
    if check:
        validate_distribution(P, "P")
    weight = mean_weights(xp, weights, P, tuple(P.shape[:-1]))[..., None]
    V = xp.sqrt(P)
    V = V / xp.sqrt(xp.sum(P, axis=-1, keepdims=True))
    u = _unit(xp, xp.sum(weight * V, axis=-2, keepdims=True))
    smallest = 2.0 * epsilon(P)
    last = float("inf")
    for _ in range(steps_max):
        c = xp.clip(xp.sum(V * u, axis=-1, keepdims=True), 0.0, 1.0)
        sine = xp.sqrt((1.0 - c) * (1.0 + c))
        f = xp.where(sine > 0.0, xp.acos(c) / (sine + 2.0**-120), xp.ones_like(c))
        step = xp.sum(weight * f * (V - c * u), axis=-2, keepdims=True)
        # Along u a tangent has nothing; what is there is rounding.
        step = step - xp.sum(step * u, axis=-1, keepdims=True) * u
        size = float(xp.max(xp.sqrt(xp.sum(step * step, axis=-1))))
        u = _unit(xp, _exp(xp, u, step))
        if size <= smallest or (size < 1e3 * smallest and size >= last):
            break
        last = size
    mean = u[..., 0, :] ** 2
    return mean / xp.sum(mean, axis=-1, keepdims=True)


def _unit(xp: Any, x: Any) -> Any:
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))


def _exp(xp: Any, u: Any, step: Any) -> Any:
    angle = xp.sqrt(xp.sum(step * step, axis=-1, keepdims=True))
    ratio = xp.where(angle > 0.0, xp.sin(angle) / (angle + 2.0**-120), xp.ones_like(angle))
    return xp.cos(angle) * u + ratio * step


def natural_gradient(p: Any, g: Any, *, check: bool = True) -> Any:
    """Riemannian gradient of a function with partial derivatives g: p ⊙ (g − ⟨p, g⟩), in O(n).

    Args:
        p, g: `(..., n)`.

    Returns:
        `(..., n)`, a tangent vector at p (Σ = 0).

    Raises:
        ValidationError: p is no distribution, or g has NaN or inf.

    Source: S. Amari, Neural Comput. 10 (1998) 251, doi:10.1162/089976698300017746.
    """
    p, g = as_array("p", p), as_array("g", g)
    xp = same_namespace(p=p, g=g)
    check_last_axes("p", p, 1)
    check_last_axes("g", g, 1)
    if p.shape[-1] != g.shape[-1]:
        raise ValidationError(
            f"g of shape {tuple(g.shape)} does not go with p of shape {tuple(p.shape)}",
            argument="g",
            shape=tuple(g.shape),
        )
    if check:
        from qigkernels.validation import check_finite

        validate_distribution(p, "p")
        if not bool(xp.all(xp.isfinite(g))):
            check_finite("g", g)
    mean = xp.sum(p * g, axis=-1, keepdims=True) / xp.sum(p, axis=-1, keepdims=True)
    return p * (g - mean)


def metric(p: Any, *, check: bool = True) -> Any:
    """Fisher metric in the n − 1 coordinates p₁ … p_{n−1}: diag(1/p) + 11ᵀ/p_n.

    Args:
        p: `(..., n)`, every entry positive, n ≥ 2.

    Returns:
        `(..., n − 1, n − 1)`, positive definite.

    Raises:
        ValidationError: no distribution, or a zero entry, where the metric is infinite.

    Source: Amari & Nagaoka 2000, section 2.5.
    """
    p, xp = _interior(p, check)
    k = p.shape[-1] - 1
    from array_api_compat import device

    one = xp.eye(k, dtype=p.dtype, device=device(p))
    return one * (1.0 / p[..., :k])[..., None, :] + (1.0 / p[..., k])[..., None, None]


def metric_inverse(p: Any, *, check: bool = True) -> Any:
    """Inverse of `metric`: diag(p) − ppᵀ in the n − 1 coordinates, `(..., n − 1, n − 1)`."""
    p, xp = _interior(p, check)
    k = p.shape[-1] - 1
    from array_api_compat import device

    one = xp.eye(k, dtype=p.dtype, device=device(p))
    head = p[..., :k]
    return one * head[..., None, :] - head[..., :, None] * head[..., None, :]


def _interior(p: Any, check: bool) -> tuple[Any, Any]:
    p = as_array("p", p)
    xp = same_namespace(p=p)
    check_last_axes("p", p, 1)
    if check:
        validate_distribution(p, "p")
    if p.shape[-1] < 2 or not float(xp.min(p)) > 0.0:
        raise ValidationError(
            f"p of shape {tuple(p.shape)} must have at least 2 entries, all positive: the metric "
            f"is infinite on the boundary (smallest entry {float(xp.min(p))!r})",
            argument="p",
            shape=tuple(p.shape),
            value=float(xp.min(p)),
        )
    return p, xp
