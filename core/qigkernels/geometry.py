"""`fisher_rao_distance` and `quantum_fidelity`: the two names that existing code imports.

New code uses `simplex.distance`, `states.distance` and `states.fidelity`, whose names say what
they compute.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from qigkernels._arrays import as_array, product, same_namespace, to_numpy
from qigkernels._errors import ValidationError

__all__ = ["fisher_rao_distance", "quantum_fidelity"]

Method = Literal["bures", "simplex", "diagonal", "full"]


def fisher_rao_distance(a: Any, b: Any, metric: Any = None, method: Method = "bures") -> Any:
    """Distance of two states, distributions or coordinate vectors, by a named method.

    - "bures": the Bures chord √(2 − 2√F) of density matrices `(..., n, n)`, in [0, √2]. (The
      Fisher-Rao distance proper is `states.distance` = 4·arcsin(chord/2).)
    - "simplex": the Fisher-Rao distance of distributions `(..., n)`, in [0, π].
    - "diagonal": a *local norm*, √Σ gᵢ(aᵢ − bᵢ)², with metric g `(n,)`, g ≥ 0.
    - "full": a *local norm*, √((a − b)ᵀG(a − b)), with metric G `(n, n)`, positive semidefinite.

    A local norm is the length of a step in the metric at one point: a distance only as far as the
    metric is constant between a and b.

    Raises:
        ValidationError: bad arguments for the method, a metric missing or not wanted.

    >>> fisher_rao_distance(np.array([3.0]), np.array([0.0]), metric=np.ones(1), method="diagonal")
    3.0
    """
    if method in {"bures", "simplex"}:
        if metric is not None:
            raise ValidationError(
                f'method "{method}" has its own metric; leave metric out', argument="metric"
            )
        if method == "simplex":
            from qigkernels.simplex import distance

            return distance(a, b)
        from qigkernels.states import bures_distance

        return bures_distance(a, b)
    if method not in {"diagonal", "full"}:
        raise ValidationError(
            f'method must be "bures", "simplex", "diagonal" or "full", got {method!r}',
            argument="method",
            value=method,
        )
    return _local_norm(a, b, metric, method)


def quantum_fidelity(rho: Any, sigma: Any) -> Any:
    """Uhlmann fidelity, squared convention: `states.fidelity`, in [0, 1].

    >>> round(quantum_fidelity(np.eye(2) / 2, np.eye(2) / 2), 12)
    1.0
    """
    from qigkernels.states import fidelity

    return fidelity(rho, sigma)


def _local_norm(a: Any, b: Any, metric: Any, method: str) -> Any:
    if metric is None:
        raise ValidationError(f'method "{method}" needs a metric', argument="metric")
    a, b, g = as_array("a", a), as_array("b", b), as_array("metric", metric)
    xp = same_namespace(a=a, b=b, metric=g)
    n = a.shape[-1] if a.ndim else 0
    wanted = (n,) if method == "diagonal" else (n, n)
    if not n or b.shape[-1:] != a.shape[-1:] or tuple(g.shape[-len(wanted) :]) != wanted:
        raise ValidationError(
            f"a {tuple(a.shape)}, b {tuple(b.shape)} and metric {tuple(g.shape)} do not go "
            f'together; method "{method}" wants (..., n), (..., n) and '
            f"{'(n,)' if method == 'diagonal' else '(n, n)'}",
            argument="metric",
            shape=tuple(g.shape),
        )
    gap = a - b
    if method == "diagonal":
        square = xp.sum(g * gap * gap, axis=-1)
    else:
        square = xp.sum(gap * product(g, gap[..., None])[..., 0], axis=-1)
    lowest = _lowest(g, method)
    if not lowest >= -1e-12 * float(xp.max(xp.abs(g))) or not bool(xp.all(xp.isfinite(square))):
        raise ValidationError(
            f"metric of shape {tuple(g.shape)} must be positive semidefinite and everything "
            f"finite (smallest eigenvalue {lowest!r})",
            argument="metric",
            shape=tuple(g.shape),
            value=lowest,
        )
    found = xp.sqrt(xp.where(square > 0.0, square, xp.zeros_like(square)))
    return (
        float(found) if isinstance(found, (np.ndarray, np.generic)) and not found.shape else found
    )


def _lowest(metric: Any, method: str) -> float:
    values = to_numpy(metric)
    if not np.isfinite(values).all():
        return float("nan")
    if method == "diagonal":
        return float(values.min())
    if np.abs(values - np.swapaxes(values, -1, -2)).max() > 1e-10 * np.abs(values).max():
        return float("nan")
    return float(np.linalg.eigvalsh(values).min())
