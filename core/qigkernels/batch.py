"""Batches: everything a telemetry row needs, for many rows in one pass, on any array library.

The input's dtype and device are kept, there is no loop over rows, and what is larger than a stated
bound is done in chunks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from qigkernels import simplex, states
from qigkernels._arrays import as_array, is_numpy, same_namespace, tiny
from qigkernels._errors import ValidationError
from qigkernels._roots import last_norm
from qigkernels.validation import check_last_axes, sum_tolerance, validate_distribution

__all__ = [
    "BasinSeries",
    "BasinUpdate",
    "basin_series",
    "breakdown_pct",
    "coherence_drift",
    "fisher_metric_trace",
    "update_basins",
]

_CHUNK_CACHE = 4 * 2**20
_CHUNK_DEVICE = 512 * 2**20
_TEMPORARIES = 12
"""Arrays of a chunk's size that are alive at once in the widest step."""


class BasinUpdate(NamedTuple):
    """Result of `update_basins`, one row a basin."""

    points: Any
    """`(N, n)`: the moved basins; an invalid row is as it was given."""
    step_length: Any
    """`(N,)`: Fisher-Rao length of the step, radians; 0 where nothing moved."""
    reference_distance: Any
    """`(N,)`: distance from the result to the reference, radians; NaN for an invalid input row."""
    valid: Any
    """`(N,)` booleans: the row was a distribution, its gradient finite, its step inside."""


def update_basins(
    P: Any,
    G: Any,
    lr: float,
    *,
    reference: Any = None,
    chunk_bytes_max: int | None = None,
) -> BasinUpdate:
    """Move N basins down their gradients along natural-gradient geodesics, in one pass.

    v = −lr·p ⊙ (g − ⟨p, g⟩), √x = cos θ √p + (sin θ/θ)·v/(2√p), θ = ½‖v‖. A row that is no
    distribution, whose gradient is not finite, or whose step would leave the simplex (length ≥ π,
    or a root would pass 0) is not moved and is marked invalid: no row stops the others.

    Args:
        P: `(N, n)` distributions. G: `(N, n)` gradients of a loss in p.
        lr: learning rate, finite; negative goes up.
        reference: `(n,)` or `(N, n)`; P itself when left out, so that the distance is the step's.
        chunk_bytes_max: bound on the temporary arrays; 4 MiB on a CPU, where they then stay in
            the cache, 512 MiB elsewhere.

    Returns:
        points `(N, n)`, step_length, reference_distance, valid `(N,)`.

    Raises:
        ValidationError: shapes, dtypes, libraries or devices that do not go together, or lr.

    Source: Amari 1998, doi:10.1162/089976698300017746.

    >>> p = np.full((1, 4), 0.25)
    >>> update_basins(p, np.zeros((1, 4)), 0.1).points.tolist() == p.tolist()
    True
    """
    P, G = as_array("P", P), as_array("G", G)
    xp = same_namespace(P=P, G=G)
    for name, array in (("P", P), ("G", G)):
        check_last_axes(name, array, 2, square=False)
        if array.ndim != 2 or tuple(array.shape) != tuple(P.shape) or array.dtype != P.dtype:
            raise ValidationError(
                f"{name} has shape {tuple(array.shape)} and dtype {array.dtype}; expected "
                f"(N, n) like P: {tuple(P.shape)}, {P.dtype}",
                argument=name,
                shape=tuple(array.shape),
            )
    if not math.isfinite(lr):
        raise ValidationError(f"lr must be finite, got {lr!r}", argument="lr", value=lr)
    reference = _reference(P, reference)
    parts = []
    for rows in _chunks(P, chunk_bytes_max):
        shared = reference is None or reference.ndim == 1
        other = reference if shared else reference[rows]
        parts.append(_update(xp, P[rows], G[rows], lr, other))
    if len(parts) == 1:
        return parts[0]
    return BasinUpdate(*(xp.concat(column) for column in zip(*parts, strict=True)))


def _reference(P: Any, reference: Any) -> Any:
    if reference is None:
        return None
    reference = as_array("reference", reference)
    same_namespace(P=P, reference=reference)
    validate_distribution(reference, "reference")
    if tuple(reference.shape) not in {tuple(P.shape), (P.shape[-1],)}:
        raise ValidationError(
            f"reference has shape {tuple(reference.shape)}; expected {(P.shape[-1],)} or "
            f"{tuple(P.shape)}",
            argument="reference",
            shape=tuple(reference.shape),
        )
    return reference


def _chunks(P: Any, bytes_max: int | None) -> Iterator[slice]:
    if bytes_max is None:
        bytes_max = _CHUNK_CACHE if is_numpy(P) or _on_cpu(P) else _CHUNK_DEVICE
    if bytes_max < 1:
        raise ValidationError(
            f"chunk_bytes_max must be at least 1, got {bytes_max!r}",
            argument="chunk_bytes_max",
            value=bytes_max,
        )
    count, n = P.shape
    row = n * (4 if "32" in str(P.dtype) else 8) * _TEMPORARIES
    step = max(1, bytes_max // row)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def _on_cpu(array: Any) -> bool:
    from array_api_compat import device

    return "cpu" in str(device(array)).lower()


def _update(xp: Any, p: Any, g: Any, lr: float, reference: Any) -> BasinUpdate:
    total = xp.sum(p, axis=-1, keepdims=True)
    sound = (xp.min(p, axis=-1) >= 0.0) & (xp.abs(total[:, 0] - 1.0) <= sum_tolerance(p))
    sound = sound & xp.all(xp.isfinite(g), axis=-1)
    # A row that is not sound is computed on a stand-in, so that no warning and no NaN spreads.
    safe = xp.where(sound[:, None], p, xp.full_like(p, 1.0 / p.shape[-1]))
    slope = xp.where(sound[:, None], g, xp.zeros_like(g))
    total = xp.where(sound[:, None], total, xp.ones_like(total))
    # The mean is taken off twice: what the first leaves over is its own rounding.
    slope = slope - xp.sum(safe * slope, axis=-1, keepdims=True) / total
    slope = slope - xp.sum(safe * slope, axis=-1, keepdims=True) / total
    root = xp.sqrt(safe / total)
    tangent = (-0.5 * lr) * root * slope
    angle = last_norm(xp, tangent)
    finite = xp.isfinite(angle) & (angle < 0.5 * math.pi)
    angle = xp.where(finite, angle, xp.zeros_like(angle))
    tangent = xp.where(finite, tangent, xp.zeros_like(tangent))
    ratio = xp.where(angle > 0.0, xp.sin(angle) / (angle + tiny(p)), xp.ones_like(angle))
    step = ratio * tangent - 2.0 * xp.sin(0.5 * angle) ** 2 * root
    inside = xp.all(root + step >= 0.0, axis=-1)
    valid = sound & finite[:, 0] & inside
    moved = safe + total * step * (2.0 * root + step)
    moved = xp.where(moved > 0.0, moved, xp.zeros_like(moved))
    points = xp.where(valid[:, None], moved, p)
    length = xp.where(valid, 2.0 * angle[:, 0], xp.zeros_like(angle[:, 0]))
    where = xp.where(sound[:, None], points, safe)
    away = length
    if reference is not None:
        away = simplex.distance(where, reference, check=False)
    missing = xp.full_like(length, float("nan"))
    return BasinUpdate(points, length, xp.where(sound, away, missing), valid)


class BasinSeries(NamedTuple):
    """Result of `basin_series`, one entry a step; None where it was not asked for."""

    basin_distance: Any
    """`(..., T)`: d_FR to the reference, radians."""
    geodesic_distance: Any
    """`(..., T)`: d_FR to the step before, radians; NaN at the first step."""
    path_length: Any
    """`(..., T)`: running sum of the steps, radians."""
    curvature: Any
    """`(..., T)`: turning angle / mean step length at the step; NaN at both ends."""
    grounding: Any
    """`(..., T)`: 1 − minⱼ d_FR(p, anchorⱼ)/π, in [0, 1]."""
    temporal_coherence: Any
    """`(..., T)`: mean Bhattacharyya coefficient of successive basins over the window."""


def basin_series(
    path: Any, *, reference: Any = None, anchors: Any = None, window: int = 16
) -> BasinSeries:
    """The basin metrics of every step of a path, at once.

    Args:
        path: `(..., T, n)` distributions. reference: `(n,)`. anchors: `(k, n)`.
        window: successive pairs that temporal coherence looks back on, at least 1.

    Returns:
        six series; NaN where a step has no value, None where its argument was left out.

    Raises:
        ValidationError: not distributions, or a window below 1.
    """
    path = as_array("path", path)
    xp = same_namespace(path=path)
    check_last_axes("path", path, 2, square=False)
    validate_distribution(path, "path")
    if window < 1:
        raise ValidationError(
            f"window must be at least 1, got {window!r}", argument="window", value=window
        )
    missing = xp.full_like(path[..., :1, 0], float("nan"))
    nothing = xp.zeros_like(missing)
    before, after = path[..., :-1, :], path[..., 1:, :]
    steps = path.shape[-2]
    moves = simplex.distance(before, after, check=False) if steps > 1 else path[..., :0, 0]
    curvature = xp.concat([missing] * min(steps, 2), axis=-1)
    if steps > 2:
        inner = simplex.path_curvature(path, check=False)
        curvature = xp.concat((missing, inner, missing), axis=-1)
    length = xp.concat((nothing, xp.cumulative_sum(moves, axis=-1)), axis=-1)
    distance = grounding = None
    if reference is not None:
        distance = simplex.distance(path, _fixed("reference", reference, path, 1), check=False)
    if anchors is not None:
        anchors = _fixed("anchors", anchors, path, 2)
        nearest = xp.min(simplex.distance(path[..., None, :], anchors, check=False), axis=-1)
        grounding = 1.0 - nearest / math.pi
    overlap = xp.sum(xp.sqrt(before * after), axis=-1)
    return BasinSeries(
        distance,
        xp.concat((missing, moves), axis=-1),
        length,
        curvature,
        grounding,
        _running_mean(xp, overlap, missing, nothing, window),
    )


def _fixed(name: str, points: Any, path: Any, ndim: int) -> Any:
    """Distributions that a whole path is compared with, `(n,)` or `(k, n)`, checked."""
    points = as_array(name, points)
    same_namespace(path=path, **{name: points})
    validate_distribution(points, name)
    if points.ndim != ndim or points.shape[-1] != path.shape[-1]:
        raise ValidationError(
            f"{name} has shape {tuple(points.shape)}; expected {ndim} axes, the last of "
            f"{path.shape[-1]}",
            argument=name,
            shape=tuple(points.shape),
        )
    return points


def _running_mean(xp: Any, values: Any, missing: Any, nothing: Any, window: int) -> Any:
    """Mean of the last `window` values at every step after the first."""
    count = values.shape[-1]
    if count == 0:
        return missing
    sums = xp.concat((nothing, xp.cumulative_sum(values, axis=-1)), axis=-1)
    ends = np.arange(1, count + 1)
    starts = np.maximum(ends - window, 0)
    index = [xp.asarray(i) for i in (ends, starts)]
    if not is_numpy(values):
        index = [xp.asarray(i, device=values.device) for i in index]
    total = xp.take(sums, index[0], axis=-1) - xp.take(sums, index[1], axis=-1)
    share = xp.astype(index[0] - index[1], values.dtype)
    return xp.concat((missing, total / share), axis=-1)


def coherence_drift(rho: Any, *, check: bool = True) -> Any:
    """|C_re(t) − C_re(0)| of a path of states, `(..., T, n, n)` → `(..., T)`, nats."""
    rho = as_array("rho", rho, complex_too=True)
    check_last_axes("rho", rho, 3, square=True)
    found = states.coherence_relative_entropy(rho, check=check)
    xp = same_namespace(found=found)
    return xp.abs(found - found[..., :1])


def breakdown_pct(codes: Any, window: int) -> float:
    """Share of the last `window` rows in topological_instability, percent.

    Args:
        codes: `(T,)` integers, the regimes' codes; −1 (no regime) counts as no row.

    Returns:
        a percentage; NaN where none of those rows has a regime.

    >>> breakdown_pct([1, 3, 3, 3, -1], window=5)
    75.0
    """
    last = np.asarray(codes)[-window:]
    known = last[last >= 0]
    return 100.0 * float(np.mean(known == 3)) if known.size else math.nan


def fisher_metric_trace(gradients: Any) -> Any:
    """Trace of the empirical Fisher matrix: the mean of ‖∇ᵢ log p‖² over samples.

    Args:
        gradients: `(..., S, k)`, one sample's gradient a row.

    Returns:
        `(...)`, ≥ 0.

    Raises:
        ValidationError: empty, or NaN or inf in a gradient.

    >>> float(fisher_metric_trace(np.array([[3.0, 4.0], [0.0, 0.0]])))
    12.5
    """
    gradients = as_array("gradients", gradients)
    xp = same_namespace(gradients=gradients)
    check_last_axes("gradients", gradients, 2, square=False)
    if not bool(xp.all(xp.isfinite(gradients))):
        from qigkernels.validation import check_finite

        check_finite("gradients", gradients)
    return xp.mean(xp.sum(gradients * gradients, axis=-1), axis=-1)
