"""Steps shared by the files of the simplex: checked arguments, differences and norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import as_array, same_namespace, tiny
from qigkernels._errors import ValidationError
from qigkernels.validation import check_last_axes, validate_distribution

__all__ = ["check_broadcast", "difference", "last_norm", "two_points"]


def two_points(p: Any, q: Any, check: bool) -> tuple[Any, Any, Any]:
    """Both arguments as arrays of one library, of one n, checked; and the namespace."""
    p, q = as_array("p", p), as_array("q", q)
    xp = same_namespace(p=p, q=q)
    check_last_axes("p", p, 1)
    check_last_axes("q", q, 1)
    check_broadcast(p, q)
    if check:
        validate_distribution(p, "p")
        validate_distribution(q, "q")
    return p, q, xp


def check_broadcast(p: Any, q: Any, name: str = "q") -> None:
    """Raise unless the last axes are equal and the batch axes broadcast."""
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


def difference(xp: Any, p: Any, q: Any) -> tuple[Any, Any, Any]:
    """√p and √q brought to the norm of √q, and √q − √p without cancellation."""
    sum_p = xp.sum(p, axis=-1, keepdims=True)
    gap = p - q
    shift = xp.sum(gap, axis=-1, keepdims=True) / sum_p
    u = xp.sqrt(p) * xp.sqrt(1.0 - shift)
    v = xp.sqrt(q)
    return u, v, (p * shift - gap) / (u + v + tiny(p))


def last_norm(xp: Any, x: Any) -> Any:
    """Euclidean norm over the last axis, kept as an axis; no underflow."""
    unit = xp.max(xp.abs(x), axis=-1, keepdims=True) + tiny(x)
    scaled = x / unit
    return unit * xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
